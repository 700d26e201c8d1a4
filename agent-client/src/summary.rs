//! How a finished migration is told, to people and to programs.

use std::net::IpAddr;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use netmig::flow::Readdressed;
use serde::Serialize;

use crate::exit::Exit;
use crate::report::{Step, milliseconds};

/// The parts of an interruption, in milliseconds; together they are the whole of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parts {
    /// Putting the hold's rule in.
    pub hold: f64,
    /// Waiting for the container's datagram queues to run empty.
    pub drain: f64,
    /// Freezing its tasks.
    pub freeze: f64,
    /// Cutting its interface off.
    pub block: f64,
    /// The runtime's checkpoint.
    pub dump: f64,
    /// What of images, files and flows arrived after the dump had ended.
    pub transfer: f64,
    /// The destination's last preparations before the restore.
    pub entries: f64,
    /// The runtime's restore.
    pub restore: f64,
    /// Setting on the copy what CRIU does not restore, and comparing it with the original.
    pub compare: f64,
    /// Commit record, order and acknowledgement.
    pub commit: f64,
    /// Until the first held packets went on.
    pub release: f64,
}

impl Parts {
    /// The parts by name, in order.
    fn rows(&self) -> [(&'static str, f64); 11] {
        [
            ("hold", self.hold),
            ("drain", self.drain),
            ("freeze", self.freeze),
            ("block", self.block),
            ("dump", self.dump),
            ("transfer", self.transfer),
            ("entries", self.entries),
            ("restore", self.restore),
            ("compare", self.compare),
            ("commit", self.commit),
            ("release", self.release),
        ]
    }
}

/// Flows that were moved.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FlowCount {
    /// TCP connections.
    pub tcp: usize,
    /// UDP flows.
    pub udp: usize,
}

/// An address that the container has in place of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewAddress {
    /// The one that it had.
    pub from: IpAddr,
    /// The one that it has.
    pub to: IpAddr,
}

impl From<&Readdressed> for NewAddress {
    fn from(Readdressed { old, new, .. }: &Readdressed) -> Self {
        Self { from: *old, to: *new }
    }
}

/// A container, for people.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerName {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A migration that reached its end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How it ended.
    #[serde(skip)]
    pub exit: Exit,
    /// `moved`, `moved-with-leftovers` or `moved-with-losses`.
    pub outcome: &'static str,
    /// The migration's identity, as it stands in logs.
    pub migration: String,
    /// What was moved.
    pub container: ContainerName,
    /// Where to.
    pub destination: String,
    /// From the start to the end.
    pub total_ms: f64,
    /// From the first held packet to the first released one.
    pub interruption_ms: f64,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The parts of the interruption.
    pub parts_ms: Parts,
    /// Flows moved.
    pub flows: FlowCount,
    /// Bytes of checkpoint images.
    pub checkpoint_bytes: u64,
    /// Packets that waited in the hold.
    pub held_packets: u64,
    /// `wireguard` (the kernel's) or `wireguard-go`.
    pub tunnel: String,
    /// `native` or `compat`: how packets were queued.
    pub queue: &'static str,
    /// Addresses that are others at the destination.
    pub readdressed: Vec<NewAddress>,
    /// What did not survive the move, each a whole sentence.
    pub lost: Vec<String>,
    /// What is left to be done, or was not kept.
    pub warnings: Vec<String>,
}

impl Summary {
    /// Prints the summary and gives the exit code.
    #[must_use]
    pub fn print(&self, json: bool) -> Exit {
        if json {
            print_json(self);
        } else {
            self.print_for_people();
        }
        for lost in &self.lost {
            eprintln!("agent-client: lost: {lost}");
        }
        for warning in &self.warnings {
            eprintln!("agent-client: warning: {warning}");
        }
        self.exit
    }

    fn print_for_people(&self) {
        println!(
            "{} runs at {} now: {:.2} s in all, interrupted for {:.0} ms.",
            self.container.name,
            self.destination,
            self.total_ms / 1e3,
            self.interruption_ms
        );
        println!(
            "{} TCP and {} UDP flows moved, {} packets held, {} of checkpoint; tunnel {}, queue {}.",
            self.flows.tcp,
            self.flows.udp,
            self.held_packets,
            HumanBytes(self.checkpoint_bytes),
            self.tunnel,
            self.queue
        );
        for NewAddress { from, to } in &self.readdressed {
            println!("Its address there is {to} in place of {from}; its connections go on.");
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        for (name, ms) in self.parts_ms.rows() {
            table.add_row([format!("  {name}"), format!("{ms:.1} ms")]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("The interruption:\n{table}");
    }
}

/// Prints a line of JSON.
pub fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => println!("{text}"),
        Err(e) => eprintln!("agent-client: cannot print JSON: {e}"),
    }
}

/// The difference of two moments in milliseconds.
#[must_use]
pub fn span(from: std::time::Instant, to: std::time::Instant) -> f64 {
    milliseconds(to.saturating_duration_since(from))
}

/// Microseconds as measured by the far end, in milliseconds.
#[must_use]
pub fn from_micros(us: u64) -> f64 {
    milliseconds(Duration::from_micros(us))
}
