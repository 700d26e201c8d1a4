//! The attempts, in a process of their own.

use std::io;
use std::time::Instant;

use nix::sys::signal::{SigHandler, Signal, signal};

use super::witness::{Identity, Witness};
use super::{Candidate, Order, State};
use crate::injected_call::{Caller, StoppedThread, instruction};

/// kcmp(2), `KCMP_VM`: compares memory. A task that has ended has none.
pub(super) const KCMP_VM: u64 = 1;

/// Has what ends the agent leave this process alone: a thread that is at its attempt has registers of ours.
pub(super) fn ignore_signals() -> io::Result<()> {
    // It may be the leader of its group already.
    let _ = nix::unistd::setsid();
    for one in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: no handler is set that could do anything.
        unsafe { signal(one, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Has each thread make the attempt. Those whose turn has not come by `end` stay unknown.
pub(super) fn make(order: &Order, end: Instant) -> Vec<State> {
    let mut states = vec![State::Unknown; order.threads.len()];
    let identities: Vec<Option<Identity>> =
        order.threads.iter().map(|one| Identity::of(one.process, one.thread).ok()).collect();
    let mut distinct: Vec<&Identity> = Vec::new();
    for identity in identities.iter().flatten() {
        if !distinct.contains(&identity) {
            distinct.push(identity);
        }
    }
    // One after another: while there are two, the second one would keep the first one's pipes open.
    for identity in distinct {
        let Ok(witness) = Witness::start(order.first, identity) else { continue };
        for (at, candidate) in order.threads.iter().enumerate() {
            if identities[at].as_ref() == Some(identity) && Instant::now() < end {
                states[at] = attempt(candidate, identity, &witness).unwrap_or(State::Unknown);
            }
        }
    }
    states
}

fn attempt(candidate: &Candidate, identity: &Identity, witness: &Witness) -> io::Result<State> {
    let instruction = instruction(candidate.thread)?;
    let thread = StoppedThread::stop(candidate.thread)?;
    let caller = Caller::new(&thread, instruction)?;
    let number = u64::try_from(witness.inner).map_err(io::Error::other)?;
    let outcome = caller.call(libc::SYS_kcmp, [number, number, KCMP_VM, 0, 0]);
    drop(caller);
    // It may have changed them since they were read.
    let is_same = Identity::of(candidate.process, candidate.thread).is_ok_and(|it| it == *identity);
    drop(thread);
    Ok(match outcome {
        Ok(0) => State::Unrestricted,
        // The witness' parent, which is like the thread but in no domain, was allowed the same.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) && witness.is_open && is_same => {
            State::Restricted
        }
        _ => State::Unknown,
    })
}
