//! A process that writes its memory at a given rate, and checks each page before it writes it again, and all of them now and
//! then. Between its writes it sleeps, or it is busy: then it writes less when it gets less of the processors.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::writing_memory::{Region, next, number, wrong};
use super::{Held, Setup};

pub(super) const ALL: &[(&str, Setup)] =
    &[("paced-memory", || write(Pace::Sleeps)), ("busy-memory", || write(Pace::IsBusy))];

/// The environment variables with the size of the memory in mebibytes, and with how many mebibytes are written in a second.
const MEMORY: (&str, u32) = ("MEMORY_MIB", 32);
const RATE: (&str, u32) = ("WRITE_MIB", 8);
/// Pages of a mebibyte.
const PAGES: usize = 256;
/// How long the process sleeps or is busy between two bursts of writes.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two checks of all pages.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// What a process does between its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// It sleeps. It writes so much in a second of the clock.
    Sleeps,
    /// It computes. It writes so much in a second of processor time.
    IsBusy,
}

impl Pace {
    fn clock(self) -> io::Result<Duration> {
        let clock = match self {
            Self::Sleeps => ClockId::CLOCK_MONOTONIC,
            Self::IsBusy => ClockId::CLOCK_THREAD_CPUTIME_ID,
        };
        Ok(clock_gettime(clock)?.into())
    }

    fn pause(self) {
        match self {
            Self::Sleeps => thread::sleep(PAUSE),
            Self::IsBusy => (0..10_000).for_each(|number| _ = std::hint::black_box(number)),
        }
    }
}

fn write(pace: Pace) -> io::Result<Held> {
    let of = |(name, default): (&str, u32)| number(name).unwrap_or(default) as usize * PAGES;
    let (pages, rate) = (of(MEMORY).max(1), of(RATE));
    let mut region = Region::new(5, pages)?;
    let writer = thread::spawn(move || -> io::Result<()> {
        let mut state = 12_345;
        let mut checked = Instant::now();
        let (mut then, mut owed, mut checks) = (pace.clock()?, 0.0, 0_u64);
        loop {
            let now = pace.clock()?;
            owed += now.saturating_sub(then).as_secs_f64() * rate as f64;
            then = now;
            // It does not catch up after it stood still.
            owed = f64::min(owed, rate as f64 / 10.0);
            while owed >= 1.0 {
                owed -= 1.0;
                let page = next(&mut state) % pages;
                if !region.is_right(page) {
                    wrong("a page that is written at a rate", page);
                }
                region.write(page);
            }
            if checked.elapsed() >= CHECK_EVERY {
                if let Some(page) = (0..pages).find(|page| !region.is_right(*page)) {
                    wrong("a page that is looked at now and then", page);
                }
                checks += 1;
                println!("checked {checks}");
                checked = Instant::now();
                then = pace.clock()?;
            }
            pace.pause();
        }
    });
    Ok(Box::new(writer))
}
