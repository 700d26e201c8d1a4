//! The process that keeps a host's flows while no agent is at work.
//!
//! One for each host, started beside any agent that makes a tunnel. It listens to the kernel and
//!
//! * puts netmig's rules back at once when somebody has removed them (a reload of the firewall),
//!   owning a table that makes flows live through it meanwhile ([`netmig::table::Guard`]);
//! * opens chains of others again that were [opened](crate::opened_firewall) for flows and loaded anew;
//! * has new connections that other hosts [forward](crate::port_forward) here follow a container that was started
//!   again with another address;
//! * makes a tunnel again whose `wireguard-go` was killed (`userspace_tunnels`);
//! * keeps UDP flows from being forgotten while a peer cannot be reached (`udp_keepalive`);
//! * removes rules that count packets of flows and that a dead process has left ([`crate::flow_counters`]);
//! * removes the tunnel to a peer, with all that belongs to it, when the last flow led there has
//!   ended and no new ones are [forwarded](crate::port_forward); and the names of containers that no flow
//!   belongs to any more.
//!
//! It ends when this host has no tunnel any more. Flows do not need it: if it is killed they go on,
//! and the next agent starts it again.

pub mod single_instance;
mod udp_keepalive;
mod userspace_tunnels;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use engine::Engine;
use netmig::events::{Events, Seen};
use netmig::peer_number::PeerNumber;
use netmig::table::{Guard, Table};
use netmig::{hold, routing, tunnel};
use nix::unistd::setsid;
use tokio::process::Command;

use crate::flow_counters;
use crate::moved_containers;
use crate::opened_firewall;
use crate::peer_numbers;
use crate::port_forward;
use crate::steering_lock::SteeringLock;
use crate::tunnels;
use single_instance::{LOCK, is_at_work, lock};
use state::cause::{Cause, chain};
use state::directories::Directories;
use udp_keepalive::UdpKeepalive;
use userspace_tunnels::UserspaceTunnels;

/// The command, or option, by which both agents' programs become the reconciler.
pub const COMMAND: &str = "keep";
/// What it has to say goes here.
const LOG: &str = "keeper.log";
/// How long it waits after a flow's end: several mostly end together.
const SETTLE: Duration = Duration::from_millis(500);
/// It looks at everything this often even if it hears nothing: at least twice while an unanswered UDP flow
/// is remembered (thirty seconds), so that a cut way is known in time.
const LOOK: Duration = Duration::from_secs(13);
/// Looking for the flows of a peer may take this part of its time, where flows end all the time.
const SHARE: u32 = 20;

/// Starts the running program once more as the reconciler, unless there is one; `argument` makes it one. The tokio
/// runtime in which this is called reaps it.
///
/// # Errors
/// The lock file cannot be used, or the program cannot be started.
pub fn start(directories: &Directories, argument: &str) -> io::Result<()> {
    if is_at_work(directories)? {
        return Ok(());
    }
    Command::new("/proc/self/exe")
        .arg("--state-dir")
        .arg(&directories.state)
        .arg("--run-dir")
        .arg(&directories.run)
        .arg(argument)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// Reconciles until there is nothing to keep; ends at once if there is another one.
///
/// # Errors
/// When the kernel cannot be listened to.
pub async fn run(directories: &Directories, engine: &dyn Engine) -> Result<(), Cause> {
    // Of its own session: neither Ctrl-C nor the end of the terminal is meant for it.
    setsid()?;
    let Some(_alone) = lock(directories)? else { return Ok(()) };
    let mut reconciler = Reconciler {
        directories,
        engine,
        events: Events::open()?,
        guard: None,
        tunnels: UserspaceTunnels::default(),
        memory: UdpKeepalive::default(),
    };
    reconciler.keep().await
}

struct Reconciler<'a> {
    directories: &'a Directories,
    engine: &'a dyn Engine,
    events: Events,
    /// The table, and the peers that it has rules for.
    guard: Option<(Guard, Vec<PeerNumber>)>,
    tunnels: UserspaceTunnels,
    memory: UdpKeepalive,
}

