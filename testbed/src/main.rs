//! `cargo testbed`: the command line of the testbed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::bench::{self, BenchPlan};
use testbed::cases::{self, VICTIM_ARGUMENT, be_victim};
use testbed::demo::{self, Demo};
use testbed::error::{Context, Result, chain};
use testbed::programs::What;
use testbed::vm::{self, Machine, Plan};
use testbed::{Lab, LabBuilder, Runtime, interrupt, prepare, runner};

/// Runs demos, tests and benchmarks of netmig in a lab of podman hosts on this machine
#[derive(Parser)]
#[command(name = "testbed", version)]
struct Cli {
    /// Use the product's programs in target/release without building them
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
        /// Make systemd process 1 of each host
        #[arg(long)]
        systemd: bool,
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
    /// End the lab that is up, and remove what killed runs have left
    Down,
    /// Move a container from one host to another while TCP and UDP clients talk to it
    Demo {
        /// Print one JSON object on standard output instead of tables
        #[arg(long)]
        json: bool,
        /// Draw the round-trip times that the clients saw to this file, as SVG
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// OCI runtime of the hosts' podman
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// Run the unit tests and the lab tests
    Test {
        /// Words that select tests: an area, or part of a name
        filter: Vec<String>,
        /// Leave out the tests on a second kernel in a virtual machine
        #[arg(long)]
        no_vm: bool,
    },
    /// Run demo, test or bench on a stock Debian kernel in an emulated virtual machine (slow)
    Vm {
        /// The command with its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a benchmark
    Bench {
        /// Name of the benchmark
        name: String,
        /// Number of repetitions
        #[arg(long)]
        runs: Option<u32>,
        /// Measure only the variants that FILTER names (commas separate several); for `faults`, the cells of the
        /// matrix whose names contain it
        #[arg(long, alias = "cells", value_name = "FILTER")]
        only: Option<String>,
        /// Number of labs that run in parallel
        #[arg(long)]
        jobs: Option<u32>,
        /// Measure less, in some minutes (`memory`)
        #[arg(long)]
        quick: bool,
        /// Write the figures to this file as JSON
        #[arg(long)]
        json: Option<PathBuf>,
        /// Append each result of the fault matrix to this file, and skip runs that it has already; results of
        /// another build of the product do not count
        #[arg(long, value_name = "FILE")]
        resume: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = vm::become_init_if_asked() {
        return code;
    }
    if let Some(code) = testbed::host::init::become_init_if_asked() {
        return code;
    }
    if let Some(code) = bench::floor::prestarted::become_program_if_asked() {
        return code;
    }
    if std::env::args().nth(1).as_deref() == Some(VICTIM_ARGUMENT) {
        prepare::choose(What::Nothing);
        return exit(be_victim().map(|()| ExitCode::SUCCESS));
    }
    let (cli, is_inside) = match vm::settle_if_inside() {
        Ok(None) => (Cli::parse(), false),
        Ok(Some(arguments)) => (Cli::parse_from(with_name(arguments)), true),
        Err(error) => return exit(Err(error)),
    };
    if let Err(error) = interrupt::clear_labs_when_interrupted() {
        eprintln!("testbed: an interrupted run will leave its lab to the next one: {error}");
    }
    if cli.no_build {
        prepare::choose(What::Nothing);
    }
    exit(act(cli.action, is_inside))
}

/// Arguments with the program's name before them.
fn with_name(arguments: Vec<String>) -> impl Iterator<Item = String> {
    std::iter::once("testbed".to_owned()).chain(arguments)
}

fn exit(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("testbed: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// Runs a command. `is_inside` is set in the virtual machine, where no program can be built and no second virtual
/// machine started.
fn act(action: Action, is_inside: bool) -> Result<ExitCode> {
    match action {
        Action::Up { runtime, systemd, hosts } => {
            let builder = LabBuilder::new(&hosts).runtime(runtime).standing();
            let lab = if systemd { builder.systemd() } else { builder }.start()?;
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
        Action::Demo { json, svg, runtime } => show(&demo::run(runtime, svg.as_deref())?, json),
        Action::Test { filter, no_vm } => {
            let mut cases = cases::all();
            if is_inside || no_vm {
                cases.retain(|case| !case.areas.contains(&cases::VM));
            }
            if no_vm {
                eprintln!("left out by --no-vm: the tests on a second kernel");
            }
            Ok(if runner::run(&cases, &filter, !is_inside)? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Action::Vm { command } => in_virtual_machine(command),
        Action::Bench { name, runs, only, jobs, quick, json, resume } => {
            bench::run(&name, &BenchPlan { runs, only, jobs, quick, json, resume })?;
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

/// Runs a command of this program in the virtual machine, with its exit code.
fn in_virtual_machine(mut command: Vec<String>) -> Result<ExitCode> {
    let inner = Cli::try_parse_from(with_name(command.clone())).unwrap_or_else(|e| e.exit());
    let file = match inner.action {
        Action::Test { .. } => None,
        Action::Demo { svg: file, .. } | Action::Bench { json: file, .. } => file,
        _ => {
            let what = "the virtual machine runs demo, test and bench, nothing else";
            return Err(testbed::Error::Refused(what.to_owned()));
        }
    };
    if let Some(file) = &file {
        // In the virtual machine the file is a port that leads to this program.
        let path = file.to_string_lossy();
        for word in &mut command {
            let options = ["", "--json=", "--svg="].map(|option| format!("{option}{path}"));
            if options.contains(word) {
                *word = word.replace(&*path, vm::FILE_PORT);
            }
        }
    }
    let machine = Machine::prepare()?;
    eprintln!("booting Linux {} in a virtual machine", machine.release());
    let ran = machine.run(Plan {
        arguments: command,
        file,
        limit: vm::BY_HAND,
        show: vm::Show::AsItComes,
    })?;
    Ok(ran.code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
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
