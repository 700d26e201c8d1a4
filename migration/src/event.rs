//! What is told while a migration or a recovery is at work.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::context::Context;
use crate::recovery::source as recovery;

/// Something that an observer hears of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A step of a migration begins.
    StepBegan(&'static str),
    /// The step that has begun has moved so many bytes so far.
    Transferred(u64),
    /// A step has ended.
    StepEnded(Step),
    /// The container is about to be interrupted: from now on every microsecond counts.
    Interrupting,
    /// The migration has ended.
    Ended,
    /// A recovery tells of itself.
    Recovery(recovery::Event),
}

impl From<recovery::Event> for Event {
    fn from(event: recovery::Event) -> Self {
        Self::Recovery(event)
    }
}

/// A finished step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Bytes moved in it, if it moves any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many bytes these were on the way, if that was measured: fewer if they were compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
}

/// The step that is at work.
#[derive(Debug)]
struct Current {
    name: &'static str,
    since: Instant,
    bytes: u64,
    sent: u64,
}

/// The steps of a migration, timed and told one after another.
#[derive(Debug)]
pub struct Steps<'a> {
    context: &'a Context,
    started: Instant,
    current: Option<Current>,
    done: Vec<Step>,
}

impl<'a> Steps<'a> {
    /// Starts the clock.
    #[must_use]
    pub fn start(context: &'a Context) -> Self {
        Self { context, started: Instant::now(), current: None, done: Vec::new() }
    }

    /// Ends the current step and begins the next one.
    pub fn begin(&mut self, name: &'static str) {
        self.end();
        self.current = Some(Current { name, since: Instant::now(), bytes: 0, sent: 0 });
        self.context.tell(Event::StepBegan(name));
    }

    /// Adds to the bytes that the current step has moved.
    pub fn add_bytes(&mut self, count: u64) {
        if let Some(current) = &mut self.current {
            current.bytes += count;
            self.context.tell(Event::Transferred(current.bytes));
        }
    }

    /// Adds to the bytes that the current step has sent.
    pub fn add_sent(&mut self, count: u64) {
        if let Some(current) = &mut self.current {
            current.sent += count;
        }
    }

    /// Ends the current step.
    pub fn end(&mut self) {
        if let Some(Current { name, since, bytes, sent }) = self.current.take() {
            let some = |count: u64| (count > 0).then_some(count);
            let step = Step {
                name,
                ms: milliseconds(since.elapsed()),
                bytes: some(bytes),
                sent: some(sent),
            };
            self.context.tell(Event::StepEnded(step.clone()));
            self.done.push(step);
        }
    }

    /// Ends the current step: the interruption begins.
    pub fn interrupt(&mut self) {
        self.end();
        self.context.tell(Event::Interrupting);
    }

    /// Ends the current step, and returns the steps and the total time.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Step>, Duration) {
        self.end();
        (std::mem::take(&mut self.done), self.started.elapsed())
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        self.context.tell(Event::Ended);
    }
}

/// Returns a duration in milliseconds, with three digits behind the point.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Returns the difference of two moments in milliseconds.
#[must_use]
pub fn span(from: Instant, to: Instant) -> f64 {
    milliseconds(to.saturating_duration_since(from))
}
