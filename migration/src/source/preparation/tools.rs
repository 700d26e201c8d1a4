//! What the interruption uses. Everything of it is made ready before.

use checkpoint::criu::ConfigDir;
use checkpoint::images::ImageDir;
use netmig::flow::Conntrack;
use netmig::hold::PreparedHold;
use netmig::sockets::{Backlogs, TcpSockets, UdpQueues};
use state::interrupt_slot::Turn;

use crate::source::bridged_flows::Besides;
use crate::source::container_log::CarriedLog;
use crate::source::landlock::LandlockWatch;
use crate::source::memory_rounds::MemoryRounds;
use crate::source::prepared_dump::PreparedDump;
use crate::source::trees::CarriedTree;

/// What the interruption uses, made ready before it.
pub struct Tools {
    /// The right to interrupt it now.
    pub turn: Turn,
    /// The hold.
    pub hold: PreparedHold,
    /// The directory that the dump goes into.
    pub images: ImageDir,
    /// CRIU's options.
    pub criu_config: ConfigDir,
    /// The dump, in front of CRIU.
    pub dump: PreparedDump,
    /// The container's datagram queues.
    pub queues: UdpQueues,
    /// What the container's listeners have not accepted.
    pub backlogs: Backlogs,
    /// The container's connections.
    pub sockets: TcpSockets,
    /// Connections with other containers of its network.
    pub besides: Besides,
    /// This host's conntrack table.
    pub conntrack: Conntrack,
    /// Trees whose first pass has been sent.
    pub trees: Vec<CarriedTree>,
    /// The log, whose first pass has been sent.
    pub log: Option<CarriedLog>,
    /// Memory that has been sent, but for the rest.
    pub memory: Option<MemoryRounds>,
    /// Notices processes that restrict themselves.
    pub landlock: LandlockWatch,
}

/// Something that the interruption needs was not made ready.
#[derive(Debug, thiserror::Error)]
#[error("the migration was not prepared")]
pub struct NotPrepared;

/// What `prepare` has made ready so far.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) hold: Option<PreparedHold>,
    pub(super) images: Option<ImageDir>,
    pub(super) criu_config: Option<ConfigDir>,
    pub(super) queues: Option<UdpQueues>,
    pub(super) backlogs: Option<Backlogs>,
    pub(super) sockets: Option<TcpSockets>,
    pub(super) besides: Option<Besides>,
    pub(super) conntrack: Option<Conntrack>,
    pub(super) trees: Vec<CarriedTree>,
    pub(super) volumes: Vec<CarriedTree>,
    pub(super) log: Option<CarriedLog>,
    pub(super) memory: Option<MemoryRounds>,
    pub(super) turn: Option<Turn>,
    pub(super) dump: Option<PreparedDump>,
    pub(super) landlock: LandlockWatch,
}

impl Ready {
    /// Hands out everything for the interruption.
    pub(super) fn take(&mut self) -> Result<Tools, NotPrepared> {
        let (
            Some(turn),
            Some(hold),
            Some(images),
            Some(criu_config),
            Some(queues),
            Some(backlogs),
            Some(sockets),
            Some(besides),
            Some(conntrack),
            Some(dump),
        ) = (
            self.turn.take(),
            self.hold.take(),
            self.images.take(),
            self.criu_config.take(),
            self.queues.take(),
            self.backlogs.take(),
            self.sockets.take(),
            self.besides.take(),
            self.conntrack.take(),
            self.dump.take(),
        )
        else {
            return Err(NotPrepared);
        };
        let (mut trees, log) = (std::mem::take(&mut self.trees), self.log.take());
        trees.append(&mut self.volumes);
        let memory = self.memory.take();
        Ok(Tools {
            turn,
            hold,
            images,
            criu_config,
            dump,
            queues,
            backlogs,
            sockets,
            besides,
            conntrack,
            trees,
            log,
            memory,
            landlock: std::mem::take(&mut self.landlock),
        })
    }
}
