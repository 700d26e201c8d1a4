//! The state of the model: three hosts, one container, up to two migrations of it, and the network.

use std::collections::BTreeSet;

use ownership::destination::Order;
use ownership::source::{Answer, Departure};

use crate::pages::Pages;

/// A host. The stranger is paired with all others, and takes part in no migration of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    A,
    B,
    C,
    Stranger,
}

impl Host {
    /// Those that may have the container.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];
}

/// A migration, by its place in [`State::moves`].
pub type Migration = usize;

/// Whether processes of the container run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Run {
    /// They run, and can be heard.
    Audible,
    /// They run, cut off.
    CutOff,
    /// They are frozen and cut off.
    Frozen,
    /// There are none; what the engine needs to start it is there.
    Stopped,
}

/// A copy that an engine does not have yet. Its shim waits, and ends it unless it is told that it is to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Staged {
    pub run: Run,
    pub stays: bool,
}

impl Staged {
    /// Returns whether it has processes.
    pub fn is_alive(self) -> bool {
        self.run != Run::Stopped
    }

    /// What is left when its processes have ended.
    pub const DEAD: Self = Self { run: Run::Stopped, stays: false };
}

/// The container as an engine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    pub run: Run,
    /// Which of this host's starts and arrivals of the container this is.
    pub incarnation: u8,
}

/// The journal of a departure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Departed {
    pub reached: Departure,
    /// The processes that it is about.
    pub incarnation: u8,
}

/// What the source asks the destination for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// To make a copy; everything that it needs comes with it.
    Offer,
    Resume,
    Commit,
    Finish,
    /// To take the pages of memory that are missing.
    Pages,
    /// The anchor, to lead the container's flows to the destination.
    Rehome,
}

/// The process at work on a departure: an agent, its guardian, or `recover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mover {
    /// The migration has not begun.
    Idle,
    /// The first record is on disk.
    Begun,
    /// The record of the interruption is on disk.
    Interrupting,
    /// About to ask; before an offer the original is frozen and cut off by now.
    ToAsk(Question),
    /// Waits for the answer.
    Asking(Question),
    /// Has heard that the copy is prepared.
    Ready,
    /// Has heard that the destination's engine runs the container.
    Finished,
    /// Has heard that the destination lacks no page.
    PagesSent,
    /// The record of that is on disk; the anchor leads the flows to the destination.
    Removing,
    /// The original is gone.
    Removed,
    /// About to let the original run again.
    Undoing,
    /// The original runs.
    Undone,
    /// Has told a person that the move is in doubt, and has ended.
    InDoubt,
    /// Has died or ended.
    Gone,
}

/// The journal of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arrived {
    pub activated: bool,
}

/// What a destination remembers of an arrival whose journal has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remembered {
    Outstanding,
    HandedOver,
    Lost,
}

/// The process at work on an arrival: agent-server, or a guardian. `answer`: a source waits to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keeper {
    Nobody,
    /// The first record is on disk.
    Restoring {
        answer: bool,
    },
    /// The copy waits for its source's decision, and its lease runs.
    Waiting,
    /// The record of the activation is on disk; the copy is told to stay, then it runs.
    Activating {
        answer: bool,
    },
    /// The copy is audible; its shim still waits.
    Active,
    /// The engine has the container; the record of that is to be written.
    HandedOver,
    /// About to remove the copy, because of an order or by itself.
    Removing {
        order: Option<Order>,
        answer: bool,
    },
    /// About to note that the copy is lost.
    NotingLoss,
}

/// One migration: the process, the journal and the memory of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Move {
    pub mover: Mover,
    pub departure: Option<Departed>,
    /// The anchor is ready for the order to lead flows.
    pub anchored: bool,

    pub keeper: Keeper,
    pub arrival: Option<Arrived>,
    /// The copy, until the engine has it.
    pub copy: Option<Staged>,
    pub memory: Option<Remembered>,
    /// The destination keeps the tunnel to the source for flows of third hosts.
    pub tunnel: bool,
    /// The memory of the copy.
    pub pages: Pages,

    // Nobody in the model decides by what follows.
    /// The commit record was written.
    pub decided: bool,
    /// The copy was audible.
    pub heard: bool,
    /// The destination's engine had the container.
    pub handed_over: bool,
    /// All of its memory was at the destination.
    pub all_pages: bool,
    /// A person ordered that the original run again.
    pub withdrawn: bool,
}

