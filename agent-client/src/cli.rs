//! The command line. Parsing it has no side effects.

mod migrate;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::trust::Token;
use protocol::trust::peers::Name;
use state::directories;
use steering::reconciler;

use migration::Background;
use migration::flow_orders::{FarEnd, FlowChoice};
use netmig::flow::Protocol;

pub use self::migrate::Migrate;

/// Moves a running podman container to another host while its connections live on.
///
/// Without arguments, on a terminal, it asks where to go and which container to move.
#[derive(Debug, Parser)]
#[command(
    name = "agent-client",
    version,
    after_help = "Exit codes: 0 moved, 1 failed outside of a migration, 2 bad usage, 3 refused \
                  before anything changed, 4 failed and rolled back, 5 in doubt (original kept \
                  frozen), 6 moved but something is left to clean up here, 7 moved but what is named \
                  was lost, 8 given up, but the \
                  container does not run again yet. recover: 0 nothing is \
                  left, 1 something is, 5 in doubt."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Directory of identity, peers and journals.
    #[arg(long, global = true, value_name = "DIR", default_value = directories::STATE)]
    pub state_dir: PathBuf,
    /// Directory of sockets and images in memory.
    #[arg(long, global = true, value_name = "DIR", default_value = directories::RUN)]
    pub run_dir: PathBuf,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a running container.
    Migrate(Migrate),
    /// Finish or undo migrations whose agent-client has died.
    ///
    /// Before the decision to move the container is let run on here; after it the destination is
    /// asked. If that cannot be reached nothing is changed, and the exit code is 5.
    Recover(Recover),
    /// List the flows that this host carries for containers elsewhere, and those of containers here
    /// that come by another host; or end some of them.
    Flows(Flows),
    /// List or end the forwarding of new connections (migrate --forward).
    Forward(Forward),
    /// Keep this host's flows: put rules back that were removed, and remove what no flow needs. Every
    /// host with a tunnel has such a reconciler.
    #[command(hide = true)]
    Keep,
    /// Pair with a destination, by the token that agent-server invite has printed there.
    Join {
        /// The token.
        token: Token,
    },
    /// List the hosts that containers may be moved to.
    Peers(Peers),
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
pub struct Flows {
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<FlowsCommand>,
}

/// What can be done about flows.
#[derive(Clone, Debug, Subcommand)]
pub enum FlowsCommand {
    /// End flows now: TCP connections are reset, and nothing is kept for them on this host and the peer.
    ///
    /// Which ones: those of a container, those with a far end, or one by its ends as the list shows them.
    End(EndedFlows),
}

/// Arguments of `flows end`.
#[derive(Clone, Debug, Args)]
pub struct EndedFlows {
    /// Name or ID of the container.
    #[arg(required_unless_present = "from")]
    pub container: Option<String>,
    /// Only those with this far end, as the container sees it.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub far_end: Option<FarEnd>,
    /// Only those of this protocol.
    #[arg(long, value_enum, value_name = "tcp|udp")]
    pub protocol: Option<Transport>,
    /// Only the one that comes from there.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "to")]
    pub from: Option<SocketAddr>,
    /// Only the one that goes there.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "from")]
    pub to: Option<SocketAddr>,
}

impl EndedFlows {
    /// Returns which flows are to be ended.
    pub fn choice(self) -> FlowChoice {
        let Self { container, far_end, protocol, from, to } = self;
        FlowChoice { container, far_end, protocol: protocol.map(Into::into), from, to }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// Arguments of `forward`.
#[derive(Clone, Debug, Args)]
pub struct Forward {
    /// What to do.
    #[command(subcommand)]
    pub command: ForwardCommand,
}

/// What can be done about forwarded connections.
#[derive(Clone, Debug, Subcommand)]
pub enum ForwardCommand {
    /// List containers whose old addresses go on leading to them, here and from elsewhere to here.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Let new connections to a container's old address be refused. Open ones go on.
    Remove {
        /// Name or ID of the container.
        #[arg(value_parser = container_name)]
        container: String,
    },
}

/// Arguments of `peers`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Peers {
    /// Something other than listing them.
    #[command(subcommand)]
    pub command: Option<PeersCommand>,
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
}

/// What can be done with peers.
#[derive(Clone, Debug, Subcommand)]
pub enum PeersCommand {
    /// Part with a destination. It still lets this host in until it is told otherwise there.
    Remove {
        /// Its name in the list.
        name: Name,
    },
}

/// Arguments of `recover`.
#[derive(Clone, Debug, Args)]
pub struct Recover {
    /// Wait until the process that owns this journal has ended, and recover its migration alone.
    /// Every migration has such a guardian.
    #[arg(long, hide = true, value_name = "JOURNAL")]
    pub watch: Option<PathBuf>,
    /// Let the original run again although its move is decided and the destination cannot be asked.
    ///
    /// Only if you are certain that the container runs nowhere else: neither at the destination nor on a
    /// host that it has gone to from there. Otherwise two of it run from now on. The name has to be typed
    /// out.
    #[arg(long, value_name = "CONTAINER", conflicts_with = "watch", value_parser = container_name)]
    pub rollback_anyway: Option<String>,
}

/// Follows podman's rule for names, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, with a bound on the length.
fn container_name(text: &str) -> Result<String, String> {
    let mut chars = text.chars();
    let valid = text.len() <= 255
        && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        Ok(text.to_owned())
    } else {
        Err("a container's name has letters, digits, '_', '.' and '-', at most 255".to_owned())
    }
}

/// The command by which a migration's guardian is started; the journal follows.
pub const GUARDIAN: [&str; 2] = ["recover", "--watch"];

/// How this program is started in the background.
pub const BACKGROUND: Background =
    Background { guardian: &GUARDIAN, reconciler: reconciler::COMMAND, unit_holder: None };

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_knows_the_keeper() {
        let cli = Cli::parse_from(["agent-client", steering::reconciler::COMMAND]);
        assert!(matches!(cli.command, Some(Command::Keep)));
    }

    #[test]
    fn containers_names_are_podman_names() {
        assert!(container_name("web_1.test-a").is_ok());
        for text in ["", "../web", "a b", "-a", "a;id", "a/b"] {
            assert!(container_name(text).is_err(), "{text}");
        }
        assert!(container_name(&"a".repeat(4096)).is_err());
    }

    #[test]
    fn the_command_line_knows_the_guardian() {
        let arguments = ["agent-client", "--state-dir", "/s", "--run-dir", "/r"];
        let cli = Cli::parse_from(arguments.iter().chain(&GUARDIAN).chain(&["/j"]));
        let watched = match cli.command {
            Some(Command::Recover(Recover { watch, .. })) => watch,
            _ => None,
        };
        assert_eq!(watched, Some("/j".into()));
    }
}
