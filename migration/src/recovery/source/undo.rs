//! Undoing a migration on the source: the original runs on, this host's kernel is as it was.

use std::time::{Duration, Instant};

use checkpoint::images::ImageDir;
use checkpoint::procfs;
use netmig::bridge_port::{self, Port};
use netmig::flow::{Conntrack, Direction, Flow, TunnelNat};
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::sockets::receive_buffers;
use netmig::table::Table;
use ownership::source::Answer;
use state::cause::{Cause, chain};
use state::journal::Process;
use steering::moved_containers::{self, MovedContainer};
use steering::{opened_firewall, port_forward, tunnels};

use ownership::source::Departure;

use super::{Departed, Event};
use crate::context::Context;
use crate::source::{destination_rpc, service};

/// How long a dump that is at work may take to end by itself.
const DUMP_END: Duration = Duration::from_secs(60);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// CRIU does not end.
#[derive(Debug, thiserror::Error)]
#[error("the dump is still at work; run recover again when it has ended")]
struct StillDumping;

/// The original's control group is not found.
#[derive(Debug, thiserror::Error)]
#[error("its engine runs it, but its process {0} is in no control group of its own")]
struct Hidden(i32);

/// Lets the destination drop its part at once, if it can be reached. It does so by itself otherwise:
/// it has lost its connection, and a prepared copy has a lease.
pub async fn abort(context: &Context, departed: &Departed) {
    match destination_rpc::abort(context, &departed.peer).await {
        Ok(()) => context.tell(Event::CopyRemoved),
        Err(e) if e.answer() == Answer::NoCopy => {}
        Err(e) => context.tell(Event::CopyExpires { reason: chain(&e) }),
    }
}

/// Undoes everything on this host; gives what could not be undone.
pub async fn undo(context: &Context, departed: &Departed) -> Vec<String> {
    let mut left = Vec::new();
    let mut note = |what: &'static str, result: Result<bool, Cause>| match result {
        Ok(true) => context.tell(Event::Undone(what)),
        Ok(false) => {}
        Err(e) => left.push(format!("{what}: {}", chain(e.as_ref()))),
    };
    if departed.reached >= Departure::Interrupted {
        let moved = moved_since(context, departed);
        let is_of_this = matches!(moved, Ok(false));
        match moved {
            Ok(false) => {
                let led = departed.number.map_or(Ok(false), |n| lead_back(departed, n));
                note("flows lead to this host", led);
                let nothing = TunnelNat::default();
                let (id, name) = (&departed.container, &departed.name);
                let carried = MovedContainer::new(id, name, &departed.addresses, nothing);
                let plain = carried.note_and_apply(&context.directories).await;
                note("addresses are what they are", plain.map(|()| false));
            }
            moved => note("flows stay as a later move has led them", moved),
        }
        let running = run_on(context, departed).await;
        if running.as_ref().is_err_and(|e| e.is::<StillDumping>()) {
            // Its images, and all else, must stay as they are until CRIU has ended.
            note("the original runs on", running);
            return left;
        }
        note("the original runs on", running);
        if is_of_this {
            note("its network is what it was", rejoin(context, departed).await);
        }
    }
    if let Some(unit) = &departed.unit {
        note("its unit is what it was", service::put_back(unit).await.map(|()| true));
    }
    note("nothing is held", unhold(departed));
    note("images removed", tidy(context, departed));
    let of_this = |note: &port_forward::Note| note.migration == departed.migration();
    note(
        "nothing is forwarded",
        port_forward::remove(&context.directories, of_this).await.map(|_| false),
    );
    let closed = opened_firewall::withdraw(&context.directories, departed.migration()).await;
    note("chains of others are as they were", closed.map(|()| false));
    let forgotten =
        moved_containers::forget_ended(&context.directories, Some(departed.migration())).await;
    left.extend(forgotten.err().map(|e| chain(e.as_ref())));
    if left.is_empty()
        && let Some(number) = departed.number
    {
        let released =
            tunnels::release(&context.directories, number, Some(departed.migration())).await;
        left.extend(released.err().map(|e| chain(e.as_ref())));
    }
    left
}

/// Returns whether another migration has moved the container away since, so that its flows lead where they should.
fn moved_since(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    if departed.original().is_some() {
        return Ok(false);
    }
    let carried = moved_containers::find(&context.directories, &departed.container)?;
    Ok(carried.is_some_and(|note| note.moved > departed.began))
}

