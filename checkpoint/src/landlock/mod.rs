//! Which threads of a container have restricted themselves by Landlock (landlock(7)). CRIU's images do not have such a restriction
//! (a *domain*), and no interface of the kernel tells of it. What tells is an attempt: a thread in a domain may not
//! look at a task outside of it, whatever the domain's rules are (`hook_ptrace_access_check` in `security/landlock`). So each
//! thread that may be in one makes a call that looks at a task of ours (module `injected_call`), the `witness`.
//!
//! ```text
//! agent ── threads ──► netmig-shim landlock ──► witness: in the container's PID namespace, with the thread's user and group
//!                            │
//!                            └── stops a thread, which calls kcmp(witness, witness), lets it go; the next one
//! ```
//!
//! The attempts are made by a process of their own, which goes on until it is done when the agent is killed. A thread is stopped
//! for some 100 µs.

mod attempts;
mod restriction_count;
mod witness;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::procfs;

pub use restriction_count::RestrictionCount;

/// The first argument of the shim that has it make the attempts.
const ARGUMENT: &str = "landlock";
/// LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h).
const VERSION: u32 = 1;
/// How long the attempts may take, all together.
const ATTEMPTS: Duration = Duration::from_secs(3);
/// How long their process may take to answer. It may have been stopped.
const ANSWER: Duration = Duration::from_secs(10);
/// Most bytes of its answer.
const MOST: u64 = 16 << 20;
/// Looks for threads that others have made meanwhile, and how long the container runs in between.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// Returns whether this kernel has Landlock, and it is enabled.
#[must_use]
pub fn is_available() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no ruleset and returns a version (landlock_create_ruleset(2)).
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    version > 0
}

/// What is known of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is in no domain.
    Unrestricted,
    /// It is in a domain.
    Restricted,
    /// The attempt could not be made, or would have failed for other reasons, too.
    Unknown,
}

/// A thread that is in a domain, or may be in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its process.
    pub process: i32,
    /// The thread.
    pub thread: i32,
    /// What it calls itself.
    pub name: String,
    /// Whether it is known to be in a domain.
    pub is_certain: bool,
}

/// A thread to make the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Candidate {
    process: i32,
    thread: i32,
}

/// What the process that makes the attempts is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The container's first process.
    first: i32,
    threads: Vec<Candidate>,
}

/// Whose threads are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The `netmig-shim` program.
    pub shim: &'a Path,
    /// The container's first process.
    pub first: i32,
    /// Whether its processes may have CAP_SYS_ADMIN, and so need not give up gaining privileges before they restrict themselves
    /// (landlock_restrict_self(2)).
    pub may_administer: bool,
}

/// Returns a thread that is in a domain, or else one that may be in one; `None` if no thread of these processes is. Blocks for some
/// milliseconds if there is one for which it is possible. `pids` returns the processes.
///
/// # Errors
/// That of `pids`.
pub fn find<E>(
    subject: &Subject<'_>,
    pids: impl Fn() -> Result<Vec<i32>, E>,
) -> Result<Option<Found>, E> {
    if !is_available() {
        return Ok(None);
    }
    let mut known: Vec<Candidate> = Vec::new();
    let mut doubtful = None;
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(BETWEEN_LOOKS);
        }
        let mut threads = candidates(&pids()?, subject.may_administer);
        threads.retain(|one| !known.contains(one));
        if threads.is_empty() {
            break;
        }
        let states = attempt(subject, &threads).unwrap_or_else(|error| {
            tracing::warn!("cannot tell whether threads are restricted by Landlock: {error}");
            vec![State::Unknown; threads.len()]
        });
        for (candidate, state) in threads.iter().zip(states) {
            match state {
                State::Unrestricted => {}
                State::Restricted => return Ok(Some(candidate.found(true))),
                // One that has ended has left its domain to those that it has made, which are looked at.
                State::Unknown if is_alive(*candidate) => doubtful = Some(*candidate),
                State::Unknown => {}
            }
        }
        // A domain is passed on to new threads and processes: those of others are in none, or come with a new look.
        known.extend(threads);
    }
    Ok(doubtful.map(|candidate| candidate.found(false)))
}

