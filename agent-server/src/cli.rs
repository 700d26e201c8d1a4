//! The command line. Parsing it has no side effects.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use migration::Background;
use netmig::fwmark::MarkBits;
use protocol::permissions::Pattern;
use protocol::trust::invitation::USES_LIMIT;
use protocol::trust::peers::Name;
use state::directories;
use state::peer_address::DEFAULT_PORT;
use state::peer_address::Destination;

/// The option by which the guardian of an arrival is started; its journal follows.
pub const GUARDIAN: &str = "--watch";

/// The option that makes this program the reconciler of the host's flows.
pub const KEEPER: &str = "--keep";

/// The option that makes this program the first process of a unit whose container arrives.
pub const UNIT_HOLDER: &str = "--hold-unit";

/// How this program is started in the background.
pub const BACKGROUND: Background =
    Background { guardian: &[GUARDIAN], reconciler: KEEPER, unit_holder: Some(UNIT_HOLDER) };

/// Receives running containers from other hosts, until told to stop.
///
/// Only hosts that were invited may send any: see the command invite. SIGTERM or Ctrl-C stop it: no new
/// migration begins, and those under way finish or turn back.
#[derive(Debug, Parser)]
#[command(name = "agent-server", version)]
pub struct Cli {
    /// What to do instead of receiving containers.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Address to listen on; all addresses, IPv4 and IPv6, unless given.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub listen: IpAddr,
    /// TCP port to listen on; given with invite, the port that the token leads to.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    pub port: u16,
    /// Directory of identity, peers and journals.
    #[arg(long, global = true, value_name = "DIR", default_value = directories::STATE)]
    pub state_dir: PathBuf,
    /// Directory of sockets and images in memory.
    #[arg(long, global = true, value_name = "DIR", default_value = directories::RUN)]
    pub run_dir: PathBuf,
    /// End a container that lacks pages of its memory (migrate --memory post-copy) when its source has sent none for so long,
    /// in seconds. Without them it can never go on.
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub memory_wait: u32,
    /// Wait until the process that owns this journal has ended, settle its arrival, and end. Every
    /// arrival has such a guardian.
    #[arg(long, hide = true, value_name = "JOURNAL")]
    pub watch: Option<PathBuf>,
    /// Do nothing until ended: the process of a systemd unit whose container arrives.
    #[arg(long, hide = true)]
    pub hold_unit: bool,
    /// Keep the host's flows: put rules back that were removed, and remove what no flow needs. Every
    /// host with a tunnel has such a reconciler.
    #[arg(long, hide = true)]
    pub keep: bool,
}

/// The commands. All of them work beside a server that runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a join token, with which another host may become a source of containers for this one.
    Invite(Invite),
    /// List the hosts that may move containers here.
    Peers(Peers),
    /// Settle what a former agent-server has left of arrivals, and end. For the time of a boot: it has to be
    /// over before anything starts containers by their restart policy.
    Recover,
    /// Show or set which bits of packets' marks netmig uses on this host.
    ///
    /// They lead packets of moved connections to their tunnels. No routing rule of others may use the same
    /// bits: `ip rule` shows those that use any (fwmark). The bits can be set as long as this host leads no
    /// connections.
    Marks {
        /// Eight neighbouring bits, such as 8-15; 16-23 unless set.
        #[arg(long, value_name = "FIRST-LAST")]
        bits: Option<MarkBits>,
    },
}

/// Arguments of `invite`.
#[derive(Debug, Args)]
pub struct Invite {
    /// How long the token may be used.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = lifetime)]
    pub expires: Duration,
    /// The token works for one host, which is the default.
    #[arg(long, conflicts_with = "uses")]
    pub once: bool,
    /// How many hosts may join with the token.
    #[arg(
        long, value_name = "HOSTS", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(USES_LIMIT))
    )]
    pub uses: u32,
    /// Where the other host reaches this one; the address of the default route unless given.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub address: Option<Destination>,
}

/// Arguments of `peers`.
#[derive(Debug, Args)]
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
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// Let a host move no more containers here, from its next connection on.
    Remove {
        /// Its name in the list.
        name: Name,
    },
    /// Show or change what a host may move here, from its next migration on. What is given of one option takes the place of
    /// all that was given of it before.
    Allow(Allow),
}

