//! What a person sees while a migration runs, and what was measured.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

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
}

/// Where progress is shown.
#[derive(Debug)]
enum View {
    /// Nowhere: JSON was asked for.
    None,
    /// One line per finished step on standard error, which is not a terminal.
    Lines,
    /// A spinner on the terminal that turns into a line when the step is done.
    Terminal(ProgressBar),
}

/// The steps of a migration, timed and shown one after another.
#[derive(Debug)]
pub struct Steps {
    view: View,
    started: Instant,
    current: Option<(&'static str, Instant, u64)>,
    done: Vec<Step>,
}

impl Steps {
    /// Starts the clock. `quiet` shows nothing.
    #[must_use]
    pub fn start(quiet: bool) -> Self {
        let view = if quiet {
            View::None
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
                bar.set_style(style);
            }
            View::Terminal(bar)
        } else {
            View::Lines
        };
        Self { view, started: Instant::now(), current: None, done: Vec::new() }
    }

    /// Ends the current step and begins the next one.
    pub fn begin(&mut self, name: &'static str) {
        self.end();
        self.current = Some((name, Instant::now(), 0));
        if let View::Terminal(bar) = &self.view {
            bar.set_message(name);
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// Adds to the bytes that the current step has moved.
    pub fn add_bytes(&mut self, count: u64) {
        if let Some((name, _, bytes)) = &mut self.current {
            *bytes += count;
            if let View::Terminal(bar) = &self.view {
                bar.set_message(format!("{name}  {}", HumanBytes(*bytes)));
            }
        }
    }

    /// Ends the current step.
    pub fn end(&mut self) {
        if let Some((name, since, bytes)) = self.current.take() {
            self.record(name, since.elapsed(), (bytes > 0).then_some(bytes));
        }
    }

    /// Records a step that was measured elsewhere.
    pub fn record(&mut self, name: &'static str, took: Duration, bytes: Option<u64>) {
        let ms = milliseconds(took);
        let size = bytes.map(|b| format!("  {}", HumanBytes(b))).unwrap_or_default();
        let line = format!("  {name:<28}{ms:>9.1} ms{size}");
        match &self.view {
            View::None => {}
            // A reader that went away must not end a migration half-way, as `eprintln!` would.
            View::Lines => drop(writeln!(std::io::stderr(), "{line}")),
            View::Terminal(bar) => bar.println(line),
        }
        self.done.push(Step { name, ms, bytes });
    }

    /// Stops drawing while every microsecond counts.
    pub fn pause(&mut self) {
        self.end();
        if let View::Terminal(bar) = &self.view {
            bar.disable_steady_tick();
        }
    }

    /// Ends the current step, clears the spinner, and gives the steps and the total time.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Step>, Duration) {
        self.end();
        if let View::Terminal(bar) = &self.view {
            bar.finish_and_clear();
        }
        (self.done, self.started.elapsed())
    }
}

/// A duration in milliseconds, for people and for JSON: three digits behind the point.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
