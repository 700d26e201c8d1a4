//! Traffic that checks itself: servers for containers and clients for lab hosts. A client prints `ready` on standard
//! error when traffic flows both ways, and one JSON report on standard output at the end.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use testbed::blocked;
use testbed::scenario;
use testbed::traffic::bulk::{self, BulkPlan};
use testbed::traffic::client_report::Direction;
use testbed::traffic::echo::{self, EchoPlan, SIZE_MIN};
use testbed::traffic::packet_capture;
use testbed::traffic::redis_counter::{self, CountPlan};
use testbed::traffic::redis_values::{self, ValuesPlan};
use testbed::traffic::requests::{self, RequestsPlan};
use testbed::traffic::serve::{self, ServePlan};
use testbed::traffic::stop::Stop;
use testbed::traffic::{BULK_PORT, ECHO_PORT};

/// Serves and sends traffic that checks itself
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Serve TCP and UDP echo, bulk transfers and a control line
    Serve(Serve),
    /// Send numbered messages over TCP and check the replies
    TcpEcho(Echo),
    /// Send numbered messages over UDP and check the replies
    UdpEcho(Echo),
    /// Transfer bytes over TCP and check every one of them
    Bulk(Bulk),
    /// Increment a counter in redis over one connection and check every answer
    Count(Count),
    /// Fill redis with random values, read and write them at a steady rate, and check every one of them
    Values(Values),
    /// Send requests to a web server, with a connection for each
    Requests(Requests),
    /// Count the packets that arrive from a server, by the hosts that forwarded them
    Wire {
        /// IPv4 address and port of the server
        server: SocketAddrV4,
    },
    /// Make each of a number of blocking system calls, and print its result
    Blocked {
        /// Seconds after which each call returns
        seconds: u64,
    },
    /// Set up a scenario that a migration has to recognise, and keep it
    Scenario {
        /// Name of the scenario; `options`: sockets with options
        name: String,
    },
    /// Print the counters of a server, and a check of its memory
    Stats {
        /// Address of the bulk and control port
        server: SocketAddr,
    },
}

#[derive(Args)]
struct Serve {
    /// TCP port of the echo service
    #[arg(long, default_value_t = ECHO_PORT)]
    port: u16,
    /// UDP port of the echo service [default: that of TCP]
    #[arg(long)]
    udp_port: Option<u16>,
    /// TCP port of bulk transfers and control
    #[arg(long, default_value_t = BULK_PORT)]
    bulk_port: u16,
    /// Receive buffer of the UDP socket in bytes [default: the kernel's]
    #[arg(long)]
    udp_buffer: Option<usize>,
    /// Mebibytes of memory to fill with a pattern
    #[arg(long, default_value_t = 0)]
    memory: usize,
    /// Look at a page of that memory for each piece that is echoed over TCP, and end the connection if it has changed
    #[arg(long)]
    touch: bool,
    /// File to append a numbered line to at every interval
    #[arg(long)]
    log: Option<PathBuf>,
    /// Milliseconds between two lines of the log
    #[arg(long, default_value_t = 10)]
    log_interval: u64,
}

#[derive(Args)]
struct Until {
    /// End after this many seconds
    #[arg(long)]
    seconds: Option<f64>,
    /// End when standard input is closed
    #[arg(long)]
    until_stdin_closes: bool,
}

#[derive(Args)]
struct Echo {
    /// Address of the echo service
    server: SocketAddr,
    /// Messages a second, over all connections together
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Connections (TCP) or source ports (UDP) that share the rate
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Further TCP connections, idle until one echo at the end
    #[arg(long, default_value_t = 0)]
    idle: u32,
    /// Bytes of a message
    #[arg(long, default_value_t = SIZE_MIN, value_parser = message_size)]
    size: usize,
    /// Seconds to wait at the end for missing replies
    #[arg(long, default_value_t = 5.0)]
    drain: f64,
    /// Report the round-trip time of each message
    #[arg(long)]
    latencies: bool,
    #[command(flatten)]
    until: Until,
}

#[derive(Args)]
struct Bulk {
    /// Address of the bulk service
    server: SocketAddr,
    /// Direction of the transfer
    #[arg(long, value_enum)]
    direction: Direction,
    /// Bytes to transfer; 0: until told to end
    #[arg(long, default_value_t = 0)]
    bytes: u64,
    /// Bytes a second; 0: no limit
    #[arg(long, default_value_t = 0)]
    rate_limit: u64,
    /// Seconds without any progress after which to give up
    #[arg(long, default_value_t = 20)]
    patience: u64,
    #[command(flatten)]
    until: Until,
}

