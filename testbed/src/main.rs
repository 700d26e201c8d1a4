//! `cargo testbed`: the lab by hand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::build::What;
use testbed::error::{Result, chain};
use testbed::{Lab, LabBuilder, Runtime, prepare};

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
}

fn main() -> ExitCode {
    if let Some(code) = testbed::host::init::become_init_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    if cli.no_build {
        prepare::choose(What::Nothing);
    }
    act(cli.action).unwrap_or_else(|error| {
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
        Action::Down => {
            testbed::lab::sweep()?;
            if let Ok(lab) = Lab::standing() {
                lab.down()?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
