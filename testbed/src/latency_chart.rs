//! Draws the demo as SVG: the round-trip time of every message of both clients around the interruption.
//!
//! The drawing is self-contained text with colours for light and dark displays (`prefers-color-scheme`).

use std::fmt::Write as _;

use crate::traffic::client_report::{EchoReport, Latency};

/// The size of the drawing in pixels.
const SIZE: (f64, f64) = (880.0, 500.0);
/// The left and the right edge of the panels.
const EDGES: (f64, f64) = (64.0, 856.0);
/// The upper edge of each panel.
const TOPS: [f64; 2] = [92.0, 290.0];
/// The height of a panel.
const HEIGHT: f64 = 148.0;
/// The time in milliseconds that is shown before the longest gap.
const BEFORE_MS: f64 = 150.0;
/// The time in milliseconds that is shown after it, at least.
const AFTER_MS: f64 = 350.0;
/// The largest numbers of parts into which grid lines divide the horizontal and the vertical axis.
const MOST_PARTS: (f64, f64) = (12.0, 5.0);
/// The part of a panel's height that is free above the longest round-trip time.
const HEADROOM: f64 = 0.05;

const STYLE: &str = "\
text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
.background { fill: #ffffff } .title { font-size: 16px; font-weight: 600 } .name { font-weight: 600 }
.minor { fill: #59636e } .grid { stroke: #d1d9e0; stroke-width: 1 } .gap { fill: #818b98; opacity: 0.16 }
.points { fill: none; stroke-width: 2.4; stroke-linecap: round } .tcp { stroke: #0969da } .udp { stroke: #bc4c00 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .background { fill: #0d1117 } .minor { fill: #9198a1 } .grid { stroke: #3d444d }
.tcp { stroke: #4493f8 } .udp { stroke: #f0883e }
}";

/// The range of times that both panels show.
#[derive(Debug, Clone, Copy)]
struct TimeAxis {
    /// The time at 0, in nanoseconds since the Unix epoch.
    origin_ns: u64,
    /// The last time in milliseconds after the origin.
    end_ms: f64,
}

impl TimeAxis {
    /// Shows the longest gap of the TCP client with some time before and after it.
    fn around_the_gap(report: &EchoReport) -> Self {
        let end_ms = (report.max_gap_ms + AFTER_MS).max(report.max_gap_ms * 2.0);
        Self { origin_ns: report.max_gap_at_unix_ns, end_ms }
    }

    fn milliseconds(self, unix_ns: u64) -> f64 {
        (i128::from(unix_ns) - i128::from(self.origin_ns)) as f64 / 1e6
    }

    fn shows(self, ms: f64) -> bool {
        (-BEFORE_MS..=self.end_ms).contains(&ms)
    }

    fn x(self, ms: f64) -> f64 {
        let share = (ms.clamp(-BEFORE_MS, self.end_ms) + BEFORE_MS) / (self.end_ms + BEFORE_MS);
        EDGES.0 + share * (EDGES.1 - EDGES.0)
    }
}

/// Draws the latencies of a TCP and a UDP client. The clients must have recorded them
/// ([`crate::traffic::echo::EchoPlan::record_latencies`]).
pub fn draw(tcp: &EchoReport, udp: &EchoReport) -> String {
    let axis = TimeAxis::around_the_gap(tcp);
    let shown = |report: &EchoReport| -> Vec<(f64, f64)> {
        let at = |one: &Latency| (axis.milliseconds(one.sent_unix_ns), one.ms);
        report.latencies.iter().map(at).filter(|(ms, _)| axis.shows(*ms)).collect()
    };
    let clients = [("TCP", "tcp", tcp), ("UDP", "udp", udp)];
    let points = clients.map(|(.., report)| shown(report));
    let longest =
        points.iter().flatten().map(|(_, rtt)| *rtt).fold(1.0, f64::max) * (1.0 + HEADROOM);
    let mut svg = String::new();
    let (width, height) = SIZE;
    let rate = tcp.sent as f64 / tcp.seconds.max(0.001);
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>Round-trip time of messages while a container moves to another host</title>\n\
         <style>\n{STYLE}\n</style>\n\
         <rect class=\"background\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>"
    );
    text(
        &mut svg,
        (24.0, 32.0),
        "title",
        "A container moves to another host while clients talk to it",
    );
    let about = format!(
        "Each dot is one message. Vertical: its round-trip time in ms. Two clients, {:.0} messages a second each.",
        (rate / 10.0).round() * 10.0
    );
    text(&mut svg, (24.0, 53.0), "minor", &about);
    for (((name, class, report), points), top) in clients.into_iter().zip(&points).zip(TOPS) {
        let told = format!(
            "no reply for {:.0} ms, {} of {} messages lost",
            report.max_gap_ms, report.lost, report.sent
        );
        panel(&mut svg, axis, top, longest);
        text(&mut svg, (EDGES.0, top - 9.0), "name", name);
        text(&mut svg, (EDGES.0 + 38.0, top - 9.0), "minor", &told);
        gap(&mut svg, axis, top, report);
        dots(&mut svg, class, points.iter().map(|(ms, rtt)| (axis.x(*ms), y(top, *rtt, longest))));
    }
    let below = "Time of sending, in ms after the last reply before the interruption. Grey: the longest time without a reply.";
    text(&mut svg, (EDGES.0, SIZE.1 - 18.0), "minor", below);
    svg.push_str("</svg>\n");
    svg
}

/// Draws the grid of a panel and the numbers of its axes.
fn panel(svg: &mut String, axis: TimeAxis, top: f64, longest: f64) {
    let step = tick_step(longest, MOST_PARTS.1);
    let mut value = 0.0;
    while value <= longest {
        let at = y(top, value, longest);
        line(svg, (EDGES.0, at), (EDGES.1, at));
        anchored(svg, (EDGES.0 - 8.0, at + 4.0), "end", &format!("{value}"));
        value += step;
    }
    let step = tick_step(axis.end_ms + BEFORE_MS, MOST_PARTS.0);
    // Adding 0 turns -0 into 0.
    let mut value = (-BEFORE_MS / step).ceil() * step + 0.0;
    while value <= axis.end_ms {
        let at = axis.x(value);
        line(svg, (at, top), (at, top + HEIGHT));
        anchored(svg, (at, top + HEIGHT + 17.0), "middle", &format!("{value}"));
        value += step;
    }
}

/// Shades the longest time without a reply.
fn gap(svg: &mut String, axis: TimeAxis, top: f64, report: &EchoReport) {
    let from = axis.milliseconds(report.max_gap_at_unix_ns);
    let (left, right) = (axis.x(from), axis.x(from + report.max_gap_ms));
    let _ = writeln!(
        svg,
        "<rect class=\"gap\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{HEIGHT:.1}\"/>",
        right - left
    );
}

/// Draws dots as strokes of length 0 in one path, which is a tenth of the text of as many circles.
fn dots(svg: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>) {
    let _ = write!(svg, "<path class=\"points {class}\" d=\"");
    for (x, y) in points {
        let _ = write!(svg, "M{x:.1} {y:.1}h0");
    }
    svg.push_str("\"/>\n");
}

fn y(top: f64, rtt: f64, longest: f64) -> f64 {
    top + HEIGHT - rtt / longest * HEIGHT
}

/// Returns a step of 1, 2 or 5 times a power of ten that divides `range` into at most `most` whole parts.
fn tick_step(range: f64, most: f64) -> f64 {
    let rough = range / most;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line class=\"grid\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), class: &str, text: &str) {
    let _ =
        writeln!(svg, "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>", at.0, at.1);
}

fn anchored(svg: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"minor\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
        at.0, at.1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_divide_a_range_into_few_parts() {
        for (range, step) in [(5.0, 1.0), (30.0, 10.0), (84.0, 20.0), (500.0, 100.0)] {
            assert_eq!(tick_step(range, 5.0), step, "{range}");
        }
    }

    #[test]
    fn every_latency_in_the_range_is_one_dot() {
        let origin: u64 = 1_700_000_000_000_000_000;
        let latency = |ms: i64, rtt| Latency {
            sent_unix_ns: origin.saturating_add_signed(ms * 1_000_000),
            ms: rtt,
        };
        let report = EchoReport {
            max_gap_at_unix_ns: origin,
            max_gap_ms: 80.0,
            latencies: vec![
                latency(-1000, 0.3),
                latency(-100, 0.3),
                latency(10, 70.0),
                latency(9000, 0.3),
            ],
            ..EchoReport::default()
        };
        let svg = draw(&report, &report);
        assert_eq!(svg.matches("h0").count(), 4, "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("no reply for 80 ms"));
    }
}
