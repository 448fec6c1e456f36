//! What the guide says beside its Rust code.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use anywire::Config;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn every_piece_of_configuration_is_read() {
    let mut read = 0;
    for page in fs::read_dir(docs()).unwrap() {
        let path = page.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for block in text.split("\n```toml\n").skip(1) {
            let (block, _) = block.split_once("\n```").expect("a fence that is closed");
            if block.contains("dependencies]") {
                continue;
            }
            let config = Config::from_toml(block);
            config.unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
            read += 1;
        }
    }
    assert!(read >= 5, "only {read} pieces were found");
}

#[test]
fn the_page_on_configuration_names_every_key() {
    let page = fs::read_to_string(docs().join("configuration.md")).unwrap();
    for section in [
        "",
        "[defaults]",
        "[[subjects]]",
        "[transports.main]",
        "[transports.main.tls]",
    ] {
        let wrong = format!("{section}\nqqqqqqqqqqqqqqqq = 1");
        let error = Config::from_toml(&wrong).unwrap_err().to_string();
        let (_, known) = error.split_once("known: ").expect("the known keys");
        for key in known.split(", ") {
            let is_there = page.contains(&format!("`{key}`")) || page.contains(&format!("[{key}"));
            assert!(is_there, "`{key}` of {section:?} is missing");
        }
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let root = docs().join("..");
    let mut pages = vec![root.join("README.md"), root.join("ARCHITECTURE.md")];
    pages.extend(
        fs::read_dir(docs())
            .unwrap()
            .map(|page| page.unwrap().path()),
    );
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').expect("a link that is closed");
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || !target.contains(".md") {
                continue;
            }
            let there = page.parent().unwrap().join(target);
            assert!(there.exists(), "{}: {link}", page.display());
        }
    }
}
