//! A file with the results of the fault matrix, by which an interrupted benchmark is resumed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::error::{Context, Error, Result, chain};
use crate::faults::{Cell, Outcome, Problem, RunsOn};
use crate::prepare::Needed;

/// The result of one run of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// A hash of the product's programs.
    pub(super) product: String,
    /// The name of the cell.
    pub(super) cell: String,
    /// The number of the run, from 0.
    pub(super) number: u32,
    /// The exit code of agent-client; `None` if it was killed, or if there was no outcome.
    pub(super) exit: Option<i32>,
    /// The standard error of agent-client, if there are problems.
    pub(super) said: String,
    /// Where the container runs.
    pub(super) runs_on: Option<RunsOn>,
    /// Whether the operator had to intervene.
    pub(super) ordered: bool,
    /// The guarantees that were violated.
    pub(super) problems: Vec<(Problem, String)>,
    /// Why there is no outcome.
    pub(super) error: Option<String>,
    /// The TCP connection's longest silence, in milliseconds.
    pub(super) tcp_silent_ms: f64,
    /// The number of lost datagrams.
    pub(super) udp_lost: u64,
    /// The duration of the run in seconds.
    pub(super) seconds: f64,
}

impl Record {
    pub(super) fn new(
        product: &str,
        cell: Cell,
        number: u32,
        outcome: Result<Outcome>,
        seconds: f64,
    ) -> Self {
        let (outcome, error) = match outcome {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(chain(&error))),
        };
        let seen = outcome.as_ref();
        let problems = seen.map(|outcome| outcome.problems(cell)).unwrap_or_default();
        let said = seen.filter(|_| !problems.is_empty()).map(|outcome| outcome.said.clone());
        Self {
            product: product.to_owned(),
            cell: cell.to_string(),
            number,
            exit: seen.and_then(|outcome| outcome.exit),
            said: said.unwrap_or_default(),
            runs_on: seen.map(|outcome| outcome.runs_on),
            ordered: seen.is_some_and(|outcome| outcome.ordered),
            problems,
            tcp_silent_ms: seen.map_or(0.0, |outcome| outcome.tcp.max_gap_ms),
            udp_lost: seen.map_or(0, |outcome| outcome.udp.lost),
            error,
            seconds,
        }
    }

    /// Returns whether the run has no problems.
    pub(super) fn is_good(&self) -> bool {
        self.error.is_none() && self.problems.is_empty()
    }

    /// Formats the record as text.
    pub(super) fn line(&self) -> String {
        let verdict = if self.is_good() { "ok    " } else { "FAILED" };
        let mut text =
            format!("{verdict} {:34} {} {:5.1} s", self.cell, self.number + 1, self.seconds);
        if let Some(runs_on) = self.runs_on {
            let exit = self.exit.map_or("-".to_owned(), |code| code.to_string());
            text.push_str(&format!(
                "  exit {exit}, runs on {runs_on:?}{}, silent {:.0} ms, {} datagrams lost",
                if self.ordered { " by order" } else { "" },
                self.tcp_silent_ms,
                self.udp_lost
            ));
        }
        for (problem, what) in &self.problems {
            text.push_str(&format!("\n       {problem:?}: {what}"));
        }
        if !self.said.is_empty() {
            text.push_str(&format!("\n       it said: {}", self.said));
        }
        text
    }
}

/// The file with the records, one a line.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    file: File,
}

impl Records {
    /// Opens or creates the file. Returns its records of this product. Ignores an incomplete line.
    pub(super) fn open(path: &Path, product: &str) -> Result<(Self, Vec<Record>)> {
        let what = || format!("using {}", path.display());
        let mut known = Vec::new();
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let record: Result<Record, _> = serde_json::from_str(&line.context(what)?);
                    known.extend(record.ok().filter(|record| record.product == product));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(what),
        }
        let file = OpenOptions::new().create(true).append(true).open(path).context(what)?;
        Ok((Self { path: path.to_owned(), file }, known))
    }

    /// Appends a record on a new line, also after an incomplete one.
    pub(super) fn append(&self, record: &Record) -> Result<()> {
        let what = || format!("writing to {}", self.path.display());
        let text = serde_json::to_string(record).map_err(std::io::Error::from).context(what)?;
        (&self.file).write_all(format!("\n{text}\n").as_bytes()).context(what)?;
        self.file.sync_data().context(what)
    }
}

/// Returns a hash of the product's programs, without those of the testbed.
pub(super) fn product(needed: &Needed) -> Result<String> {
    let own = |name: &str| {
        name.starts_with("agent-") || name == "netmig-shim" || name == "libnetmig_criu.so"
    };
    let mut files: Vec<&PathBuf> = needed
        .programs
        .files
        .iter()
        .filter(|file| file.file_name().is_some_and(|name| own(&name.to_string_lossy())))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::Refused("the product's programs are not built".to_owned()));
    }
    let key = files.into_iter().try_fold(Key::default(), |key, file| key.with_file(file))?;
    Ok(key.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{Fault, InjectionPoint, Memory, Side};

    fn record(product: &str, number: u32) -> Record {
        let fault = Fault::Kill(Side::Source);
        let cell = Cell { memory: Memory::Little, point: InjectionPoint::Dump, fault };
        Record::new(product, cell, number, Err(Error::Check("no".to_owned())), 1.5)
    }

    #[test]
    fn records_come_back_and_only_those_of_the_same_product() {
        let path = std::env::temp_dir().join(format!("netmig-records-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let (records, known) = Records::open(&path, "one").unwrap();
        assert!(known.is_empty());
        records.append(&record("one", 0)).unwrap();
        records.append(&record("two", 1)).unwrap();
        // An incomplete line is ignored and does not affect later ones.
        (&records.file).write_all(b"{\"product\":\"one\"").unwrap();
        records.append(&record("one", 2)).unwrap();
        let (_, known) = Records::open(&path, "one").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(known, [record("one", 0), record("one", 2)]);
        assert!(!known[0].is_good());
    }
}
