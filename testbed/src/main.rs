//! `cargo testbed`: the lab by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::bench::{self, BenchPlan};
use testbed::build::What;
use testbed::cases::{self, VICTIM_ARGUMENT, be_victim};
use testbed::demo::{self, Demo};
use testbed::error::{Context, Result, chain};
use testbed::{Lab, LabBuilder, Runtime, interrupt, prepare, runner};

/// A lab of podman hosts on this machine, and what is done in it
#[derive(Parser)]
#[command(name = "testbed", version)]
struct Cli {
    /// Use the product's programs as they are in target/release, building none
    #[arg(long, global = true)]
    no_build: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a lab that stays up
    Up {
        /// OCI runtime of the hosts' podman
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
        /// Names of the hosts; the first has the address 192.0.2.1
        #[arg(default_values_t = ["a", "b", "c"].map(str::to_owned))]
        hosts: Vec<String>,
    },
    /// Run a command on a host of the lab that is up
    Run {
        /// Name of the host
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End the lab that is up, and what killed runs have left
    Down,
    /// Move a container from one host to another while TCP and UDP clients talk to it
    Demo {
        /// Print one JSON object on standard output instead of tables
        #[arg(long)]
        json: bool,
        /// OCI runtime of the hosts' podman
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// Run the unit tests and the lab tests
    Test {
        /// Words that select tests: an area, or part of a name
        filter: Vec<String>,
    },
    /// Measure something
    Bench {
        /// What to measure
        name: String,
        /// How often
        #[arg(long)]
        runs: Option<u32>,
        /// Of what the benchmark has many of, only what has this in its name (commas separate several)
        #[arg(long, value_name = "FILTER")]
        cells: Option<String>,
        /// How many labs to use side by side
        #[arg(long)]
        jobs: Option<u32>,
        /// File for the figures as JSON
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = testbed::host::init::become_init_if_asked() {
        return code;
    }
    if let Some(code) = bench::floor::late::become_program_if_asked() {
        return code;
    }
    if std::env::args().nth(1).as_deref() == Some(VICTIM_ARGUMENT) {
        prepare::choose(What::Nothing);
        return exit(be_victim().map(|()| ExitCode::SUCCESS));
    }
    let cli = Cli::parse();
    if let Err(error) = interrupt::clear_labs_when_interrupted() {
        eprintln!("testbed: an interrupted run will leave its lab to the next one: {error}");
    }
    if cli.no_build {
        prepare::choose(What::Nothing);
    }
    exit(act(cli.action))
}

fn exit(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("testbed: {}", chain(&error));
        ExitCode::FAILURE
    })
}

fn act(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up { runtime, hosts } => {
            let lab = LabBuilder::new(&hosts).runtime(runtime).standing().start()?;
            for host in lab.hosts() {
                println!("{:12} {:15} {}", host.name(), host.address(), host.address6());
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Run { host, command } => {
            let lab = Lab::standing()?;
            let mut words = command.iter();
            let program = words.next().map_or("", String::as_str);
            let status = lab.host(&host)?.command(program).args(words).attached()?;
            Ok(ExitCode::from(status.code().and_then(|code| code.try_into().ok()).unwrap_or(1)))
        }
        Action::Demo { json, runtime } => show(&demo::run(runtime)?, json),
        Action::Test { filter } => Ok(if runner::run(&cases::all(), &filter)? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }),
        Action::Bench { name, runs, cells, jobs, json } => {
            bench::run(&name, &BenchPlan { runs, cells, jobs, json })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Down => {
            testbed::lab::sweep()?;
            if let Ok(lab) = Lab::standing() {
                lab.down()?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn show(demo: &Demo, json: bool) -> Result<ExitCode> {
    if json {
        let text = serde_json::to_string(demo).map_err(std::io::Error::from);
        println!("{}", text.context(|| "writing the figures")?);
    } else {
        println!("{}", demo.table());
    }
    Ok(match demo.fault() {
        None => ExitCode::SUCCESS,
        Some(fault) => {
            eprintln!("testbed: the demo failed: {fault}");
            ExitCode::FAILURE
        }
    })
}
