//! The device by which packets that are let go leave, so that it gets no more than it takes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Most packets that are on their way into the device at a time. WireGuard in the kernel queues 1,024
/// for a peer and drops what comes then (`MAX_QUEUED_PACKETS` in `drivers/net/wireguard/queueing.h`);
/// `wireguard-go`, if it does not get the processor, as many as its device's queue takes.
const WINDOW: u64 = 512;
/// A device that has taken nothing for so long is not where the packets go, or they have been dropped.
const PATIENCE: Duration = Duration::from_millis(10);

/// A tunnel's device, watched while held packets are let go into it.
///
/// The kernel counts a packet of a device when whoever is behind it has taken it: `wireguard-go` has read
/// it (`tun_put_user`), or WireGuard has sent it encrypted (`iptunnel_xmit_stats`).
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

    /// Packets that have left by the device.
    fn taken(&self) -> io::Result<u64> {
        let mut bytes = [0; 24];
        let length = self.counter.read_at(&mut bytes, 0)?;
        let text = str::from_utf8(&bytes[..length]).unwrap_or_default();
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Begins to count what is let go.
    pub(super) fn watch(self) -> Watch {
        let taken = self.taken().ok();
        let window = taken.map(|taken| Window { taken, under_way: 0, moved: Instant::now() });
        Watch { outlet: self, window }
    }
}

/// How much may be let go into an outlet.
pub(super) struct Watch {
    outlet: Egress,
    window: Option<Window>,
}

impl Watch {
    /// How many more packets the device can be given now.
    pub(super) fn room(&mut self) -> u32 {
        match (&mut self.window, self.outlet.taken()) {
            (Some(window), Ok(taken)) => window.room(taken, Instant::now()),
            // A device that cannot be watched any more is no reason to keep packets.
            _ => u32::MAX,
        }
    }

    /// So many have been let go.
    pub(super) fn note(&mut self, packets: u32) {
        if let Some(window) = &mut self.window {
            window.under_way += u64::from(packets);
        }
    }
}

struct Window {
    taken: u64,
    under_way: u64,
    /// When the device took something last.
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
