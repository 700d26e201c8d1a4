//! Threads that each make one blocking system call without the C library's wrapper, and print its result:
//! `NAME VALUE MILLISECONDS`, or `NAME error ERROR MILLISECONDS`.

use std::io::{self, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, timespec, timeval};

/// A call that blocks for the given time.
type Call = fn(Duration) -> io::Result<c_long>;

/// A null argument, in the width of a register.
const NONE: usize = 0;

/// The calls. Each returns by itself after the given time.
const CALLS: &[(&str, Call)] = &[
    ("nanosleep", |time| {
        let time = spec(time);
        // SAFETY: nanosleep(2) reads one timespec.
        result(unsafe { libc::syscall(libc::SYS_nanosleep, &time, NONE) })
    }),
    ("nanosleep-in-place", |time| {
        let mut time = spec(time);
        let time = &raw mut time;
        // SAFETY: nanosleep(2) reads and writes one timespec, as the C library's sleep(3) has it do.
        result(unsafe { libc::syscall(libc::SYS_nanosleep, time, time) })
    }),
    ("clock_nanosleep", |time| {
        let time = spec(time);
        // SAFETY: clock_nanosleep(2) reads one timespec.
        result(unsafe {
            libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, NONE, &time, NONE)
        })
    }),
    ("poll", |time| {
        let (ours, _theirs) = UnixStream::pair()?;
        let mut fd = libc::pollfd { fd: ours.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) reads and writes one pollfd.
        result(unsafe { libc::syscall(libc::SYS_poll, &mut fd, 1, milliseconds(time)) })
    }),
    ("poll-of-nothing", |time| {
        // SAFETY: poll(2) without descriptors.
        result(unsafe { libc::syscall(libc::SYS_poll, NONE, NONE, milliseconds(time)) })
    }),
    ("ppoll", |time| {
        let mut time = spec(time);
        // SAFETY: ppoll(2) without descriptors reads and writes one timespec.
        result(unsafe { libc::syscall(libc::SYS_ppoll, NONE, NONE, &mut time, NONE, NONE) })
    }),
    ("select", |time| {
        let mut time = val(time);
        // SAFETY: select(2) without descriptors reads and writes one timeval.
        result(unsafe { libc::syscall(libc::SYS_select, NONE, NONE, NONE, NONE, &mut time) })
    }),
    ("pselect", |time| {
        let mut time = spec(time);
        // SAFETY: pselect(2) without descriptors reads and writes one timespec.
        result(unsafe {
            libc::syscall(libc::SYS_pselect6, NONE, NONE, NONE, NONE, &mut time, NONE)
        })
    }),
    ("futex-private", |time| futex(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, spec(time))),
    ("futex-shared", |time| futex(libc::FUTEX_WAIT, spec(time))),
    ("futex-until", |time| {
        let mut end = spec(Duration::ZERO);
        // SAFETY: clock_gettime(2) writes one timespec.
        result(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut end) }.into())?;
        end.tv_sec += spec(time).tv_sec;
        futex(libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG, end)
    }),
    ("epoll_wait", |time| epoll(libc::SYS_epoll_wait, time)),
    ("epoll_pwait", |time| epoll(libc::SYS_epoll_pwait, time)),
    ("rt_sigtimedwait", |time| {
        let (set, time) = (1_u64 << (libc::SIGUSR2 - 1), spec(time));
        // SAFETY: rt_sigtimedwait(2) reads a set of 64 signals and one timespec.
        result(unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, NONE, &time, 8_usize) })
    }),
    ("semtimedop", |time| {
        let time = spec(time);
        semaphore(|id, operation| {
            // SAFETY: semtimedop(2) reads one operation and one timespec.
            result(unsafe { libc::syscall(libc::SYS_semtimedop, id, operation, 1, &time) })
        })
    }),
    ("semop", |time| {
        semaphore(|id, operation| {
            thread::spawn(move || {
                thread::sleep(time);
                // SAFETY: semctl(2) sets the value of a semaphore that this function has created.
                unsafe { libc::semctl(id, 0, libc::SETVAL, 1) }
            });
            // SAFETY: semop(2) reads one operation.
            result(unsafe { libc::syscall(libc::SYS_semop, id, operation, 1) })
        })
    }),
    ("recv", |time| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(time))?;
        let mut byte = 0_u8;
        // SAFETY: recvfrom(2) writes one byte.
        result(unsafe {
            libc::syscall(
                libc::SYS_recvfrom,
                socket.as_raw_fd(),
                &mut byte,
                1_usize,
                NONE,
                NONE,
                NONE,
            )
        })
    }),
    ("read", |time| {
        let (ours, _theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(time))?;
        let mut byte = 0_u8;
        // SAFETY: read(2) writes one byte.
        result(unsafe { libc::syscall(libc::SYS_read, ours.as_raw_fd(), &mut byte, 1_usize) })
    }),
    ("accept", |time| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        socket2::SockRef::from(&listener).set_read_timeout(Some(time))?;
        // SAFETY: accept(2) without a buffer for the address.
        result(unsafe { libc::syscall(libc::SYS_accept, listener.as_raw_fd(), NONE, NONE) })
    }),
];

