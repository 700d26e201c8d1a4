//! The command line. Parsing it has no side effects.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use agent_core::directories;
use agent_core::wire::DEFAULT_PORT;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Moves a running podman container to another host while its connections live on.
///
/// Without arguments, on a terminal, it asks where to go and which container to move.
#[derive(Debug, Parser)]
#[command(
    name = "agent-client",
    version,
    after_help = "Exit codes: 0 moved, 1 failed outside of a migration, 2 bad usage, 3 refused \
                  before anything changed, 4 failed and rolled back, 5 in doubt (original kept \
                  frozen), 6 moved but something is left to clean up here. recover: 0 nothing is \
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
    /// that come by another host.
    Flows(Flows),
    /// Keep this host's flows: put rules back that were removed, and remove what no flow needs. Every
    /// host with a tunnel has such a keeper.
    #[command(hide = true)]
    Keep,
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
pub struct Flows {
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `migrate`.
#[derive(Clone, Debug, Args)]
pub struct Migrate {
    /// Name or ID of a running container on this host.
    #[arg(value_parser = container_name)]
    pub container: String,
    /// Where agent-server runs.
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            json: false,
            image: ImagePolicy::Send,
            max_interruption: agent_core::deadline::INTERRUPTION,
        }
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

/// A destination as the user writes it: `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Name or address.
    pub host: String,
    /// TCP port of agent-server.
    pub port: u16,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) =
                    rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
                match tail {
                    "" => (host, None),
                    tail => (host, Some(tail.strip_prefix(':').ok_or("a port follows a colon")?)),
                }
            }
            // More than one colon without brackets: an IPv6 address and no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|&p| p != 0)
                .ok_or_else(|| format!("'{port}' is not a port from 1 to 65535"))?,
        };
        let valid = !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
        if !valid {
            return Err("that is neither a host name nor an address".to_owned());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(text: &str) -> Option<(String, u16)> {
        text.parse::<Destination>().ok().map(|d| (d.host, d.port))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_knows_the_keeper() {
        let cli = Cli::parse_from(["agent-client", agent_core::keeper::COMMAND]);
        assert!(matches!(cli.command, Some(Command::Keep)));
    }

    #[test]
    fn destinations_in_every_form() {
        assert_eq!(parse("b"), Some(("b".into(), DEFAULT_PORT)));
        assert_eq!(parse("b.example:99"), Some(("b.example".into(), 99)));
        assert_eq!(parse("192.0.2.2:99"), Some(("192.0.2.2".into(), 99)));
        assert_eq!(parse("[2001:db8::2]:99"), Some(("2001:db8::2".into(), 99)));
        assert_eq!(parse("[2001:db8::2]"), Some(("2001:db8::2".into(), DEFAULT_PORT)));
        assert_eq!(parse("2001:db8::2"), Some(("2001:db8::2".into(), DEFAULT_PORT)));
    }

    #[test]
    fn nonsense_is_no_destination() {
        for text in ["", ":99", "b:", "b:0", "b:65536", "b:x", "[::1", "[::1]99", "a b", "$(id)"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"a".repeat(4096)), None);
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
}
