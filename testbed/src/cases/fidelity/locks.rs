//! File locks are held after a migration, and processes that waited for one go on waiting.

use std::time::Duration;

use crate::cases::promise::until;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-locks-are-held-crun", &["fidelity"], |context| {
        are_held(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-locks-are-held-runc", &["fidelity"], |context| {
        are_held(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("fidelity-leases-are-held", &["fidelity"], leases_are_held).limit(240),
];

/// The time limit for something that happens at once.
const LIMIT: Duration = Duration::from_secs(30);
/// The time during which a process must go on waiting.
const WATCHED: Duration = Duration::from_millis(500);

/// A program that takes a lock of each kind on a file in the root file system and on one in shared memory. A child
/// waits for each lock and reports when it has it. On the first signal the parent releases them.
const SERVER: &str = r#"
import fcntl, os, signal, struct, time
def lock(kind, fd):
    if kind == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    elif kind == "posix":
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
    else:
        fcntl.fcntl(fd, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 5, 10, 0))
def unlock(kind, fd):
    if kind == "flock":
        fcntl.flock(fd, fcntl.LOCK_UN)
    elif kind == "posix":
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 5)
    else:
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 5, 10, 0))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
held = []
for kind in "flock", "posix", "ofd":
    for place in "/", "/dev/shm/":
        path = place + kind
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 100)
        lock(kind, fd)
        held.append((kind, fd))
        if os.fork() == 0:
            other = os.open(path, os.O_RDWR)
            os.close(fd) if kind != "posix" else None
            print("waits", path, flush=True)
            lock(kind, other)
            print("has", path, flush=True)
            signal.pause()
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
for kind, fd in held:
    unlock(kind, fd)
signal.pause()
"#;

/// A program that tries each lock without waiting.
const RIVAL: &str = r#"
import fcntl, os, struct
for kind in "flock", "posix", "ofd":
    for place in "/", "/dev/shm/":
        fd = os.open(place + kind, os.O_RDWR)
        try:
            if kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif kind == "posix":
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            else:
                fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 5, 10, 0))
            print("got", place + kind)
        except OSError:
            pass
"#;

const FILES: usize = 6;

fn are_held(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let run = ["run", "--detach", "--name", "locks", "python:1", "python3", "-c", SERVER];
    lab.host("a")?.podman(run)?;
    let count = |host: &Host, word: &str| -> Result<usize> {
        let log = host.podman(["logs", "locks"])?;
        Ok(log.lines().filter(|line| line.starts_with(word)).count())
    };
    let a = lab.host("a")?;
    until("all locks are waited for", LIMIT, || Ok(count(a, "waits")? == FILES))?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("locks", from, to)?;
        let host = lab.host(to)?;
        std::thread::sleep(WATCHED);
        ensure!(count(host, "has")? == 0, "{}", host.podman(["logs", "locks"])?);
        let got = host.podman(["exec", "locks", "python3", "-c", RIVAL])?;
        ensure!(got.is_empty(), "on {to}: a rival {got}");
    }
    a.podman(["kill", "--signal", "USR1", "locks"])?;
    until("all who waited have a lock", LIMIT, || Ok(count(a, "has")? == FILES))
}

/// A program that takes a lease of each kind, and reports which it has on a signal, and when one is broken.
const LEASES: &str = r#"
import fcntl, os, signal
fds = [os.open("/read", os.O_RDONLY | os.O_CREAT), os.open("/write", os.O_RDWR | os.O_CREAT)]
for fd, kind in zip(fds, (fcntl.F_RDLCK, fcntl.F_WRLCK)):
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
def tell(*_):
    print("leases", *(fcntl.fcntl(fd, fcntl.F_GETLEASE) for fd in fds), flush=True)
def broken(*_):
    print("broken", flush=True)
    fcntl.fcntl(fds[0], fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGUSR1, tell)
signal.signal(signal.SIGIO, broken)
print("ready", flush=True)
while True:
    signal.pause()
"#;

fn leases_are_held(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let run = ["run", "--detach", "--name", "leases", "python:1", "python3", "-c", LEASES];
    lab.host("a")?.podman(run)?;
    let log = |host: &str| lab.host(host)?.podman(["logs", "leases"]);
    until("it has the leases", LIMIT, || Ok(log("a")?.contains("ready")))?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("leases", from, to)?;
        let told = log(to)?.matches("leases").count();
        lab.host(to)?.podman(["kill", "--signal", "USR1", "leases"])?;
        until("it tells its leases", LIMIT, || Ok(log(to)?.matches("leases").count() > told))?;
        let last = log(to)?.lines().rfind(|line| line.starts_with("leases")).map(str::to_owned);
        ensure!(last.as_deref() == Some("leases 0 1"), "on {to}: {last:?}");
    }
    let write = ["exec", "leases", "sh", "-c", "echo x > /read"];
    lab.host("a")?.podman(write)?;
    until("the lease is broken", LIMIT, || Ok(log("a")?.contains("broken")))
}
