//! The command line. Parsing it has no side effects.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::trust::Token;
use protocol::trust::peers::Name;
use state::directories;
use state::peer_address::Destination;
use steering::reconciler;

use migration::Background;
use migration::request::{self, Publish, Request};
use netmig::flow::Protocol;

use crate::flows::FarEnd;

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

/// Arguments of `migrate`.
#[derive(Clone, Debug, Args)]
pub struct Migrate {
    /// Name or ID of a running container on this host.
    #[arg(value_parser = container_name)]
    pub container: String,
    /// Where agent-server runs: the name of a peer, or an address.
    #[arg(value_name = "HOST[:PORT]")]
    pub destination: Destination,
    #[command(flatten)]
    /// How to go about it.
    pub options: Options,
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

/// How a migration goes about it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// What to do if the destination lacks the container's image.
    #[arg(long, value_enum, default_value = "send", value_name = "POLICY")]
    pub image: ImagePolicy,
    /// Go back if the interruption would last longer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub max_interruption: Duration,
    /// Go on leading new connections to this host's published ports to the container, through the
    /// tunnel, until `agent-client forward remove`.
    #[arg(long)]
    pub forward: bool,
    /// Where a chain of this host's nftables drops packets of its flows, put rules in front of it that let
    /// these pass, until the last flow with the destination has ended. Otherwise such a move is refused.
    /// Chains of iptables, and those of the destination, are never opened.
    #[arg(long)]
    pub open_firewall: bool,
    /// Publish this port at the destination, in place of those that are published here; may be
    /// repeated. As podman run --publish.
    #[arg(long, value_name = "[[IP:]PORT:]CONTAINER_PORT[/PROTOCOL]")]
    pub publish: Vec<Publish>,
    /// Which address it gets on its network at the destination.
    #[arg(long, value_enum, default_value = "keep", value_name = "POLICY")]
    pub address: AddressPolicy,
    /// How packets of its flows get from this host to the destination.
    #[arg(long, value_enum, default_value = "wireguard", value_name = "KIND")]
    pub tunnel: TunnelChoice,
    /// Move it although this may be lost, where the kernel does not tell whether there is any; may be
    /// repeated.
    #[arg(long, value_enum, value_name = "LOSS")]
    pub accept_loss: Vec<Loss>,
}

impl Migrate {
    /// Returns the order as the migration takes it.
    pub fn request(self) -> Request {
        let Self { container, destination, options } = self;
        let image = match options.image {
            ImagePolicy::Send => request::ImagePolicy::Send,
            ImagePolicy::Require => request::ImagePolicy::Require,
        };
        let address = match options.address {
            AddressPolicy::Keep => request::AddressPolicy::Keep,
            AddressPolicy::Any => request::AddressPolicy::Any,
        };
        let tunnel = match options.tunnel {
            TunnelChoice::WireGuard => request::TunnelChoice::WireGuard,
            TunnelChoice::Direct => request::TunnelChoice::Direct,
        };
        let accepted = options.accept_loss.into_iter();
        let accepted_losses = accepted.map(|Loss::Landlock| request::Loss::Landlock).collect();
        let options = request::Options {
            image,
            max_interruption: options.max_interruption,
            forward: options.forward,
            open_firewall: options.open_firewall,
            publish: options.publish,
            address,
            tunnel,
            accepted_losses,
        };
        Request { container, destination, options }
    }
}

/// What to do if the destination lacks the container's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImagePolicy {
    /// Ship it while the container runs.
    Send,
    /// Refuse to move.
    Require,
}

/// How packets get to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TunnelChoice {
    /// Encrypted, over any network.
    #[value(name = "wireguard")]
    WireGuard,
    /// As they are, unencrypted, to a host on the same Ethernet segment, which has to allow it
    /// (agent-server peers allow HOST --direct). Faster. For segments on which everybody is trusted.
    Direct,
}

/// What a container may lose without anybody being able to tell beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// Restrictions by Landlock (landlock(7)) that processes have put themselves under.
    Landlock,
}

/// Which address the container gets at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AddressPolicy {
    /// Its own; refuse to move if that is taken.
    Keep,
    /// Another one if its own is taken; its connections go on.
    Any,
}

/// podman's rule for names, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, with a bound on the length.
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

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| (0.05..=3600.0).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0.05 to 3600".to_owned())
}

/// The command by which a migration's guardian is started; the journal follows.
pub const GUARDIAN: [&str; 2] = ["recover", "--watch"];

/// How this program is started in the background.
pub const BACKGROUND: Background =
    Background { guardian: &GUARDIAN, reconciler: reconciler::COMMAND };

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
    fn interruptions_out_of_range_are_refused() {
        for text in ["0", "-1", "nan", "inf", "1e9", "", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
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
