//! The silence that clients see, compared with the floor and with podman's own checkpoint and restore. All are
//! measured in turn, on the same hosts, with the same image, under the same clients.

use std::fs;

use serde_json::{Map, Value, json};

use super::distribution::{Distribution, Samples};
use super::fixture::{self, Failures, Moved, PARTS};
use super::floor::{self, Floor};
use super::{Bench, BenchPlan, podman_baseline};
use crate::error::{Context, Result};
use crate::lab::{Lab, Runtime};

pub(super) const BENCH: Bench = Bench {
    name: "downtime",
    about: "silence that clients see: netmig, the floor, and podman's own checkpoint and restore",
    run,
};

const RUNS: u32 = 15;

/// The measurements with one runtime.
#[derive(Default)]
struct Measured {
    moves: Vec<Moved>,
    floors: Vec<Floor>,
}

impl Measured {
    fn round(&mut self, lab: &Lab, runtime: Runtime) -> Result<()> {
        let (moved, floor) = (fixture::move_once(lab, runtime)?, floor::measure(lab, runtime)?);
        self.moves.push(moved);
        self.floors.push(floor);
        Ok(())
    }

    fn of_moves(&self, value: impl Fn(&Moved) -> f64) -> Samples {
        self.moves.iter().map(value).collect()
    }

    fn of_floors(&self, value: impl Fn(&Floor) -> f64) -> Samples {
        self.floors.iter().map(value).collect()
    }

    fn part(&self, part: &str) -> Samples {
        self.of_moves(|moved| moved.report.parts_ms.get(part).copied().unwrap_or_default())
    }

