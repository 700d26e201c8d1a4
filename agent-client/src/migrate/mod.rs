//! One migration, seen from the source. Each file is one stretch of it, and each stretch is a type
//! that owns what it has changed; going on consumes it, and so does going back.
//!
//! ```text
//! connect ─▶ Plan ─▶ Departure ─▶ Pause ─▶ Committed ─▶ Summary
//!            │        │            │         │
//!            refused  rolled back  rolled    in doubt: never back by itself
//! ```

pub mod anchors;
mod beside;
mod cancel;
mod commit;
mod connect;
mod departure;
mod dump;
mod log;
mod multicast;
pub mod order;
mod outbox;
mod pause;
mod plan;
mod ports;
mod remembered;
mod retire;
mod room;
mod trees;
mod turn;

use agent_core::cause::{Cause, chain};
use agent_core::directories::Directories;
use agent_core::message::Blocker;
use agent_core::trust::Trust;
use checkpoint::podman::Podman;

use crate::cli::Migrate;
use crate::exit::Exit;
use crate::report::Steps;
use crate::summary::Summary;

pub use self::connect::dial_host;

use self::cancel::Cancel;
use self::departure::Departure;
use self::room::Room;

/// What every migration of this host needs.
#[derive(Debug)]
pub struct Context {
    /// Where state is kept.
    pub directories: Directories,
    /// This host's identity and its peers.
    pub trust: Trust,
    /// The engine.
    pub podman: Podman,
}

impl Context {
    /// Makes the directories and reads this host's identity.
    pub fn open(directories: Directories) -> Result<Self, Failure> {
        let open = || -> Result<Self, Cause> {
            directories.create()?;
            let trust = Trust::open(&directories.state)?;
            let podman = Podman::default().remembering(directories.run.join("engine.json"));
            Ok(Self { directories: directories.clone(), trust, podman })
        };
        open().map_err(Failure::Setup)
    }
}

/// A migration that did not reach its end.
#[derive(Debug)]
pub enum Failure {
    /// This host's own state could not be read.
    Setup(Cause),
    /// Refused before anything changed, by a single error.
    Refused(Cause),
    /// Refused before anything changed, with every reason.
    Blocked(Vec<Blocker>),
    /// A step failed; the original runs on as before.
    RolledBack {
        /// What failed.
        cause: Cause,
        /// The original has ended by itself meanwhile.
        ended: bool,
        /// What could not be undone, each a whole sentence.
        leftovers: Vec<String>,
    },
    /// The decision is made and the destination has not acknowledged it.
    InDoubt {
        /// The container's name.
        container: String,
        /// The last error of the destination.
        cause: Cause,
    },
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setup(_) => Exit::Failed,
            Self::Refused(_) | Self::Blocked(_) => Exit::Refused,
            Self::RolledBack { .. } => Exit::RolledBack,
            Self::InDoubt { .. } => Exit::InDoubt,
        }
    }

    /// Every reason of a refusal.
    #[must_use]
    pub fn blockers(&self) -> &[Blocker] {
        if let Self::Blocked(blockers) = self { blockers } else { &[] }
    }

    /// The message for people.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::Setup(cause) => chain(cause.as_ref()),
            Self::Refused(cause) => {
                format!("refused, nothing was changed: {}", chain(cause.as_ref()))
            }
            Self::Blocked(blockers) => {
                let mut text = String::from("refused, nothing was changed:");
                for blocker in blockers {
                    text.push_str(&format!("\n  - {} ({})", blocker.message, blocker.code));
                }
                text
            }
            Self::RolledBack { cause, ended, leftovers } => {
                let state = if *ended { "ended by itself" } else { "runs here as before" };
                let mut text =
                    format!("not moved, the container {state}: {}", chain(cause.as_ref()));
                for leftover in leftovers {
                    text.push_str(&format!("\n  still to be cleaned up: {leftover}"));
                }
                text
            }
            Self::InDoubt { container, cause } => format!(
                "in doubt: the decision to move {container} is recorded, but the destination has not \
                 confirmed that it runs there; the original is kept frozen and unreachable, and \
                 nothing of it is lost. Look at the destination, then run agent-client recover: {}",
                chain(cause.as_ref())
            ),
        }
    }
}

/// Moves a container.
pub async fn run(context: &Context, request: &Migrate) -> Result<Summary, Failure> {
    let mut cancel = Cancel::listen().map_err(|e| Failure::Setup(e.into()))?;
    let mut steps = Steps::start(request.options.json);

    steps.begin("connect");
    let connection = cancel
        .guard(connect::connect(context, &request.destination))
        .await
        .map_err(Failure::Refused)?;
    steps.begin("preflight");
    let room = Room::make(&context.podman, &request.container);
    let plan = cancel.guard_failure(plan::agree(context, request, connection)).await?;

    // From here on there is something to undo.
    let mut departure = Departure::begin(context, plan).map_err(Failure::Refused)?;
    room.keep();
    let prepared = cancel.guard(departure.prepare(&mut steps)).await;
    if let Err(cause) = prepared {
        return Err(departure.go_back(cause).await);
    }
    let mut pause = match departure.pause() {
        Ok(pause) => pause,
        Err(undone) => {
            let (departure, cause) = *undone;
            return Err(departure.go_back(cause).await);
        }
    };
    steps.pause();
    let limit = request.options.max_interruption;
    if let Err(cause) = cancel.guard(pause.run(limit)).await {
        return Err(pause.go_back(cause).await);
    }
    // The commit point. A cancellation from here on waits until the move is finished.
    let committed = match pause.commit() {
        Ok(committed) => committed,
        Err(undone) => {
            let (pause, cause) = *undone;
            return Err(pause.go_back(cause).await);
        }
    };
    committed.complete(steps).await
}
