//! The README says what the adapters declare.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use anywire::config::TransportConfig;
use anywire::transport::Adapter;

const BEGIN: &str = "<!-- capabilities:begin -->\n";
const END: &str = "<!-- capabilities:end -->";

/// All adapters, in the order of the table's columns. A new one is a line here.
fn adapters() -> Vec<Box<dyn Adapter>> {
    vec![
        Box::new(anywire::memory::adapter()),
        Box::new(anywire_nats::adapter()),
        Box::new(anywire_rabbitmq::adapter()),
        Box::new(anywire_kafka::adapter()),
        Box::new(anywire_grpc::adapter()),
    ]
}

#[test]
fn the_capability_table_is_what_the_adapters_declare() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the begin marker");
    let (table, after) = rest.split_once(END).expect("the end marker");
    let declared = table_of(&adapters());
    if std::env::var_os("ANYWIRE_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(path, format!("{before}{BEGIN}{declared}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        table, declared,
        "the table is out of date; ANYWIRE_BLESS=1 cargo test -p anywire-tests writes it"
    );
}

fn table_of(adapters: &[Box<dyn Adapter>]) -> String {
    let columns: Vec<_> = adapters
        .iter()
        .map(|adapter| {
            let scheme = adapter.schemes()[0];
            let config = TransportConfig::bare("main", "readme", scheme);
            (scheme, adapter.capabilities(&config).rows())
        })
        .collect();
    let mut table = row("", columns.iter().map(|(scheme, _)| *scheme));
    table += &row("---", columns.iter().map(|_| "---"));
    for (index, (name, _)) in columns[0].1.iter().enumerate() {
        let values = columns.iter().map(|(_, rows)| rows[index].1.as_str());
        table += &row(&format!("`{name}`"), values);
    }
    table
}

fn row<'a>(first: &str, cells: impl Iterator<Item = &'a str>) -> String {
    let cells: String = cells.map(|cell| format!(" {cell} |")).collect();
    format!("| {first} |{cells}\n")
}
