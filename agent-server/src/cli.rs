//! The command line. Parsing it has no side effects.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use agent_core::directories;
use agent_core::wire::DEFAULT_PORT;
use clap::Parser;

/// The option by which the guardian of an arrival is started; its journal follows.
pub const GUARDIAN: &str = "--watch";

/// The option that makes this program the keeper of the host's flows.
pub const KEEPER: &str = "--keep";

/// Receives running containers from other hosts, until told to stop.
///
/// SIGTERM or Ctrl-C stop it: no new migration begins, and those under way finish or turn back.
#[derive(Debug, Parser)]
#[command(name = "agent-server", version)]
pub struct Cli {
    /// Address to listen on; all addresses, IPv4 and IPv6, unless given.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub listen: IpAddr,
    /// TCP port to listen on.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    pub port: u16,
    /// Directory of identity, peers and journals.
    #[arg(long, value_name = "DIR", default_value = directories::STATE)]
    pub state_dir: PathBuf,
    /// Directory of sockets and images in memory.
    #[arg(long, value_name = "DIR", default_value = directories::RUN)]
    pub run_dir: PathBuf,
    /// Wait until the process that owns this journal has ended, settle its arrival, and end. Every
    /// arrival has such a guardian.
    #[arg(long, hide = true, value_name = "JOURNAL")]
    pub watch: Option<PathBuf>,
    /// Keep the host's flows: put rules back that were removed, and remove what no flow needs. Every
    /// host with a tunnel has such a keeper.
    #[arg(long, hide = true)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_knows_the_guardian() {
        let cli = super::Cli::parse_from(["agent-server", super::GUARDIAN, "/j"]);
        assert_eq!(cli.watch, Some("/j".into()));
        assert!(super::Cli::parse_from(["agent-server", super::KEEPER]).keep);
    }
}
