//! `agent-client`: moves a container of this host to another host.
//!
//! ```text
//! cli, ask → migration → engine, checkpoint, netmig → kernel
//! ```

mod ask;
mod cli;
mod exit;
mod flows;
mod forward;
mod pair;
mod progress;
mod signals;
mod summary;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use checkpoint::realtime;
use clap::Parser;
use migration::flow_orders;
use migration::request::{Options, publish};
use migration::{Cancel, Context, Failure, Request, recovery, source};
use state::cause::{Cause, chain};
use state::directories::{Directories, STATE};
use state::{guardian, log};
use steering::{fwmark_setting, reconciler};

use crate::cli::{BACKGROUND, Cli, Command, Flows, FlowsCommand, Forward, ForwardCommand, Recover};
use crate::exit::Exit;
use crate::progress::Progress;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet unless asked: what the user has to know is printed by the commands themselves.
    log::begin("error", true);
    run(cli).into()
}

fn run(cli: Cli) -> Exit {
    let directories = Directories { state: cli.state_dir, run: cli.run_dir };
    if let Some(Command::Recover(Recover { watch: Some(journal), .. })) = &cli.command {
        match guardian::wait(std::io::stdin(), &directories, journal) {
            Ok(true) => {}
            Ok(false) => return Exit::Moved,
            Err(e) => {
                return complain(Exit::Failed, &format!("cannot watch {}: {e}", journal.display()));
            }
        }
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.enable_all().on_thread_start(realtime::thread_began).build() {
        Ok(runtime) => runtime,
        Err(e) => return complain(Exit::Failed, &format!("cannot start: {e}")),
    };
    if !nix::unistd::geteuid().is_root() {
        return complain(
            Exit::Refused,
            "agent-client has to run as root: it freezes processes and changes routes",
        );
    }
    if let Err(e) = fwmark_setting::begin(&directories.state) {
        return complain(Exit::Failed, &chain(&e));
    }
    let mut json = false;
    let request = match cli.command {
        Some(Command::Migrate(order)) => {
            if let Err(e) = publish::check_distinct(&order.options.publish) {
                return complain(Exit::Usage, &e);
            }
            json = order.options.json;
            order.request()
        }
        Some(Command::Recover(request)) => return recover(&runtime, directories, request),
        Some(Command::Flows(Flows { command: Some(FlowsCommand::End(request)), .. })) => {
            return done(runtime.block_on(async {
                let context = open(directories, false).map_err(|e| chain(e.as_ref()))?;
                flow_orders::end_flows(&context, &request.choice())
                    .await
                    .map_err(|e| chain(e.as_ref()))
            }));
        }
        Some(Command::Flows(request)) => {
            return match runtime.block_on(flows::run(&directories, request.json)) {
                Ok(()) => Exit::Moved,
                Err(e) => complain(Exit::Failed, &chain(e.as_ref())),
            };
        }
        Some(Command::Forward(Forward { command: ForwardCommand::List { json } })) => {
            let listed = runtime.block_on(forward::list(&directories, json));
            return told(listed.map_err(|e| chain(e.as_ref())));
        }
        Some(Command::Forward(Forward { command: ForwardCommand::Remove { container } })) => {
            return done(runtime.block_on(async {
                let context = open(directories, false).map_err(|e| chain(e.as_ref()))?;
                flow_orders::end_forwarding(&context, &container)
                    .await
                    .map_err(|e| chain(e.as_ref()))
            }));
        }
        Some(Command::Keep) => {
            let engine = engine::detect(Some(directories.run.join("engine.json")));
            return match runtime.block_on(reconciler::run(&directories, &*engine)) {
                Ok(()) => Exit::Moved,
                Err(e) => complain(Exit::Failed, &chain(e.as_ref())),
            };
        }
        Some(Command::Join { token }) => {
            return paired(&directories, |state| runtime.block_on(pair::join(state, token)));
        }
        Some(Command::Peers(request)) if request.command.is_none() => {
            let listed = pair::peers(&directories.state, &request);
            return told(listed.map_err(|e| chain(e.as_ref())));
        }
        Some(Command::Peers(request)) => {
            return paired(&directories, |state| pair::peers(state, &request));
        }
        None => match interactive(&runtime) {
            Ok(request) => request,
            Err(exit) => return exit,
        },
    };
    let destination = request.destination.clone();
    // One that was named would be made anew, with an identity that nobody knows.
    if directories.state != Path::new(STATE) && !directories.state.exists() {
        let reason = format!(
            "this host is not paired with {destination}: {} does not exist; run agent-server invite there, and agent-client \
             join TOKEN here",
            directories.state.display()
        );
        return fail(&Failure::Refused(reason.into()), &destination.to_string(), json);
    }
    let places = directories.clone();
    let had_run = places.run.exists();
    let outcome = runtime.block_on(async {
        let context = open(directories, json).map_err(Failure::Setup)?;
        let cancel = Cancel::default();
        signals::cancel(cancel.clone()).map_err(|e| Failure::Setup(e.into()))?;
        source::run(&context, &request, &cancel).await
    });
    // A step that was given up may still sit in a blocking call; its process may not wait for it.
    runtime.shutdown_background();
    match outcome {
        Ok(report) => summary::print(&report, json),
        Err(failure) => {
            if matches!(Exit::from(&failure), Exit::Refused) {
                places.remove_unused(had_run);
            }
            fail(&failure, &destination.to_string(), json)
        }
    }
}

/// Opens what this host has; `quiet` shows no steps.
fn open(directories: Directories, quiet: bool) -> Result<Context, Cause> {
    let progress = Progress::new(quiet);
    let engine = engine::detect(Some(directories.run.join("engine.json")));
    Context::open(directories, engine, BACKGROUND, Box::new(move |event| progress.show(&event)))
}

/// Recovers the migration of one journal, or all whose process has died.
fn recover(runtime: &tokio::runtime::Runtime, directories: Directories, request: Recover) -> Exit {
    runtime.block_on(async {
        let context = match open(directories, false) {
            Ok(context) => context,
            Err(e) => return complain(Exit::Failed, &chain(e.as_ref())),
        };
        match (request.watch, request.rollback_anyway) {
            (Some(journal), _) => recovery::source::guardian::run(&context, journal).await.into(),
            (None, Some(container)) => withdraw(&context, &container).await,
            (None, None) => recovery::source::run(&context).await.into(),
        }
    })
}

/// Lets the original of a move in doubt run again, once its name was typed out.
async fn withdraw(context: &Context, container: &str) -> Exit {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let message = "--rollback-anyway asks for the container's name, on a terminal alone";
        return complain(Exit::Usage, message);
    }
    let confirm = |name: &str| ask::rollback(name).map_err(|e| chain(&e));
    match recovery::source::withdraw::run(context, container, confirm).await {
        Ok(outcome) => outcome.into(),
        Err(message) => {
            complain(Exit::Refused, &format!("refused, nothing was changed: {message}"))
        }
    }
}