    /// Returns the ratios of silence to floor, pair by pair.
    fn over_floor(&self) -> Samples {
        self.moves.iter().zip(&self.floors).map(|(a, b)| a.tcp_gap / b.whole).collect()
    }
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    let load_before = load()?;
    let mut failures = Failures::default();
    let (mut crun, mut runc, mut podman) = (Measured::default(), Measured::default(), Vec::new());
    let outcome = (0..=runs).try_for_each(|round| {
        eprintln!("round {round} of {runs}");
        let what = |name: &str| format!("round {round}, {name}");
        let outcome = crun.round(&lab, Runtime::Crun).and_then(|()| {
            podman.push(podman_baseline::measure(&lab, Runtime::Crun)?);
            Ok(())
        });
        failures.survive(&lab, &what("crun"), outcome)?;
        // netmig and podman are compared pair by pair.
        let pairs = podman.len();
        crun.moves.truncate(pairs);
        crun.floors.truncate(pairs);
        failures.survive(&lab, &what("runc"), runc.round(&lab, Runtime::Runc))?;
        if round == 0 {
            // The first round reads programs from the disk.
            (crun, runc, podman) = Default::default();
        }
        Ok(())
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    let podman: Samples = podman.into_iter().collect();
    let podman_over: Samples =
        podman.iter().zip(&crun.moves).map(|(podman, moved)| podman / moved.tcp_gap).collect();
    let both = [("crun", &crun), ("runc", &runc)];
    print(&both, &podman, &podman_over);
    let moves: Vec<&Moved> = both.iter().flat_map(|(_, measured)| &measured.moves).collect();
    let total = |value: fn(&Moved) -> u64| moves.iter().map(|moved| value(moved)).sum::<u64>();
    Ok(json!({
        "runs": runs,
        "netmig": by_runtime(&both, |measured| json!({
            "tcp_gap_ms": measured.of_moves(|moved| moved.tcp_gap).distribution(),
            "udp_gap_ms": measured.of_moves(|moved| moved.udp_gap).distribution(),
            "interruption_ms": interruption(measured).distribution(),
            "total_ms": measured.of_moves(|moved| moved.report.total_ms).distribution(),
            "parts_ms": PARTS
                .map(|part| (part.to_owned(), json!(measured.part(part).median())))
                .into_iter()
                .collect::<Map<_, _>>(),
        })),
        "floor": by_runtime(&both, |measured| json!({
            "ms": measured.of_floors(|floor| floor.whole).distribution(),
            "parts_ms": {
                "freeze": measured.of_floors(|floor| floor.freeze).median(),
                "dump": measured.of_floors(|floor| floor.dump).median(),
                "restore": measured.of_floors(|floor| floor.restore).median(),
            },
        })),
        "podman": { "ms": podman.distribution() },
        "ratios": {
            "netmig_over_floor": by_runtime(&both, |measured| json!(measured.over_floor().median())),
            "podman_over_netmig": podman_over.median(),
        },
        "ratio_spreads": {
            "netmig_over_floor":
                by_runtime(&both, |measured| json!(measured.over_floor().distribution())),
            "podman_over_netmig": podman_over.distribution(),
        },
        "udp": {
            "sent": total(|moved| moved.udp.sent),
            "lost": total(|moved| moved.udp.lost),
            "duplicated": total(|moved| moved.udp.duplicated),
            "reordered": total(|moved| moved.udp.reordered),
        },
        "tcp": {
            "sent": total(|moved| moved.tcp.sent),
            "lost": total(|moved| moved.tcp.lost),
            "resets": total(|moved| moved.tcp.resets),
        },
        "failures": failures.tell(),
        "load_average": { "before": load_before, "after": load()? },
    }))
}

fn interruption(measured: &Measured) -> Samples {
    measured.of_moves(|moved| moved.report.interruption_ms)
}

fn by_runtime(both: &[(&str, &Measured)], value: impl Fn(&Measured) -> Value) -> Value {
    both.iter().map(|(name, measured)| ((*name).to_owned(), value(measured))).collect()
}

/// Returns the load average of the last minute. It shows whether the machine was busy during the measurement.
fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context(|| "reading /proc/loadavg")?;
    Ok(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default())
}

fn print(both: &[(&str, &Measured)], podman: &Samples, podman_over: &Samples) {
    println!("{:28}{}", "ms", Distribution::HEADINGS);
    for (name, measured) in both {
        println!(
            "{}",
            measured.of_moves(|moved| moved.tcp_gap).row(&format!("netmig {name}, TCP"))
        );
        println!(
            "{}",
            measured.of_moves(|moved| moved.udp_gap).row(&format!("netmig {name}, UDP"))
        );
        println!("{}", interruption(measured).row(&format!("netmig {name}, by itself")));
        println!("{}", measured.of_floors(|f| f.whole).row(&format!("floor {name}")));
    }
    println!("{}", podman.row("podman"));
    println!("\n{:28}{}", "ratio, pair by pair", Distribution::HEADINGS);
    for (name, measured) in both {
        println!("{}", measured.over_floor().row(&format!("netmig / floor, {name}")));
    }
    println!("{}", podman_over.row("podman / netmig, crun"));
    println!(
        "\nparts, median ms{:>20}{:>16}{:>16}{:>16}",
        "crun", "crun floor", "runc", "runc floor"
    );
    for part in PARTS {
        let mut line = format!("{part:20}");
        for (_, measured) in both {
            let floor = match part {
                "freeze" => Some(measured.of_floors(|floor| floor.freeze).median()),
                "dump" => Some(measured.of_floors(|floor| floor.dump).median()),
                "restore" => Some(measured.of_floors(|floor| floor.restore).median()),
                _ => None,
            };
            let floor = floor.map(|ms| format!("{ms:.1}")).unwrap_or_default();
            line.push_str(&format!("{:>16.1}{floor:>16}", measured.part(part).median()));
        }
        println!("{line}");
    }
    println!();
    for (name, measured) in both {
        let sum = |value: fn(&Moved) -> u64| measured.moves.iter().map(value).sum::<u64>();
        println!(
            "UDP, {name}: {} sent, {} lost, {} duplicated, {} out of order",
            sum(|moved| moved.udp.sent),
            sum(|moved| moved.udp.lost),
            sum(|moved| moved.udp.duplicated),
            sum(|moved| moved.udp.reordered),
        );
    }
}
