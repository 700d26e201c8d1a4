//! The event loop shared by the TCP and the UDP client: one thread, one epoll, one timer.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::super::client_report::EchoReport;
use super::super::stop::Stop;
use super::EchoPlan;
use super::echo_message::Message;
use super::pacer::Pacer;
use super::tally::{Ended, Tally};

const TIMER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
/// The number of events of one epoll_wait(2).
const EVENTS: usize = 256;

/// A connection or flow that carries messages. Replies must bear `id`: the channel's index and the client's run.
pub(super) trait Channel {
    fn descriptor(&self) -> BorrowedFd<'_>;
    fn send(&mut self, message: &Message, tally: &mut Tally) -> Result<(), Ended>;
    fn flush(&mut self) -> Result<(), Ended>;
    fn wants_to_write(&self) -> bool;
    fn receive(&mut self, id: (u32, u32), tally: &mut Tally) -> Result<(), Ended>;
}

struct Slot<C> {
    channel: C,
    next: u64,
    writing: bool,
}

struct Client<'a, C> {
    epoll: Epoll,
    slots: Vec<Option<Slot<C>>>,
    alive: usize,
    turn: usize,
    run: u32,
    tally: Tally,
    stop: &'a Stop,
}

/// Runs the client to its end.
pub(super) fn run<C: Channel>(
    plan: &EchoPlan,
    channels: Vec<C>,
    stop: &Stop,
    ready: impl FnOnce(),
) -> io::Result<EchoReport> {
    let start = Instant::now();
    let mut pacer = Pacer::new(plan.rate, start);
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
    // Set again at every tick: CRIU restores an interval timer that has expired as one that never expires again.
    let round = Expiration::OneShot(TimeSpec::from_duration(pacer.round()));
    timer.set(round, TimerSetTimeFlags::empty())?;

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    for descriptor in stop.descriptors() {
        epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    }
    let mut slots = Vec::with_capacity(channels.len());
    for (index, channel) in channels.into_iter().enumerate() {
        epoll.add(channel.descriptor(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        slots.push(Some(Slot { channel, next: 0, writing: false }));
    }
    let alive = slots.len();
    let mut client = Client {
        epoll,
        slots,
        alive,
        turn: 0,
        run: std::process::id(),
        tally: Tally::new(start, alive as u64, plan.record_latencies),
        stop,
    };

    let mut ready = Some(ready);
    if plan.rate <= 0.0 || alive == 0 {
        ready.take().into_iter().for_each(|call| call());
    }
    loop {
        let (tick, asked) = client.wait(EpollTimeout::NONE)?;
        if tick {
            timer.set(round, TimerSetTimeFlags::empty())?;
            for _ in 0..pacer.due(Instant::now()) {
                client.send_one();
            }
        }
        if client.tally.any_received() {
            ready.take().into_iter().for_each(|call| call());
        }
        let dead = alive > 0 && client.alive == 0;
        if asked || dead || stop.time_is_over(Instant::now()) {
            break;
        }
    }
    let sending = start.elapsed();
    client.drain(plan.drain)?;
    Ok(client.tally.finish(sending))
}

impl<C: Channel> Client<'_, C> {
    /// Handles one batch of events. Returns whether the timer fired and whether the client was asked to end.
    fn wait(&mut self, timeout: EpollTimeout) -> io::Result<(bool, bool)> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let (mut tick, mut asked) = (false, false);
        for event in &events[..count] {
            match event.data() {
                TIMER => tick = true,
                STOP => asked |= self.stop.was_asked()?,
                index => self.handle(index as usize, event.events()),
            }
        }
        Ok((tick, asked))
    }

    fn handle(&mut self, index: usize, flags: EpollFlags) {
        let id = (index as u32, self.run);
        let Some(slot) = self.slots[index].as_mut() else { return };
        let mut outcome = Ok(());
        if flags.contains(EpollFlags::EPOLLOUT) {
            outcome = slot.channel.flush();
        }
        if outcome.is_ok() {
            outcome = slot.channel.receive(id, &mut self.tally);
        }
        self.settle(index, outcome);
    }

    /// Sends one message on the next channel that is alive.
    fn send_one(&mut self) {
        if self.alive == 0 {
            return;
        }
        let index = loop {
            let index = self.turn;
            self.turn = (self.turn + 1) % self.slots.len();
            if self.slots[index].is_some() {
                break index;
            }
        };
        let sent_ns = self.tally.clock_ns();
        let Some(slot) = self.slots[index].as_mut() else { return };
        let message =
            Message { connection: index as u32, run: self.run, sequence: slot.next, sent_ns };
        slot.next += 1;
        let outcome = slot.channel.send(&message, &mut self.tally);
        self.settle(index, outcome);
    }

    /// Adjusts the epoll events of a channel, or drops a channel that has ended.
    fn settle(&mut self, index: usize, outcome: Result<(), Ended>) {
        let Some(slot) = self.slots[index].as_mut() else { return };
        if let Err(how) = outcome {
            self.tally.ended(index, &how);
            self.slots[index] = None;
            self.alive -= 1;
            return;
        }
        let writing = slot.channel.wants_to_write();
        if writing != slot.writing {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, writing);
            let mut event = EpollEvent::new(flags, index as u64);
            if let Err(error) = self.epoll.modify(slot.channel.descriptor(), &mut event) {
                self.tally.error(&error.into());
            }
            slot.writing = writing;
        }
    }

    /// Waits for missing replies.
    fn drain(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while self.tally.outstanding() > 0 && self.alive > 0 && Instant::now() < deadline {
            self.wait(EpollTimeout::from(10u8))?;
        }
        Ok(())
    }
}
