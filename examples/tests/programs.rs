//! The programs from the outside: their input, their output, their exit status.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

const SAMPLE: &[u8] = include_bytes!("../data/orders.jsonl");
const BALANCED: &str = "every line is accounted for";

fn shop(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command
        .args(arguments)
        .env_remove("ANYWIRE_URL")
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn shop_reads(input: impl Into<Vec<u8>>) -> Output {
    let mut child = shop(&["--orders", "-"]).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&input.into())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn shown(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn assert_balanced(output: &Output, tells: &[&str]) {
    let (shown, complaint) = (shown(output), complaint(output));
    assert_eq!(output.status.code(), Some(0), "{shown}{complaint}");
    assert_eq!(complaint, "", "nothing but the summary, off a terminal");
    for told in tells.iter().chain(&[BALANCED]) {
        assert!(shown.contains(told), "{shown} lacks {told:?}");
    }
}

#[test]
fn the_sample_balances() {
    let output = shop(&[]).output().unwrap();
    let tells = [
        "10000 lines read",
        "blank",
        "too long",
        "repeated",
        "unknown_item",
        "bad_quantity",
        "missing field",
        "the card was declined",
        "more than the warehouse holds",
        "orders/s; quote p50",
    ];
    assert_balanced(&output, &tells);
}

#[test]
fn the_three_kinds_of_streaming_calls_are_made() {
    let output = shop_reads("");
    let tells = [
        "300 orders imported",
        "285 placed",
        "10 unknown_item, 5 bad_quantity",
        "285 orders followed",
        "more than the warehouse holds",
        "7 offers, and a deal at 720.00",
        "every order was followed to its end",
    ];
    assert_balanced(&output, &tells);
}

#[test]
fn the_sample_is_what_its_generator_writes() {
    let made = Command::new(env!("CARGO_BIN_EXE_make-orders"))
        .output()
        .unwrap();
    assert!(
        made.stdout == SAMPLE,
        "run `cargo run -p anywire-examples --bin make-orders > examples/data/orders.jsonl`"
    );
}

#[test]
fn standard_input_is_read_and_nothing_is_too_odd() {
    let order = |id: &str, customer: &str, region: &str| {
        let order = serde_json::json!({
            "id": id, "customer": customer, "region": region, "item": "mug", "quantity": 1,
        });
        format!("{order}\n").into_bytes()
    };
    let mut input = Vec::new();
    input.extend(order("1", "", ""));
    input.extend(order("2", "a\nb\0", "eu.*.>"));
    input.extend(order("", "\u{202e}🦀", &"x".repeat(40)));
    input.extend(order("1", "the same again", "eu"));
    input.extend(b"\n  \t\r\n\xff\xfe\n{\"id\":\n[[[[\nnull\n");
    input.extend(vec![b'['; 200_000]);
    input.extend(b"\n");
    input.extend(order("4", "c", "no line end"));
    input.pop();
    let tells = [
        "12 lines read",
        "2 blank",
        "1 too long",
        "1 repeated",
        "4 undecodable",
        "4 orders placed",
        "4 undecodable lines",
    ];
    assert_balanced(&shop_reads(input), &tells);
}

#[test]
fn no_input_balances() {
    assert_balanced(&shop_reads(""), &["0 lines read", "0 orders placed"]);
}

#[test]
fn nothing_but_bad_lines_balances() {
    let input = "no order\n".repeat(12_000);
    assert_balanced(
        &shop_reads(input),
        &["12000 undecodable lines", "12000 dead-lettered"],
    );
}

#[test]
fn an_input_that_cannot_be_read_is_an_error() {
    let output = shop(&["--orders", "no/such/file"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("cannot read no/such/file"));
    // A directory can be opened, and fails when it is read.
    let output = shop(&["--orders", "."]).output().unwrap();
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("could not be read to its end"), "{shown}");
}

#[test]
fn two_processes_do_not_share_memory() {
    for mode in ["serve", "order", "visit"] {
        for url in [None, Some("memory://")] {
            let mut command = shop(&[mode]);
            command.envs(url.map(|url| ("ANYWIRE_URL", url)));
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(2));
            let complaint = complaint(&output);
            assert!(complaint.contains("cannot share memory"), "{complaint}");
        }
    }
}

#[test]
fn a_mistake_in_the_command_is_answered_with_its_usage() {
    for arguments in [&["sell"][..], &["--orders"]] {
        let output = shop(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(complaint(&output).contains("usage: shop"));
    }
    let output = shop(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(shown(&output).contains("usage: shop"));
}

#[cfg(unix)]
#[test]
fn a_signal_in_the_middle_ends_in_a_summary_that_balances() {
    let mut child = shop(&["--orders", "-"]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // More than a pipe and the lines that are read ahead hold: once it is written, orders are being placed.
    input.write_all(SAMPLE).unwrap();
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_balanced(&output, &["stopped before the end"]);
}

#[test]
fn the_program_without_macros_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_plain"))
        .env_remove("ANYWIRE_URL")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    assert!(shown(&output).contains("length: 3"));
}
