//! How fast bytes get to the destination.

use std::time::{Duration, Instant};

use protocol::expect;
use protocol::message::{Data, Message};
use protocol::wire::{Connection, Error};
use state::deadline;

/// Bytes of the first message, and of the largest.
const FIRST: usize = 256 << 10;
const LARGEST: usize = 2 << 20;
/// A message that took less time is followed by one twice as large.
const SHORT: Duration = Duration::from_millis(10);
/// Empty messages; the quickest of them tells the latency.
const EMPTY: usize = 3;
/// Least and most messages. A connection over a long way takes some until it is at its full rate.
const LEAST: usize = 3;
const MOST: usize = 8;
/// For this long more than the least number of messages are sent.
const ENOUGH: Duration = Duration::from_millis(60);

/// Measures how many bytes a second get to the destination: the best of several messages, without the time
/// that an empty one takes.
///
/// # Errors
/// The connection fails.
pub async fn measure(connection: &mut Connection) -> Result<f64, Error> {
    let mut latency = Duration::MAX;
    for _ in 0..EMPTY {
        latency = latency.min(send(connection, 0).await?);
    }
    let began = Instant::now();
    let (mut size, mut best) = (FIRST, 0.0_f64);
    for count in 0..MOST {
        if count >= LEAST && began.elapsed() > ENOUGH {
            break;
        }
        let taken = send(connection, size).await?;
        best = best.max(rate(size, taken, latency));
        if taken < SHORT {
            size = (size * 2).min(LARGEST);
        }
    }
    Ok(best)
}

/// Sends so many bytes, and returns after how long they were there.
async fn send(connection: &mut Connection, size: usize) -> Result<Duration, Error> {
    let began = Instant::now();
    connection.send(&Message::Measure(Data(vec![0; size]))).await?;
    expect!(connection, deadline::ANSWER, Measured)?;
    Ok(began.elapsed())
}

/// Bytes a second, of a message and its answer.
fn rate(size: usize, taken: Duration, latency: Duration) -> f64 {
    /// No more of it than this is taken for latency.
    const LEAST_PART: u32 = 2;
    size as f64 / taken.saturating_sub(latency).max(taken / LEAST_PART).as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_is_not_the_links() {
        let ms = Duration::from_millis;
        assert!((rate(1_000_000, ms(110), ms(10)) - 1e7).abs() < 1.0);
        assert!((rate(1_000_000, ms(100), ms(99)) - 2e7).abs() < 1.0);
        assert!(rate(1, Duration::ZERO, Duration::ZERO).is_finite());
    }
}
