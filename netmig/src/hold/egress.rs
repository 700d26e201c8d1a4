//! The egress device of released packets, watched so that it gets no more packets than it takes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Most packets on their way into the device at a time. WireGuard in the kernel queues 1,024 for a
/// peer and drops further ones (`MAX_QUEUED_PACKETS` in `drivers/net/wireguard/queueing.h`);
/// `wireguard-go` without a processor queues as many as its device does.
const WINDOW: u64 = 512;
/// A device that has taken nothing for this long is not where the packets go, or they have been
/// dropped.
const PATIENCE: Duration = Duration::from_millis(10);

/// A tunnel's device, watched while held packets are released into it.
///
/// The kernel counts a packet of a device when it has been taken: when `wireguard-go` has read it
/// (`tun_put_user`), or WireGuard has sent it encrypted (`iptunnel_xmit_stats`).
#[derive(Debug)]
pub struct Egress {
    counter: File,
}

impl Egress {
    /// Opens the counter of the interface of that name.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        File::open(format!("/sys/class/net/{interface}/statistics/tx_packets"))
            .map(|counter| Self { counter })
    }

    /// Returns how many packets have left by the device.
    fn taken(&self) -> io::Result<u64> {
        let mut bytes = [0; 24];
        let length = self.counter.read_at(&mut bytes, 0)?;
        let text = str::from_utf8(&bytes[..length]).unwrap_or_default();
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Starts counting released packets.
    pub(super) fn watch(self) -> Watch {
        let taken = self.taken().ok();
        let window = taken.map(|taken| Window { taken, under_way: 0, moved: Instant::now() });
        Watch { outlet: self, window }
    }
}

/// How many packets may be released into a device.
pub(super) struct Watch {
    outlet: Egress,
    window: Option<Window>,
}

impl Watch {
    /// Returns how many more packets the device can be given now.
    pub(super) fn room(&mut self) -> u32 {
        match (&mut self.window, self.outlet.taken()) {
            (Some(window), Ok(taken)) => window.room(taken, Instant::now()),
            // A device that cannot be watched any more is no reason to keep packets.
            _ => u32::MAX,
        }
    }

    /// Adds packets that have been released.
    pub(super) fn note(&mut self, packets: u32) {
        if let Some(window) = &mut self.window {
            window.under_way += u64::from(packets);
        }
    }
}

struct Window {
    taken: u64,
    under_way: u64,
    /// When the device last took a packet.
    moved: Instant,
}

impl Window {
    fn room(&mut self, taken: u64, now: Instant) -> u32 {
        let since = taken.saturating_sub(self.taken);
        self.taken = taken;
        self.under_way = self.under_way.saturating_sub(since);
        if since > 0 || self.under_way == 0 {
            self.moved = now;
        } else if now.saturating_duration_since(self.moved) >= PATIENCE {
            (self.under_way, self.moved) = (0, now);
        }
        u32::try_from(WINDOW.saturating_sub(self.under_way)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_no_more_than_it_takes() {
        let start = Instant::now();
        let mut window = Window { taken: 1_000, under_way: 0, moved: start };
        assert_eq!(u64::from(window.room(1_000, start)), WINDOW);
        window.under_way += WINDOW;
        assert_eq!(window.room(1_000, start), 0);
        assert_eq!(window.room(1_100, start), 100);
        window.under_way += 100;
        assert_eq!(window.room(1_100, start + PATIENCE / 2), 0);
        // What others send by the same device does not make a window larger than it is.
        assert_eq!(u64::from(window.room(90_000, start + PATIENCE / 2)), WINDOW);
    }

    #[test]
    fn packets_that_never_reach_the_device_do_not_stop_the_others() {
        let start = Instant::now();
        let mut window = Window { taken: 5, under_way: WINDOW, moved: start };
        assert_eq!(window.room(5, start + PATIENCE / 2), 0);
        assert_eq!(u64::from(window.room(5, start + PATIENCE)), WINDOW);
        window.under_way += WINDOW;
        assert_eq!(window.room(5, start + PATIENCE + PATIENCE / 2), 0, "patience begins anew");
    }

    #[test]
    fn a_device_that_is_not_there_is_told() {
        assert!(Egress::open("netmig-none").is_err());
        assert!(Egress::open("lo").unwrap().taken().is_ok());
    }
}