#[derive(Args)]
struct Count {
    /// Address of redis
    server: SocketAddr,
    /// Key of the counter
    #[arg(long, default_value = "counter")]
    key: String,
    /// Seconds without an answer after which to give up
    #[arg(long, default_value_t = 20)]
    patience: u64,
    #[command(flatten)]
    until: Until,
}

#[derive(Args)]
struct Values {
    /// Address of redis
    server: SocketAddr,
    /// Mebibytes of values
    #[arg(long, default_value_t = 16)]
    mebibytes: u32,
    /// Requests a second
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Seconds without an answer after which to give up
    #[arg(long, default_value_t = 60)]
    patience: u64,
    #[command(flatten)]
    until: Until,
}

#[derive(Args)]
struct Requests {
    /// Address of the web server
    server: SocketAddr,
    /// Path to request
    #[arg(long, default_value = "/")]
    path: String,
    /// Number of clients
    #[arg(long, default_value_t = 1)]
    clients: u32,
    /// Time limit in seconds for a connection or an answer
    #[arg(long, default_value_t = 20)]
    patience: u64,
    #[command(flatten)]
    until: Until,
}

fn message_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ SIZE_MIN..=1400) => Ok(size),
        _ => Err(format!("from {SIZE_MIN} to 1400")),
    }
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netmig-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> io::Result<()> {
    match action {
        Action::Serve(args) => serve::serve(
            &ServePlan {
                port: args.port,
                udp_port: args.udp_port.unwrap_or(args.port),
                bulk_port: args.bulk_port,
                udp_buffer: args.udp_buffer,
                memory_mib: args.memory,
                touches_memory: args.touch,
                log: args.log,
                log_interval: Duration::from_millis(args.log_interval.max(1)),
            },
            || println!("ready"),
        ),
        Action::TcpEcho(args) => {
            let (plan, stop) = args.plan()?;
            print(&echo::tcp(&plan, &stop, ready)?)
        }
        Action::UdpEcho(args) => {
            let (plan, stop) = args.plan()?;
            print(&echo::udp(&plan, &stop, ready)?)
        }
        Action::Bulk(args) => {
            let stop = Stop::new(args.until.seconds, args.until.until_stdin_closes)?;
            let plan = BulkPlan {
                server: args.server,
                direction: args.direction,
                bytes: args.bytes,
                rate_limit: args.rate_limit,
                patience: Duration::from_secs(args.patience),
            };
            print(&bulk::run(&plan, &stop, ready)?)
        }
        Action::Count(args) => {
            let stop = Stop::new(args.until.seconds, args.until.until_stdin_closes)?;
            let plan = CountPlan {
                server: args.server,
                key: args.key,
                patience: Duration::from_secs(args.patience.max(1)),
            };
            print(&redis_counter::run(&plan, &stop, ready)?)
        }
        Action::Values(args) => {
            let stop = Stop::new(args.until.seconds, args.until.until_stdin_closes)?;
            let plan = ValuesPlan {
                server: args.server,
                mebibytes: args.mebibytes,
                rate: args.rate.max(1.0),
                patience: Duration::from_secs(args.patience.max(1)),
            };
            print(&redis_values::run(&plan, &stop, ready)?)
        }
        Action::Requests(args) => {
            let stop = Stop::new(args.until.seconds, args.until.until_stdin_closes)?;
            let plan = RequestsPlan {
                server: args.server,
                path: args.path,
                clients: args.clients,
                patience: Duration::from_secs(args.patience.max(1)),
            };
            print(&requests::run(&plan, &stop, ready)?)
        }
        Action::Scenario { name } if name == "options" => scenario::socket_options::hold(),
        Action::Scenario { name } => scenario::hold(&name),
        Action::Wire { server } => {
            print(&packet_capture::listen(server, &Stop::new(None, true)?, ready)?)
        }
        Action::Blocked { seconds } => blocked::run(Duration::from_secs(seconds), ready),
        Action::Stats { server } => print(&bulk::stats(server)?),
    }
}

impl Echo {
    fn plan(self) -> io::Result<(EchoPlan, Stop)> {
        let stop = Stop::new(self.until.seconds, self.until.until_stdin_closes)?;
        let plan = EchoPlan {
            server: self.server,
            rate: self.rate,
            connections: self.connections,
            idle: self.idle,
            size: self.size,
            drain: Duration::from_secs_f64(self.drain.max(0.0)),
            record_latencies: self.latencies,
        };
        Ok((plan, stop))
    }
}

fn ready() {
    eprintln!("ready");
}

fn print(report: &impl Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