/// Makes all calls at once, prints the result of each when it returns, and returns after the last.
///
/// # Errors
/// The signal could not be blocked, or standard output could not be written.
pub fn run(time: Duration, ready: impl FnOnce()) -> io::Result<()> {
    // rt_sigtimedwait(2) waits for blocked signals, and threads inherit the mask.
    block_signal()?;
    let (told, heard) = mpsc::channel();
    for (name, call) in CALLS {
        let told = told.clone();
        thread::spawn(move || {
            let began = Instant::now();
            let outcome = call(time);
            let _ = told.send((*name, outcome, began.elapsed()));
        });
    }
    drop(told);
    // By then all threads are in their calls, as a rule. Nothing depends on it.
    thread::sleep(Duration::from_millis(300));
    ready();
    let mut out = io::stdout();
    for (name, outcome, elapsed) in heard {
        match outcome {
            Ok(value) => writeln!(out, "{name} {value} {}", elapsed.as_millis())?,
            Err(error) => {
                let error = error.raw_os_error().map(nix::errno::Errno::from_raw);
                let error = error.map_or_else(|| "other".to_owned(), |error| format!("{error:?}"));
                writeln!(out, "{name} error {error} {}", elapsed.as_millis())?;
            }
        }
        out.flush()?;
    }
    writeln!(out, "done")?;
    out.flush()
}

fn block_signal() -> io::Result<()> {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGUSR2);
    set.thread_block().map_err(Into::into)
}

fn futex(operation: c_int, time: timespec) -> io::Result<c_long> {
    let word = 7_u32;
    // SAFETY: futex(2) reads the word, which has the value that it is to have, and one timespec.
    result(unsafe {
        libc::syscall(libc::SYS_futex, &word, operation, 7, &time, NONE, u64::from(u32::MAX))
    })
}

fn epoll(call: c_long, time: Duration) -> io::Result<c_long> {
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty())?;
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let set = 0_u64;
    // SAFETY: epoll_wait(2) and epoll_pwait(2) write at most one event; the latter reads a set of signals.
    result(unsafe {
        libc::syscall(call, epoll.0.as_raw_fd(), &mut event, 1, milliseconds(time), &set, 8_usize)
    })
}

/// Waits for the value of a semaphore to rise above 0.
fn semaphore(
    wait: impl FnOnce(c_int, *mut libc::sembuf) -> io::Result<c_long>,
) -> io::Result<c_long> {
    // SAFETY: semget(2) takes numbers alone.
    let id = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
    result(id.into())?;
    let mut operation = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
    let outcome = wait(id, &raw mut operation);
    // SAFETY: semctl(2) removes a semaphore that this function has created.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
    outcome
}

fn result(value: c_long) -> io::Result<c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn milliseconds(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}

fn spec(time: Duration) -> timespec {
    timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() }
}

fn val(time: Duration) -> timeval {
    timeval { tv_sec: time.as_secs() as libc::time_t, tv_usec: time.subsec_micros().into() }
}
