//! The arguments of `migrate`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use migration::request::{
    self, MemoryMode, NonConverging, Publish, Request, UnitPolicy, VolumePolicies, VolumePolicy,
};
use protocol::wire::{BulkOptions, Compression, MAX_STREAMS};
use state::peer_address::Destination;

use super::container_name;

/// The slowest rate that may be asked for, in bytes a second. A slower peer would look like one that hangs.
const SLOWEST: u64 = 64 << 10;
/// The fastest rate that may be asked for, in bytes a second. No link carries more, so that it would not be a limit.
const FASTEST: u64 = 100_000_000_000;

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
    /// What becomes of its volumes, or of that with this name: copied to a volume of the same name at the destination, or a
    /// reason not to move it; may be repeated.
    #[arg(long, value_name = "[NAME=]copy|refuse", value_parser = volume)]
    pub volumes: Vec<Volume>,
    /// What becomes of the systemd unit that runs it, such as one of Quadlet: the destination's unit of that name goes on with the
    /// container (found), and is made from this host's files if the destination has none (carry).
    #[arg(long, value_enum, default_value = "found", value_name = "POLICY")]
    pub unit: Unit,
    /// How memory gets to the destination: in rounds while the container runs (pre-copy), while it is frozen (stop), or after
    /// the decision (post-copy).
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    pub memory: Memory,
    /// How long memory may take, in seconds, that goes over once the container is frozen. Rounds go on until it takes no longer,
    /// or until they do not get smaller any more.
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    pub downtime_limit: Duration,
    /// What follows if the container writes its memory too fast for that.
    #[arg(long, value_enum, default_value = "go-on", value_name = "WHAT")]
    pub non_converging: Slow,
    /// Send the image, the first pass over files and the rounds of memory no faster than so many bytes a second, such
    /// as 50MB or 8MiB.
    /// What is sent during the interruption has no limit.
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub bandwidth: Option<NonZeroU64>,
    /// Whether the image, the first pass over files and the rounds of memory are compressed.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub compress: Compress,
    /// Send the image, the first pass over files and the rounds of memory over so many connections, where one does not
    /// fill the link.
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = streams)]
    pub streams: NonZeroUsize,
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
            volumes: VolumePolicies::new(
                options.volumes.into_iter().map(|Volume { name, policy }| (name, policy)),
            ),
            unit: match options.unit {
                Unit::Found => UnitPolicy::Found,
                Unit::Carry => UnitPolicy::Carry,
                Unit::Refuse => UnitPolicy::Refuse,
            },
            memory: options.memory.into(),
            downtime_limit: options.downtime_limit,
            non_converging: options.non_converging.into(),
            bulk: BulkOptions {
                bandwidth: options.bandwidth,
                compression: options.compress.into(),
            },
            streams: options.streams,
        };
        Request { container, destination, options }
    }
}

/// What becomes of volumes: of all, or of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    name: Option<String>,
    policy: VolumePolicy,
}

/// What becomes of the systemd unit that runs the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// The destination's unit of that name goes on with it
    Found,
    /// The same; a destination that has none gets this host's files, if it allows that
    Carry,
    /// A reason not to move it
    Refuse,
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

/// How memory gets to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// By pre-copy where the container has 64 MiB or more and both hosts can, otherwise by stop.
    Auto,
    /// While the container is frozen.
    Stop,
    /// In rounds while the container runs. The move is refused where that cannot be.
    PreCopy,
    /// After the decision, while the container runs at the destination: pages that it needs at once, the others in order. This
    /// host is needed until all have arrived: if it dies before, the container is lost.
    PostCopy,
    /// Once while the container runs here, and what it writes meanwhile as by post-copy.
    Hybrid,
}

impl From<Memory> for MemoryMode {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Auto => Self::Auto,
            Memory::Stop => Self::Stop,
            Memory::PreCopy => Self::PreCopy,
            Memory::PostCopy => Self::PostCopy,
            Memory::Hybrid => Self::Hybrid,
        }
    }
}

/// What follows if a container writes its memory faster than it goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Slow {
    /// The rest goes over once the container is frozen, however long that takes.
    GoOn,
    /// The move goes back.
    GoBack,
    /// The container gets less and less of the processors until the rest takes no longer than --downtime-limit, down to a tenth
    /// of what it used. The move goes back if that does not help. Refused where the kernel cannot limit it.
    Throttle,
    /// The rest goes over after the decision, as by --memory post-copy.
    PostCopy,
}

impl From<Slow> for NonConverging {
    fn from(slow: Slow) -> Self {
        match slow {
            Slow::GoOn => Self::GoOn,
            Slow::GoBack => Self::GoBack,
            Slow::Throttle => Self::Throttle,
            Slow::PostCopy => Self::PostCopy,
        }
    }
}

/// Whether bulk data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// While the link is slower than the compressor.
    Auto,
    /// Always, by zstd.
    Zstd,
    /// Never.
    None,
}

impl From<Compress> for Compression {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::Auto => Self::Auto,
            Compress::Zstd => Self::Zstd,
            Compress::None => Self::None,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| (0.05..=3600.0).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0.05 to 3600".to_owned())
}

/// Reads a number of bytes a second.
fn bandwidth(text: &str) -> Result<NonZeroU64, String> {
    text.parse::<ByteSize>()
        .ok()
        .filter(|rate| (SLOWEST..=FASTEST).contains(&rate.0))
        .and_then(|rate| NonZeroU64::new(rate.0))
        .ok_or_else(|| {
            "a number of bytes a second such as 50MB or 8MiB, from 64KiB to 100GB; leave the option out for no limit"
                .to_owned()
        })
}

/// Reads what becomes of volumes.
fn volume(text: &str) -> Result<Volume, String> {
    let (name, word) = match text.rsplit_once('=') {
        Some((name, word)) => (Some(container_name(name)?), word),
        None => (None, text),
    };
    let policy = match word {
        "copy" => VolumePolicy::Copy,
        "refuse" => VolumePolicy::Refuse,
        _ => return Err("copy or refuse, for one volume with its name before it: data=copy".into()),
    };
    Ok(Volume { name, policy })
}

/// Reads a number of connections.
fn streams(text: &str) -> Result<NonZeroUsize, String> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|count| count.get() <= MAX_STREAMS)
        .ok_or_else(|| format!("a number from 1 to {MAX_STREAMS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruptions_out_of_range_are_refused() {
        for text in ["0", "-1", "nan", "inf", "1e9", "", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn volumes_are_named_before_what_becomes_of_them() {
        let of = |name: Option<&str>, policy| Ok(Volume { name: name.map(str::to_owned), policy });
        assert_eq!(volume("copy"), of(None, VolumePolicy::Copy));
        assert_eq!(volume("data=refuse"), of(Some("data"), VolumePolicy::Refuse));
        for text in ["", "move", "data", "=copy", "data=", "../x=copy"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_a_second() {
        assert_eq!(bandwidth("8MiB"), Ok(NonZeroU64::new(8 << 20).unwrap()));
        assert_eq!(bandwidth("50MB"), Ok(NonZeroU64::new(50_000_000).unwrap()));
        assert_eq!(bandwidth("100GB"), Ok(NonZeroU64::new(FASTEST).unwrap()));
        for text in
            ["", "0", "-1", "1000", "fast", "1e99", "50Mbit", "101GB", "9TB", "16EiB", "99999999TB"]
        {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }
}
