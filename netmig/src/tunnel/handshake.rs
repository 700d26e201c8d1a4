//! Sessions: making sure that the two ends of a tunnel receive each other's packets.
//!
//! WireGuard is silent until there is a packet to send. A firewall between the hosts would show
//! only then: too late, if that packet is a client's.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::Handle;

use super::output_trace::OutputTrace;
use super::{Error, Kind, RemoteEnd, Status, config, device};
use crate::routing::EVERYBODY;

/// Age after which WireGuard renews a session (REKEY_AFTER_TIME).
const SESSION_AGE: Duration = Duration::from_secs(120);
/// WireGuard repeats a lost handshake initiation after 5 s (REKEY_TIMEOUT), plus up to a third of a
/// second; this covers two of them.
const ANSWER: Duration = Duration::from_secs(11);
/// A handshake takes a round trip and milliseconds of computation. After this time, initiations
/// have crossed or were lost. The limit doubles with each restart: an end that has restarted no
/// longer accepts an answer to the earlier initiation, and on a busy machine the answer may just be
/// late.
const CROSSED: Duration = Duration::from_millis(400);
/// The same for the end with the greater key. Ends that restart at the same moment cross each other again.
const CROSSED_HERE: Duration = Duration::from_millis(650);
const POLL: Duration = Duration::from_millis(2);
/// How long an end sends to one from which nothing comes before it restarts the handshake; doubles
/// each time. The far end may begin to send that much later.
const UNHEARD: Duration = Duration::from_secs(1);
/// The same for the end with the greater key, so that not both restart at once.
const UNHEARD_HERE: Duration = Duration::from_millis(1600);
/// How long an end hears nothing before it looks whether this host drops what it sends.
const TRACED_AFTER: Duration = Duration::from_millis(1500);
/// Interval between the packets of [`confirm`].
const PULSE: Duration = Duration::from_millis(20);
/// Packets that follow after something came from the far end, so that it receives some even if
/// others are lost.
const ECHOES: usize = 4;
/// Further packets, for a far end that begins to listen later.
const LATE_ECHOES: usize = 50;
const LATE_PULSE: Duration = Duration::from_millis(100);
/// The discard port, on the all-hosts address: every host drops such packets quietly, and none
/// forwards them.
pub(super) const DESTINATION: (Ipv4Addr, u16) = (EVERYBODY, 9);