/// Arguments of `peers allow`.
///
/// Each option that is given replaces that permission; the others stay as they are. ServerContext networks,
/// shared namespaces, OCI hooks and the like are never allowed.
#[derive(Clone, Debug, Args)]
pub struct Allow {
    /// The host's name in the list.
    #[arg(value_name = "HOST")]
    pub peer: Name,
    /// Begin with what a new host gets: containers of any name and image that take nothing of this
    /// host.
    #[arg(long)]
    pub reset: bool,
    /// Names that its containers may have, such as web or 'web-*'.
    #[arg(long = "name", value_name = "PATTERN")]
    pub names: Vec<Pattern>,
    /// Images that they may come from: names such as 'docker.io/library/*', or IDs.
    #[arg(long = "image", value_name = "PATTERN")]
    pub images: Vec<Pattern>,
    /// Most memory of one container, such as 2GiB, or any.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<Size>,
    /// Most bytes of one container's files and image, such as 10GiB, or any.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub disk: Option<Size>,
    /// Whether flows of its containers may come and go unencrypted, on a segment that both hosts are on
    /// (migrate --tunnel direct).
    #[arg(long, value_name = "YES|NO", num_args = 0..=1, default_missing_value = "yes",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub direct: Option<bool>,
    /// Whether privileged containers may come, and those without the usual filters.
    #[arg(long, value_name = "YES|NO", num_args = 0..=1, default_missing_value = "yes",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub privileged: Option<bool>,
    /// Whether files of systemd units may come with containers (migrate --unit carry). Such a file can have this host run any
    /// command as root.
    #[arg(long, value_name = "YES|NO", num_args = 0..=1, default_missing_value = "yes",
        value_parser = clap::builder::BoolishValueParser::new())]
    pub units: Option<bool>,
    /// Files and directories of this host that containers may mount, or none.
    #[arg(long = "mount", value_name = "PATH")]
    pub mounts: Vec<PathBuf>,
    /// Devices of this host that containers may use, or none.
    #[arg(long = "device", value_name = "PATH")]
    pub devices: Vec<PathBuf>,
    /// Capabilities that containers may have beyond podman's defaults, or none.
    #[arg(long = "capability", value_name = "NAME")]
    pub capabilities: Vec<String>,
}

/// A limit in bytes; `None` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub Option<u64>);

fn size(text: &str) -> Result<Size, String> {
    match text {
        "any" => Ok(Size(None)),
        text => text.parse::<bytesize::ByteSize>().map(|size| Size(Some(size.0))),
    }
}

/// Returns a time from a second to a year.
fn lifetime(text: &str) -> Result<Duration, String> {
    let year = Duration::from_secs(366 * 24 * 3600);
    humantime::parse_duration(text)
        .ok()
        .filter(|time| (Duration::from_secs(1)..=year).contains(time))
        .ok_or_else(|| "a time such as 10m, 1h or 2days, at most a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_knows_the_guardian() {
        let cli = Cli::parse_from(["agent-server", GUARDIAN, "/j"]);
        assert_eq!(cli.watch, Some("/j".into()));
        assert!(super::Cli::parse_from(["agent-server", super::KEEPER]).keep);
    }

    #[test]
    fn invitations_have_a_bound() {
        assert_eq!(lifetime("90m"), Ok(Duration::from_secs(5400)));
        for text in ["", "0s", "soon", "-1h", "1000years"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("agent-server invite --once --expires 1h --state-dir /s").is_ok());
        assert!(parse("agent-server invite --uses 0").is_err());
        assert!(parse("agent-server invite --uses 3 --once").is_err());
        assert!(parse("agent-server peers remove ../x").is_err());
        assert!(
            parse("agent-server peers allow a --memory 2GiB --name web-* --privileged").is_ok()
        );
        assert!(parse("agent-server peers allow a --memory much").is_err());
        assert!(parse("agent-server peers allow a --name [").is_err());
        assert!(parse("agent-server marks --bits 8-15").is_ok());
        assert!(parse("agent-server marks --bits 8-16").is_err());
    }
}
