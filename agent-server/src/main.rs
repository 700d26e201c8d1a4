//! `agent-server`: receives containers from other hosts.
//!
//! ```text
//! cli → serve → migration → engine, checkpoint, netmig → kernel
//!       serve → welcome, invite: pairing
//! ```

mod allow;
mod cli;
mod invite;
mod malloc_arenas;
mod pairing;
mod serve;
mod unauthenticated;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use checkpoint::realtime;
use clap::Parser;
use migration::destination::ServerContext;
use migration::recovery::destination as recovery;
use protocol::trust::{Servers, Trust};
use state::cause::{Cause, chain};
use state::directories::Directories;
use state::guardian;
use state::log;
use steering::fwmark_setting;
use steering::reconciler;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    malloc_arenas::limit_heaps();
    let mut cli = Cli::parse();
    if cli.hold_unit {
        loop {
            nix::unistd::pause();
        }
    }
    let watched = cli.watch.take();
    if let Some(journal) = &watched {
        let directories = Directories { state: cli.state_dir.clone(), run: cli.run_dir.clone() };
        match guardian::wait(std::io::stdin(), &directories, journal) {
            Ok(true) => {}
            Ok(false) => return ExitCode::SUCCESS,
            Err(e) => return complain(&format!("cannot watch {}: {e}", journal.display())),
        }
    }
    // Others may not read it, and are told below that they may not run this.
    if nix::unistd::geteuid().is_root()
        && let Err(e) = fwmark_setting::begin(&cli.state_dir)
    {
        return complain(&chain(&e));
    }
    log::begin("info", false);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.enable_all().on_thread_start(realtime::thread_began).build() {
        Ok(runtime) => runtime,
        Err(e) => return complain(&format!("cannot start: {e}")),
    };
    let outcome = runtime.block_on(async {
        if cli.keep {
            let directories = Directories { state: cli.state_dir, run: cli.run_dir };
            let engine = engine::detect(Some(directories.run.join("engine.json")));
            return Ok(reconciler::run(&directories, &*engine).await?);
        }
        match watched {
            Some(journal) => {
                let directories = Directories { state: cli.state_dir, run: cli.run_dir };
                recovery::guard(&directories, &*engine::detect(None), journal).await;
                Ok(())
            }
            None => run(cli).await,
        }
    });
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, message }) => {
            complain(&message);
            ExitCode::from(exit)
        }
    }
}

/// Why nothing was done, and the exit code that tells it.
struct Failure {
    exit: u8,
    message: String,
}

/// The exit code for an order that was refused, as agent-client has it.
const REFUSED: u8 = 3;

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { exit: 1, message }
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        let exit = if cause.is::<allow::NoSuchPeer>() { REFUSED } else { 1 };
        Self { exit, message: chain(cause.as_ref()) }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let message = "agent-server has to run as root: it restores processes and changes routes";
        return Err(message.to_owned().into());
    }
    let directories = Directories { state: cli.state_dir, run: cli.run_dir };
    let is_list = matches!(&cli.command, Some(Command::Peers(peers)) if peers.command.is_none())
        || matches!(&cli.command, Some(Command::Marks { bits: None }));
    if !is_list {
        directories.create().map_err(|e| chain(&e))?;
    }
    let engine = engine::detect(None);
    if let Some(Command::Recover) = cli.command {
        // A server that runs has settled everything, and has the journals of what it works on locked.
        let settled = recovery::run(&directories, &engine).await;
        return match settled.map_err(|e| chain(&e))? {
            true => Ok(()),
            false => Err("not everything could be settled; see above".to_owned().into()),
        };
    }
    if let Some(command) = cli.command {
        return manage(&directories, &command, cli.port).await;
    }
    let trust = Trust::open(&directories.state).map_err(|e| chain(&e))?;
    let servers = Servers::new(&trust).map_err(|e| chain(&e))?;
    tracing::info!("this host's fingerprint is {}", trust.identity.fingerprint());
    // Bound first: of two agents on one host only one may settle what was left. Sources wait in the
    // backlog meanwhile.
    let listener = bind(cli.listen, cli.port).await?;
    recovery::run(&directories, &engine).await.map_err(|e| chain(&e))?;
    recovery::guard_remaining(&directories, &engine).map_err(|e| chain(&e))?;
    let kept = keep(&directories).await;
    kept.map_err(|e| format!("cannot start the reconciler of flows: {}", chain(e.as_ref())))?;
    let patience = Duration::from_secs(cli.memory_wait.into());
    let host = ServerContext::open(directories, trust, engine, cli::BACKGROUND, patience)
        .await
        .map_err(|e| chain(e.as_ref()))?;
    tracing::info!("ready for other hosts");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    serve::run(listener, host, servers, stop).await;
    Ok(())
}

/// Runs a command beside a server that runs.
///
/// `port` is that of the server.
async fn manage(directories: &Directories, command: &Command, port: u16) -> Result<(), Failure> {
    let state = &directories.state;
    let (result, told) = match command {
        Command::Invite(request) => invite::invite(state, request, port)?,
        Command::Peers(request) => (invite::peers(state, request)?, String::new()),
        Command::Recover => return Ok(()),
        Command::Marks { bits } => {
            if let Some(bits) = bits {
                fwmark_setting::set(directories, *bits).await?;
            }
            let bits = fwmark_setting::read(state).map_err(|e| chain(&e))?;
            let told = format!("packets are marked in bits {bits} (mask {:#010x})", bits.mask());
            (told, String::new())
        }
    };
    // Nobody may be there to read it.
    if !told.is_empty() {
        let _ = writeln!(std::io::stderr(), "{told}");
    }
    if !result.is_empty() {
        let _ = writeln!(std::io::stdout(), "{result}");
    }
    Ok(())
}

/// Sees to it that flows which were moved before have their reconciler.
async fn keep(directories: &Directories) -> Result<(), Cause> {
    if !netmig::tunnel::list().await?.is_empty() {
        reconciler::start(directories, cli::KEEPER)?;
    }
    Ok(())
}

/// Binds the listening socket. The unspecified IPv6 address takes IPv4, too; where the kernel has no
/// IPv6 the default falls back to IPv4 alone.
async fn bind(address: IpAddr, port: u16) -> Result<TcpListener, String> {
    let first = SocketAddr::new(address, port);
    let outcome = match TcpListener::bind(first).await {
        Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) && address.is_unspecified() => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await
        }
        other => other,
    };
    let listener = outcome.map_err(|e| {
        format!(
            "cannot listen on {first}: {e}; is another agent-server running, or the port taken?"
        )
    })?;
    if let Ok(bound) = listener.local_addr() {
        tracing::info!("listening on {bound}");
    }
    Ok(listener)
}

fn complain(message: &str) -> ExitCode {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "agent-server: {message}");
    ExitCode::FAILURE
}