/// Does something about this host's peers and says what.
fn paired(directories: &Directories, work: impl FnOnce(&Path) -> Result<String, Cause>) -> Exit {
    let work = directories.create().map_err(Into::into).and_then(|()| work(&directories.state));
    told(work.map_err(|e| chain(e.as_ref())))
}

/// Prints what was done on this host, and what is left to do on others.
fn done(outcome: Result<flow_orders::Done, String>) -> Exit {
    let flow_orders::Done { told: text, left } = match outcome {
        Ok(done) => done,
        Err(reason) => return told(Err(reason)),
    };
    let exit = told(Ok(text));
    if left.is_empty() {
        return exit;
    }
    complain(Exit::MovedWithLeftovers, &left.join("\nagent-client: "))
}

/// Prints what was done, or why it was not.
fn told(outcome: Result<String, String>) -> Exit {
    match outcome {
        Ok(told) if told.is_empty() => Exit::Moved,
        Ok(told) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stdout(), "{told}");
            Exit::Moved
        }
        Err(reason) => complain(Exit::Refused, &reason),
    }
}

/// Asks for what the command line left out.
fn interactive(runtime: &tokio::runtime::Runtime) -> Result<Request, Exit> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(complain(
            Exit::Usage,
            "no command given and no terminal to ask on; see agent-client --help",
        ));
    }
    let answers = || -> Result<Request, Box<dyn std::error::Error>> {
        let destination = ask::destination()?;
        let engine = engine::detect(None);
        let running = runtime.block_on(engine.list_running())?;
        let container = ask::container(engine.kind(), running)?;
        Ok(Request { container, destination, options: Options::default() })
    };
    answers().map_err(|e| complain(Exit::Refused, &chain(e.as_ref())))
}

fn fail(failure: &Failure, destination: &str, json: bool) -> Exit {
    let exit = Exit::from(failure);
    if json {
        summary::print_failure(failure, destination);
    }
    complain(exit, &failure.explain())
}

fn complain(exit: Exit, message: &str) -> Exit {
    // Nobody may be there to read it; the exit code says it as well.
    let _ = writeln!(std::io::stderr(), "agent-client: {message}");
    exit
}