/// Clears the marks that lead the container's flows to the peer.
fn lead_back(departed: &Departed, peer: PeerNumber) -> Result<bool, Cause> {
    let mut conntrack = Conntrack::open()?;
    let flows = conntrack.dump(&departed.addresses)?;
    let mut any = false;
    for direction in [Direction::Inbound, Direction::Outbound] {
        let (value, mask) = Flow::mark_at_source(direction, peer);
        let marked: Vec<Flow> = flows
            .iter()
            .filter(|flow| flow.direction(&departed.addresses) == Some(direction))
            .filter(|flow| flow.mark & mask == value)
            .cloned()
            .collect();
        if !marked.is_empty() {
            conntrack.set_mark(&marked, 0, mask)?;
            any = true;
        }
    }
    Ok(any)
}

/// Lets other containers of its network reach the original by themselves.
async fn rejoin(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    let others = moved_containers::rejoin(&context.directories, &departed.container).await?;
    moved_containers::forget_between(&departed.addresses, &others)?;
    Ok(!others.is_empty())
}

/// Connects and thaws the original. Its engine is not asked: every millisecond of it is silence.
async fn run_on(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    let Some(process) = &departed.process else { return Ok(false) };
    dump_ended(&context.directories.migration(departed.migration())).await?;
    // Without it, it ended by itself or the host has been restarted: nothing of it is frozen.
    let Some(cgroup) = departed.original() else {
        return match is_alive(context, process, &departed.container).await? {
            true => Err(Hidden(process.pid).into()),
            false => Ok(false),
        };
    };
    // Each is tried whatever comes of the other: a container that is only cut off must not stay frozen, too.
    let connected = connect(process);
    let was_frozen = cgroup.is_freeze_requested();
    let (changed, limits) = (&departed.changed_cpu_limits, &departed.cpu_limits);
    let was_slowed = cgroup.put_cpu_limits_back(changed, limits);
    cgroup.resume()?;
    let changes = connected? || was_frozen? || was_slowed?;
    receive_buffers::restore(&cgroup.pids()?)?;
    Ok(changes)
}

/// Connects the original to its network; whether it was not.
fn connect(process: &Process) -> Result<bool, Cause> {
    let namespace = Namespace::at_path(&process.namespace)?;
    let port = match Port::of_container(&namespace, &process.interface) {
        // The engine was told to disconnect it.
        Err(bridge_port::Error::NoInterface { .. }) => return Ok(false),
        port => port?,
    };
    let was_blocked = port.is_blocked()?;
    port.unblock()?;
    Ok(was_blocked)
}

/// Returns whether the engine says that it runs the container with this first process.
async fn is_alive(context: &Context, process: &Process, id: &str) -> Result<bool, Cause> {
    if !context.engine.exists(id).await? {
        return Ok(false);
    }
    let container = context.engine.inspect(id).await?;
    Ok(container.pid == process.pid && procfs::start_time(process.pid).is_some())
}

/// Waits for the dump of the dead process, which goes on by itself and must not be disturbed: the
/// runtime has the directory of the images among its arguments.
async fn dump_ended(work: &std::path::Path) -> Result<(), Cause> {
    let give_up = Instant::now() + DUMP_END;
    while mentioned(work)? {
        if Instant::now() >= give_up {
            return Err(StillDumping.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Returns whether any process has `path`, or something below it, among its arguments.
fn mentioned(path: &std::path::Path) -> std::io::Result<bool> {
    let wanted = path.as_os_str().as_encoded_bytes();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process that ended meanwhile mentions nothing.
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.split(|&b| b == 0).any(|argument| argument.starts_with(wanted)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the hold's rules, and those that try ways; its queue and the packets in it went with the process.
pub fn unhold(departed: &Departed) -> Result<bool, Cause> {
    let tag = departed.migration().to_string().parse()?;
    let mut table = Table::open()?;
    table.remove_hold(&tag)?;
    table.remove_path_trial(&tag)?;
    table.remove_flow_counter(&tag)?;
    Ok(false)
}

/// Unmounts the images and removes the migration's volatile directory.
pub fn tidy(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    let work = context.directories.migration(departed.migration());
    let there = work.exists();
    ImageDir::remove_at(&work.join("images"))?;
    match std::fs::remove_dir_all(&work) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(there),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_path_among_its_arguments_is_found() {
        let path = std::env::temp_dir().join(format!("netmig-mentioned-{}", std::process::id()));
        assert!(!mentioned(&path).unwrap());
        // `sleep` refuses a second argument that is no number, so a shell that reads nothing.
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .arg(path.join("images"))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The child is there before its program is.
        let end = Instant::now() + Duration::from_secs(5);
        let found = loop {
            let found = mentioned(&path).unwrap();
            if found || Instant::now() > end {
                break found;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert!(!mentioned(&path).unwrap());
    }
}