impl Candidate {
    fn found(self, is_certain: bool) -> Found {
        let Self { process, thread } = self;
        let name = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"));
        let name = name.unwrap_or_default().trim_end().to_owned();
        Found { process, thread, name, is_certain }
    }
}

fn is_alive(Candidate { process, thread }: Candidate) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status"));
    let is_dead =
        |line: &str| line.strip_prefix("State:").is_some_and(|it| it.contains(['Z', 'X']));
    status.is_ok_and(|status| !status.lines().any(is_dead))
}

/// Returns the threads of processes that may be in a domain.
fn candidates(pids: &[i32], may_administer: bool) -> Vec<Candidate> {
    let mut all = Vec::new();
    for &process in pids {
        for thread in procfs::threads(process) {
            let one = Candidate { process, thread };
            if is_alive(one) && (may_administer || procfs::has_no_new_privileges(process, thread)) {
                all.push(one);
            }
        }
    }
    all
}

/// Has each thread make the attempt.
fn attempt(subject: &Subject<'_>, threads: &[Candidate]) -> io::Result<Vec<State>> {
    let order = Order { first: subject.first, threads: threads.to_vec() };
    let order = serde_json::to_vec(&order)?;
    let program = witness::unwritable(subject.shim)?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg(ARGUMENT)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    drop(program);
    let answer = converse(&mut child, &order);
    // It ends by itself, and is not killed: a thread may be at its attempt.
    thread::Builder::new().name("netmig-landlock".to_owned()).spawn(move || child.wait())?;
    let states: Vec<State> = serde_json::from_slice(&answer?)?;
    match states.len() == threads.len() {
        true => Ok(states),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn converse(child: &mut Child, order: &[u8]) -> io::Result<Vec<u8>> {
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    input.write_all(order)?;
    drop(input);
    let give_up = Instant::now() + ANSWER;
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match output.read(&mut piece)? {
            0 => return Ok(answer),
            read => answer.extend_from_slice(&piece[..read]),
        }
        if answer.len() as u64 > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Returns whether a program's arguments, without its name, ask for the attempts.
#[must_use]
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|first| first == ARGUMENT)
}

/// Makes the attempts that standard input asks for, and writes what came of them to standard output.
#[must_use]
pub fn run() -> ExitCode {
    let outcome = || -> io::Result<()> {
        attempts::ignore_signals()?;
        let mut order = Vec::new();
        io::stdin().take(MOST).read_to_end(&mut order)?;
        let order: Order = serde_json::from_slice(&order)?;
        let states = attempts::make(&order, Instant::now() + ATTEMPTS);
        io::stdout().write_all(&serde_json::to_vec(&states)?)
    };
    match outcome() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_threads_that_may_be_restricted_are_looked_at() {
        let own = i32::try_from(std::process::id()).unwrap();
        let all = candidates(&[own, i32::MAX], true);
        assert!(all.contains(&Candidate { process: own, thread: own }), "{all:?}");
        let by_the_bit = candidates(&[own], false);
        assert!(by_the_bit.len() <= all.len());
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let (told, given_up) = std::sync::mpsc::channel();
        let given_up_thread = thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            told.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = ended.recv();
        });
        let thread = given_up.recv().unwrap();
        assert!(candidates(&[own], false).contains(&Candidate { process: own, thread }));
        drop(done);
        given_up_thread.join().unwrap();
    }

    #[test]
    fn a_program_that_does_not_answer_leaves_it_open() {
        let own = i32::try_from(std::process::id()).unwrap();
        let subject = Subject { shim: Path::new("/bin/true"), first: own, may_administer: true };
        if !is_available() {
            return println!("skipped: this kernel has no Landlock");
        }
        let found = find(&subject, || Ok::<_, ()>(vec![own])).unwrap().unwrap();
        assert!(!found.is_certain && found.process == own, "{found:?}");
    }
}