/// The key of the tunnel between the anchor and a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    True,
    Forged,
}

/// The anchor of flows of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Anchor {
    pub leads_to: Host,
    pub key: Option<Key>,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    Offer,
    Order(Order),
    Finish,
    /// The original's memory cannot be had any more.
    MemoryGone,
    Answer(Answer),
    /// To the anchor.
    Rehome,
}

/// Something on its way. A connection has one question or one answer on its way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    pub migration: Migration,
    pub body: Body,
    /// Nobody listens on its connection any more: it may come at any time, and is not answered.
    pub stale: bool,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// A process dies.
    pub crashes: u8,
    /// A connection breaks, with what is on its way lost or late.
    pub breaks: u8,
    /// A step fails, or a copy dies.
    pub failures: u8,
    /// A host starts anew.
    pub reboots: u8,
    /// The stranger says something.
    pub hostile: u8,
}

/// What has gone against a promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broken {
    pub thawed_after_heard: bool,
    pub removed_early: bool,
    pub removed_other: bool,
    pub ended_heard: bool,
    pub denied_falsely: bool,
    pub stranger_obeyed: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    engines: [Option<Container>; 3],
    incarnations: [u8; 3],
    pub moves: [Move; 2],
    pub anchor: Anchor,
    pub packets: BTreeSet<Packet>,
    pub budget: Budget,
    pub broken: Broken,
}

impl State {
    /// The container runs on A, and nothing is at work on it.
    pub fn start(budget: Budget, key: Option<Key>) -> Self {
        let nothing = Move {
            mover: Mover::Idle,
            departure: None,
            anchored: false,
            keeper: Keeper::Nobody,
            arrival: None,
            copy: None,
            memory: None,
            tunnel: false,
            pages: Pages::Here,
            decided: false,
            heard: false,
            handed_over: false,
            all_pages: false,
            withdrawn: false,
        };
        let mut state = Self {
            engines: [None; 3],
            incarnations: [0; 3],
            moves: [nothing; 2],
            anchor: Anchor { leads_to: Host::A, key },
            packets: BTreeSet::new(),
            budget,
            broken: Broken::default(),
        };
        state.start_container(Host::A);
        state
    }

    /// What an engine has under the container's ID.
    pub fn engine(&self, host: Host) -> Option<Container> {
        self.engines[host as usize]
    }

    /// The same, to be changed.
    pub fn engine_mut(&mut self, host: Host) -> &mut Option<Container> {
        &mut self.engines[host as usize]
    }

    /// The container runs on a host that did not run it before.
    pub fn start_container(&mut self, host: Host) {
        let incarnation = &mut self.incarnations[host as usize];
        *incarnation += 1;
        let incarnation = *incarnation;
        self.engines[host as usize] = Some(Container { run: Run::Audible, incarnation });
    }

    /// How many copies of the container can be heard.
    pub fn audible(&self) -> usize {
        let engines = self.engines.iter().flatten().map(|container| container.run);
        let copies = self.moves.iter().filter_map(|m| m.copy).map(|copy| copy.run);
        engines.chain(copies).filter(|run| *run == Run::Audible).count()
    }

    /// How many engines have the container.
    pub fn engines_with_it(&self) -> usize {
        self.engines.iter().flatten().count()
    }

    /// Puts something on its way.
    pub fn send(&mut self, migration: Migration, body: Body, stale: bool) {
        self.packets.insert(Packet { migration, body, stale });
    }

    /// The source listens no more on the connection of a migration, or has died.
    pub fn disconnect(&mut self, migration: Migration) {
        let of_this = |p: &Packet| p.migration == migration;
        let packets = std::mem::take(&mut self.packets);
        let (ours, others): (Vec<_>, Vec<_>) = packets.into_iter().partition(of_this);
        self.packets.extend(others);
        let questions = ours.into_iter().filter(|p| !matches!(p.body, Body::Answer(_)));
        self.packets.extend(questions.map(|p| Packet { stale: true, ..p }));
        match &mut self.moves[migration].keeper {
            Keeper::Restoring { answer }
            | Keeper::Activating { answer }
            | Keeper::Removing { answer, .. } => *answer = false,
            _ => {}
        }
    }
}
