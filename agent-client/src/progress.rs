//! What a person sees while a migration runs.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use migration::Event;
use migration::event::Step;

/// Where progress is shown.
#[derive(Debug)]
pub enum Progress {
    /// Nowhere: JSON was asked for.
    Hidden,
    /// One line per finished step on standard error, which is not a terminal.
    Lines,
    /// A spinner on the terminal that turns into a line when the step is done.
    Terminal(Box<Spinner>),
}

/// The spinner of the step that is at work.
#[derive(Debug)]
pub struct Spinner {
    bar: ProgressBar,
    step: Mutex<(&'static str, Instant)>,
}

impl Progress {
    /// Chooses where to show it. `quiet` shows nothing.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Hidden;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::hidden();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
            bar.set_style(style);
        }
        Self::Terminal(Box::new(Spinner { bar, step: Mutex::new(("", Instant::now())) }))
    }

    /// Shows an event.
    pub fn show(&self, event: &Event) {
        match (self, event) {
            // What becomes of a migration that has died is told in any case.
            (_, Event::Recovery(event)) => say(&event.to_string()),
            (Self::Hidden, _) => {}
            (Self::Lines, Event::StepEnded(step)) => say(&line(step)),
            (Self::Lines, _) => {}
            (Self::Terminal(spinner), event) => spinner.show(event),
        }
    }
}

impl Spinner {
    fn show(&self, event: &Event) {
        match event {
            Event::StepBegan(name) => {
                let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
                *step = (name, Instant::now());
                self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                self.bar.set_message(*name);
                self.bar.enable_steady_tick(Duration::from_millis(100));
            }
            Event::Transferred(bytes) => {
                let (name, since) = *self.step.lock().unwrap_or_else(PoisonError::into_inner);
                let rate = *bytes as f64 / since.elapsed().as_secs_f64().max(1e-3);
                let (bytes, rate) = (HumanBytes(*bytes), HumanBytes(rate as u64));
                self.bar.set_message(format!("{name}  {bytes}  {rate}/s"));
            }
            Event::StepEnded(step) => self.bar.println(line(step)),
            Event::Interrupting => self.bar.disable_steady_tick(),
            Event::Ended => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

/// Prints a finished step.
fn line(Step { name, ms, bytes, sent }: &Step) -> String {
    let size = match (*bytes, *sent) {
        // What frames add to the bytes is not worth a word.
        (Some(bytes), Some(sent)) if sent < bytes => {
            format!("  {}, compressed to {}", HumanBytes(bytes), HumanBytes(sent))
        }
        (Some(bytes), _) => format!("  {}", HumanBytes(bytes)),
        (None, _) => String::new(),
    };
    format!("  {name:<28}{ms:>9.1} ms{size}")
}

/// Prints a line on standard error. A reader that went away must not end a migration half-way, as
/// `eprintln!` would.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