/// Waits for a session on the interface, and sends a packet that makes WireGuard start one if
/// needed.
///
/// Initiations that cross each other leave both ends waiting, and WireGuard repeats one only after
/// seconds. If there never was a session, this end restarts the handshake long before.
pub(super) async fn establish(device: &device::Device, interface: &str) -> Result<(), Error> {
    let mut greeted: Option<Instant> = None;
    let mut patience = None;
    let mut suspicion = Suspicion::begin();
    let wait = async {
        loop {
            let status = config::status(interface, device.kind).await?;
            let patience =
                patience.get_or_insert(if is_greater(&status) { CROSSED_HERE } else { CROSSED });
            if status.last_handshake.is_some_and(|time| is_current(time, SystemTime::now())) {
                return Ok(());
            }
            suspicion.look(interface, status.port)?;
            let overdue = greeted.is_some_and(|at| at.elapsed() > *patience);
            if let (true, None, Some(remote)) = (overdue, status.last_handshake, &status.remote) {
                config::forget_session(interface, device.kind, remote).await?;
                greeted = None;
                *patience *= 2;
            }
            if greeted.is_none() {
                greet_peer(interface, status.port)?;
                greeted = Some(Instant::now());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    answered(interface, device.kind, wait).await
}

/// Waits until packets come out of the interface while the far end does the same.
///
/// A session at one end does not prove one at the other: the end that answered an initiation may
/// use the new key only after a first packet under it (WireGuard's key confirmation), and if that
/// packet is lost it initiates a handshake itself and repeats it after seconds. So nothing is sent
/// before there is a session, and then packets go both ways until each end has received some.
/// Initiations do not count: those that cross each other leave a session at neither end, or one
/// that carries packets in one direction only. An end that has never received a packet therefore
/// restarts the handshake. One that has is left alone, for packets of flows may be in flight under
/// its keys.
pub(super) async fn confirm(
    handle: &Handle,
    device: &device::Device,
    interface: &str,
) -> Result<(), Error> {
    let wait = async {
        let mut spoken: Option<Instant> = None;
        let mut patience = None;
        let mut suspicion = Suspicion::begin();
        loop {
            let session = Session::of(device, interface).await?;
            suspicion.look(interface, session.port)?;
            if session.is_current {
                greet_peer(interface, session.port)?;
                let received =
                    device::find(handle, interface).await?.map_or(0, |now| now.received());
                if received > device.received() {
                    break;
                }
                let patience = patience.get_or_insert(session.patience);
                let since = *spoken.get_or_insert_with(Instant::now);
                if let (0, true, Some(remote)) =
                    (received, since.elapsed() > *patience, &session.remote)
                {
                    tracing::debug!("{interface}: nothing comes; restarting the handshake");
                    config::forget_session(interface, device.kind, remote).await?;
                    establish(device, interface).await?;
                    *patience *= 2;
                    spoken = None;
                }
            }
            tokio::time::sleep(PULSE).await;
        }
        config::keep_alive(interface, device.kind).await?;
        let interface = interface.to_owned();
        let pulses = [PULSE; ECHOES].into_iter().chain([LATE_PULSE; LATE_ECHOES]);
        tokio::spawn(async move {
            for pulse in pulses {
                tokio::time::sleep(pulse).await;
                // The tunnel may be gone by now.
                if greet(&interface).is_err() {
                    break;
                }
            }
        });
        Ok(())
    };
    answered(interface, device.kind, wait).await
}

/// The state that [`confirm`] needs to know.
struct Session {
    /// Whether packets may be sent: there is a session, where one is needed.
    is_current: bool,
    /// The peer of a handshake.
    remote: Option<RemoteEnd>,
    /// How long nothing may come before the handshake is restarted.
    patience: Duration,
    /// The tunnel's own port; 0 without WireGuard.
    port: u16,
}

impl Session {
    async fn of(device: &device::Device, interface: &str) -> Result<Self, Error> {
        if device.kind == Kind::Direct {
            return Ok(Self { is_current: true, remote: None, patience: UNHEARD, port: 0 });
        }
        let status = config::status(interface, device.kind).await?;
        let is_current =
            status.last_handshake.is_some_and(|time| is_current(time, SystemTime::now()));
        let patience = if is_greater(&status) { UNHEARD_HERE } else { UNHEARD };
        Ok(Self { is_current, remote: status.remote, patience, port: status.port })
    }
}

/// Nothing has come for a while: is it this host that drops what it sends?
struct Suspicion {
    since: Instant,
    trace: Option<OutputTrace>,
    is_traced: bool,
}

impl Suspicion {
    fn begin() -> Self {
        Self { since: Instant::now(), trace: None, is_traced: false }
    }

    /// Fails if a rule of this host has dropped what it sends by the tunnel with this port.
    fn look(&mut self, interface: &str, port: u16) -> Result<(), Error> {
        if !self.is_traced && self.since.elapsed() > TRACED_AFTER {
            self.is_traced = true;
            self.trace = OutputTrace::begin(interface, port);
        }
        self.trace.as_mut().map_or(Ok(()), |trace| trace.check(interface))
    }
}

/// Returns whether this end has the greater key of the two.
fn is_greater(status: &Status) -> bool {
    status.remote.as_ref().is_some_and(|remote| status.public_key > remote.public_key)
}

async fn answered(
    interface: &str,
    kind: Kind,
    wait: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    tokio::time::timeout(ANSWER, wait)
        .await
        .unwrap_or_else(|_| Err(Error::NoAnswer { interface: interface.to_owned(), kind }))
}

/// Returns whether a handshake is recent. A clock set back puts a handshake into the future, which
/// proves nothing.
fn is_current(handshake: SystemTime, now: SystemTime) -> bool {
    now.duration_since(handshake).is_ok_and(|age| age < SESSION_AGE)
}

pub(super) fn greet(interface: &str) -> Result<(), Error> {
    send_through(interface).map_err(|source| Error::Settings {
        action: "send a packet to try",
        interface: interface.to_owned(),
        source,
    })
}

/// Greets, and names the rule of this host that drops the greeting, if one does: the kernel refuses
/// such a packet with `EPERM`.
fn greet_peer(interface: &str, port: u16) -> Result<(), Error> {
    let greeted = greet(interface);
    let Err(Error::Settings { source, .. }) = &greeted else { return greeted };
    if source.raw_os_error() != Some(libc::EPERM) {
        return greeted;
    }
    let trace = OutputTrace::begin(interface, port);
    // Once more, for the trace.
    drop(send_through(interface));
    let rule = trace.and_then(|mut trace| trace.dropped());
    Err(Error::OutputBlocked { interface: interface.to_owned(), rule })
}

/// Sends one packet through the interface, without any route.
fn send_through(interface: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
    socket.send_to(&[0], DESTINATION)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_future_handshakes_are_no_session() {
        let now = SystemTime::now();
        assert!(is_current(now - Duration::from_secs(1), now));
        assert!(!is_current(now - SESSION_AGE, now));
        assert!(!is_current(now + Duration::from_secs(1), now));
    }
}
