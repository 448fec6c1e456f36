//! Which behaviours are skipped, and why: rule R11.

use std::fmt;
use std::path::Path;

use crate::{Harness, behaviours};

/// The table of what is skipped: one line each, `<behaviour>  <reason>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skips {
    rows: Vec<(&'static str, &'static str)>,
    of: usize,
}

impl Skips {
    /// What an adapter skips by its declaration.
    pub(crate) fn of(harness: &dyn Harness) -> Self {
        let rows = behaviours()
            .filter_map(|behaviour| Some((behaviour.name, behaviour.skipped(harness)?)));
        Self {
            rows: rows.collect(),
            of: behaviours().count(),
        }
    }

    /// Compares the table with the committed one; `ANYWIRE_BLESS=1` writes it instead.
    ///
    /// # Errors
    /// The difference.
    pub(crate) fn compare(&self, path: &Path) -> Result<(), String> {
        let table = self.table();
        if std::env::var_os("ANYWIRE_BLESS").is_some_and(|bless| bless == "1") {
            return std::fs::write(path, table)
                .map_err(|error| format!("{}: {error}", path.display()));
        }
        let committed = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if committed == table {
            return Ok(());
        }
        let mut difference =
            String::from("the skips differ from the committed table; ANYWIRE_BLESS=1 writes it\n");
        let lines = |text: &str, other: &str, sign| {
            let only_here = text
                .lines()
                .filter(|line| !other.lines().any(|there| there == *line));
            only_here
                .map(|line| format!("{sign} {line}\n"))
                .collect::<String>()
        };
        difference += &lines(&committed, &table, '-');
        difference += &lines(&table, &committed, '+');
        Err(difference)
    }

    fn table(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or_default();
        let row = |(name, reason): &(&str, &str)| format!("{name:width$}  {reason}\n");
        self.rows.iter().map(row).collect()
    }
}

impl fmt::Display for Skips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nskipped: {} of {} behaviours",
            self.rows.len(),
            self.of
        )?;
        f.write_str(&self.table())
    }
}