impl Reconciler<'_> {
    async fn keep(&mut self) -> Result<(), Cause> {
        let mut due = Instant::now() + LOOK;
        // Not before, whatever ends: where flows end all the time, looking must not take all of it.
        let mut rested = Instant::now();
        // A container may have been started again while there was no reconciler.
        let mut follows = Some(Instant::now());
        let mut seen = Seen { tunnel_changed: true, ..Seen::default() };
        loop {
            if seen.concerns_netmig() || Instant::now() >= due {
                match self.repair(seen.tunnel_changed).await {
                    Ok(true) => {}
                    Ok(false) => due = Instant::now(),
                    Err(e) => self.note(&e),
                }
            }
            let now = Instant::now();
            if follows.is_some_and(|at| now >= at) || now >= due {
                follows = None;
                if let Err(e) = self.follow().await {
                    self.note(&e);
                }
            }
            if now >= due {
                match self.sweep().await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(e) => self.note(&e),
                }
                rested = Instant::now() + (now.elapsed() * SHARE).min(LOOK);
                due = Instant::now() + LOOK;
            }
            let next = follows.map_or(due, |at| at.min(due));
            seen = self.events.wait(next.saturating_duration_since(Instant::now()))?;
            if seen.link_changed {
                // The engine writes down what it has made after it has made it.
                follows = Some(Instant::now() + SETTLE);
            }
            if seen.flow_ended {
                due = due.min((Instant::now() + SETTLE).max(rested));
            }
        }
    }

    /// Has new connections follow containers that were started again.
    async fn follow(&self) -> Result<(), Cause> {
        let addresses = async |id: &str| {
            // One that was removed has none. Saying so at every look would fill the log.
            let Ok(described) = self.engine.description(id).await else { return Vec::new() };
            let networks = described.description.connectivity.networks;
            networks.iter().flat_map(|network| &network.addresses).map(|one| one.ip).collect()
        };
        for name in port_forward::follow(self.directories, addresses).await? {
            self.note_line(&format!("new connections for {name} lead to its new address"));
        }
        Ok(())
    }

    /// Puts back what is missing for every peer to which there is a tunnel; `false` if there is none.
    /// Changes nothing where nothing is missing.
    async fn repair(&mut self, tunnel_changed: bool) -> Result<bool, Cause> {
        let _lock = SteeringLock::take(&self.directories.run).await?;
        let mut peers = tunnel::list().await?;
        let made = self.tunnels.revive(self.directories, &peers).await?;
        for peer in made {
            self.note_line(&format!("made the tunnel {} again", peer.interface()));
            peers.push(peer);
        }
        peers.sort_unstable();
        if peers.is_empty() {
            return Ok(false);
        }
        self.tunnels.learn(&peers, tunnel_changed).await?;
        let mut table = Table::open()?;
        table.install()?;
        for peer in &peers {
            table.steer(*peer)?;
            if let Some(sender) = tunnel::direct::hardware_address(*peer).await? {
                table.admit_sender(*peer, sender)?;
            }
            routing::install(*peer).await?;
        }
        for carried in moved_containers::all(self.directories)? {
            if !carried.exchange.is_empty() {
                carried.apply()?;
            }
        }
        for note in port_forward::all(self.directories)? {
            // Without its tunnel there is nowhere to lead to.
            let number = peer_numbers::find_number(&self.directories.state, note.host)?;
            if number.is_some_and(|peer| peers.contains(&peer)) {
                note.apply(&self.directories.state)?;
            }
        }
        let opened = opened_firewall::reopen(self.directories, &peers)?;
        if opened > 0 {
            self.note_line(&format!("opened {opened} chains of others again"));
        }
        self.protect(peers)?;
        Ok(true)
    }

    /// Makes the guard table fit the peers.
    fn protect(&mut self, peers: Vec<PeerNumber>) -> Result<(), Cause> {
        let (guard, protected) = match &mut self.guard {
            Some(guard) => guard,
            // To register its chains would drop what is held.
            None if hold::any()? => return Ok(()),
            None => self.guard.insert((Guard::open()?, Vec::new())),
        };
        if *protected != peers {
            // Where tables have no owners the rules are put back after a flush, and that is all.
            guard.protect(&peers)?;
            *protected = peers;
        }
        Ok(())
    }

    /// Removes what no flow needs any more; `true` if nothing is left to keep.
    async fn sweep(&mut self) -> Result<bool, Cause> {
        // Rules would keep the table.
        let is_counted = flow_counters::sweep(self.directories)?;
        moved_containers::forget_ended(self.directories, None).await?;
        for peer in tunnel::list().await? {
            tunnels::release(self.directories, peer, None).await?;
        }
        let peers = tunnel::list().await?;
        self.memory.keep(&peers).await?;
        // Whoever makes a tunnel now starts another reconciler after this lock is free.
        let _lock = SteeringLock::take(&self.directories.run).await?;
        if is_counted || !tunnel::list().await?.is_empty() || hold::any()? {
            return Ok(false);
        }
        // Rules of a container that was forgotten after its last tunnel have kept the table until now.
        let mut table = Table::open()?;
        if table.read()?.rules.is_empty() {
            table.remove()?;
        }
        if let Some((mut guard, _)) = self.guard.take() {
            guard.remove()?;
        }
        // So that an agent which waits for the lock finds no reconciler.
        fs::remove_file(self.directories.run.join(LOCK))?;
        Ok(true)
    }

    /// Tells whoever reads the log; what failed is tried again at the next look.
    fn note(&self, error: &Cause) {
        self.note_line(&chain(error.as_ref()).to_string());
    }

    fn note_line(&self, line: &str) {
        let path = self.directories.run.join(LOG);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        // Nothing is left to be told if that fails as well.
        let _ = log.and_then(|mut log| writeln!(log, "{line}"));
    }
}
