//! One kernel packet queue (NFQUEUE, `net/netfilter/nfnetlink_queue.c`) and its messages.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::MAX_HELD;
use crate::netlink::attribute::put;
use crate::netlink::message::{Message, append, request_ack, set_sequence};
use crate::netlink::nfnetlink::{Subsystem, attributes, nfgenmsg};
use crate::netlink::{Connection, Malformed, Options, Protocol, Socket, SocketError};

/// Verdicts (`NF_DROP`, `NF_ACCEPT`).
pub(super) const DROP: u32 = 0;
/// See [`DROP`].
pub(super) const ACCEPT: u32 = 1;

/// Bytes of notifications that may wait to be read: one takes about 800 with the kernel's own
/// bookkeeping, and there are at most as many as packets held.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How soon the reading thread notices that the queue was unbound without an acknowledgement.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// An ID behind that of every held packet. A batch verdict covers all IDs up to the given one; IDs
/// are compared with wrap-around, and counted from 1 for each queue.
const ALL: u32 = i32::MAX as u32;
/// How often the closing datagram accepts all before it opens the queue. Each round finds only the
/// packets that came during the one before.
const CLOSING_ROUNDS: usize = 3;

/// Sequence number of the request that unbinds the queue. Verdicts have 0.
const UNBINDING: u32 = u32::MAX;

/// A bound queue, shared by the thread that reads its notifications and the one that sends
/// verdicts.
pub(super) struct Queue {
    socket: Socket,
    number: u16,
    /// ID of the newest packet that the kernel reported.
    newest: AtomicU32,
    /// ID up to which packets have a verdict.
    decided: AtomicU32,
    peak: AtomicU64,
    ended: AtomicBool,
}

impl Queue {
    /// Binds a queue and configures it: metadata only, large packets whole, the longest queue.
    ///
    /// The kernel refuses with EPERM or EBUSY if the number is taken.
    pub(super) fn bind(number: u16) -> Result<Self, SocketError> {
        let options = Options {
            receive_buffer: Some(RECEIVE_BUFFER),
            timeout: READ_TIMEOUT,
            no_enobufs: true,
            groups: &[],
        };
        let mut connection = Connection::with(Protocol::Netfilter, options)?;
        let mut config = |fill: &dyn Fn(&mut Vec<u8>)| {
            let mut request = Vec::new();
            append_config(&mut request, number, fill);
            connection.execute(&mut request).map_err(|refused| refused.source)
        };
        config(&|body| put_command(body, libc::NFQNL_CFG_CMD_BIND))?;
        config(&|body| {
            put(body, attribute(libc::NFQA_CFG_PARAMS), &[0, 0, 0, 0, mode_metadata()]);
            put(body, attribute(libc::NFQA_CFG_QUEUE_MAXLEN), &MAX_HELD.to_be_bytes());
            put_flags(body, libc::NFQA_CFG_F_GSO, libc::NFQA_CFG_F_GSO);
        })?;
        // The release depends on these flags, so they are tried now, while a refusal does no harm.
        config(&|body| put_flags(body, libc::NFQA_CFG_F_FAIL_OPEN, libc::NFQA_CFG_F_FAIL_OPEN))?;
        config(&|body| put_flags(body, 0, libc::NFQA_CFG_F_FAIL_OPEN))?;
        Ok(Self {
            socket: connection.into_socket(),
            number,
            newest: AtomicU32::new(0),
            decided: AtomicU32::new(0),
            peak: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Returns the ID of the newest packet; IDs are consecutive from 1.
    pub(super) fn newest(&self) -> u32 {
        self.newest.load(Ordering::Acquire)
    }

    /// Returns the most packets that were seen waiting at a time.
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Sends a verdict for all packets up to an ID. They have gone on when this returns.
    pub(super) fn verdict(&self, verdict: u32, up_to: u32) -> Result<(), SocketError> {
        let mut request = Vec::with_capacity(32);
        append_verdict(&mut request, self.number, verdict, up_to);
        self.socket.send(&request)?;
        self.decided.store(up_to.min(self.newest()), Ordering::Release);
        Ok(())
    }

    /// Sends a verdict for all packets in the queue.
    pub(super) fn verdict_all(&self, verdict: u32) -> Result<(), SocketError> {
        self.verdict(verdict, ALL)
    }

    /// Makes the queue pass packets without waiting from now on, after those that wait.
    pub(super) fn open_up(&self) -> Result<(), SocketError> {
        let mut request = Vec::with_capacity(256);
        append_config(&mut request, self.number, &|body| {
            put_flags(body, libc::NFQA_CFG_F_FAIL_OPEN, libc::NFQA_CFG_F_FAIL_OPEN);
        });
        for _ in 0..CLOSING_ROUNDS {
            append_verdict(&mut request, self.number, ACCEPT, ALL);
        }
        append_config(&mut request, self.number, &|body| {
            put(body, attribute(libc::NFQA_CFG_QUEUE_MAXLEN), &[0; 4]);
        });
        append_verdict(&mut request, self.number, ACCEPT, ALL);
        self.socket.send(&request)
    }

    /// Unbinds the queue. The kernel drops the packets that are still in it.
    pub(super) fn unbind(&self) -> Result<(), SocketError> {
        let mut request = Vec::new();
        append_config(&mut request, self.number, &|body| {
            put_command(body, libc::NFQNL_CFG_CMD_UNBIND);
        });
        set_sequence(&mut request, UNBINDING);
        request_ack(&mut request);
        self.ended.store(true, Ordering::Release);
        self.socket.send(&request)
    }

    /// Reads notifications until the queue is unbound, on a thread of its own.
    pub(super) fn read_until_unbound(&self) {
        let mut buffer = Socket::buffer();
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(messages) => {
                    for message in messages.map_while(Result::ok) {
                        if self.note(&message) {
                            return;
                        }
                    }
                }
                Err(SocketError::Receive(errno)) => {
                    tracing::error!(queue = self.number, %errno, "cannot read a packet queue");
                    return;
                }
                Err(_) if self.ended.load(Ordering::Acquire) => return,
                // A timeout means that nothing came. Other errors concern single notifications,
                // without which packets are released all the same.
                Err(_) => {}
            }
        }
    }

    /// Handles a message; returns whether it is the last one.
    fn note(&self, message: &Message<'_>) -> bool {
        match message {
            Message::Data { kind, payload, .. }
                if *kind == Subsystem::Queue.kind(libc::NFQNL_MSG_PACKET) =>
            {
                if let Ok(id) = packet_id(payload) {
                    self.newest.store(id, Ordering::Release);
                    let waiting = id.saturating_sub(self.decided.load(Ordering::Acquire));
                    self.peak.fetch_max(waiting.into(), Ordering::Relaxed);
                }
                false
            }
            Message::Ack { sequence } | Message::Refused { sequence, .. } => *sequence == UNBINDING,
            // The kernel refuses verdicts on an empty queue with ENOENT; that is expected.
            _ => false,
        }
    }
}

/// Parses a packet's ID from the payload of a queue's notification with its nfnetlink header.
///
/// # Errors
/// [`Malformed`] if there is none.
pub fn packet_id(payload: &[u8]) -> Result<u32, Malformed> {
    for found in attributes(payload)? {
        let found = found?;
        if found.kind == attribute(libc::NFQA_PACKET_HDR) {
            // struct nfqnl_msg_packet_hdr: be32 id, be16 protocol, u8 hook, packed.
            let [a, b, c, d, ..] = found.bytes::<7>()?;
            return Ok(u32::from_be_bytes([a, b, c, d]));
        }
    }
    Err(Malformed("a queued packet without an id"))
}

/// Converts a constant that libc has as `int`; all are small.
const fn attribute(constant: i32) -> u16 {
    constant as u16
}

fn mode_metadata() -> u8 {
    libc::NFQNL_COPY_META.to_le_bytes()[0]
}

fn append_config(request: &mut Vec<u8>, number: u16, fill: &dyn Fn(&mut Vec<u8>)) {
    let kind = Subsystem::Queue.kind(libc::NFQNL_MSG_CONFIG);
    append(request, kind, 0, &nfgenmsg(0, number), fill);
}

fn append_verdict(request: &mut Vec<u8>, number: u16, verdict: u32, up_to: u32) {
    let kind = Subsystem::Queue.kind(libc::NFQNL_MSG_VERDICT_BATCH);
    append(request, kind, 0, &nfgenmsg(0, number), |body| {
        let header = [verdict.to_be_bytes(), up_to.to_be_bytes()].concat();
        put(body, attribute(libc::NFQA_VERDICT_HDR), &header);
    });
}

fn put_command(body: &mut Vec<u8>, command: i32) {
    // struct nfqnl_msg_config_cmd: u8 command, u8 padding, be16 family (unused since 3.8).
    put(body, attribute(libc::NFQA_CFG_CMD), &[command.to_le_bytes()[0], 0, 0, 0]);
}

fn put_flags(body: &mut Vec<u8>, flags: i32, mask: i32) {
    put(body, attribute(libc::NFQA_CFG_MASK), &mask.to_be_bytes());
    put(body, attribute(libc::NFQA_CFG_FLAGS), &flags.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::Messages;
    use crate::netlink::nfnetlink::NFGENMSG;

    fn notification(id: u32) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0x6d, 0x00];
        put(&mut bytes, 3, &[0, 0, 0, 1]);
        let header = [&id.to_be_bytes()[..], &[8, 0, 0]].concat();
        put(&mut bytes, attribute(libc::NFQA_PACKET_HDR), &header);
        bytes
    }

    #[test]
    fn the_id_is_found_among_other_attributes() {
        assert_eq!(packet_id(&notification(0x0102_0304)), Ok(0x0102_0304));
    }

    #[test]
    fn broken_notifications_are_refused() {
        let whole = notification(7);
        for end in 0..whole.len() - 1 {
            assert!(packet_id(&whole[..end]).is_err(), "cut at {end}");
        }
        let mut short = vec![0; NFGENMSG];
        put(&mut short, attribute(libc::NFQA_PACKET_HDR), &[0, 0, 0, 1]);
        assert!(packet_id(&short).is_err());
    }

    #[test]
    fn a_verdict_names_queue_verdict_and_last_id() {
        let mut bytes = Vec::new();
        append_verdict(&mut bytes, 0x6d01, ACCEPT, 99);
        let Some(Ok(Message::Data { kind, payload, .. })) = Messages::new(&bytes).next() else {
            panic!("no message")
        };
        assert_eq!(kind, 0x0303);
        assert_eq!(payload[..4], [0, 0, 0x6d, 0x01]);
        assert_eq!(payload[8..], [0, 0, 0, 1, 0, 0, 0, 99]);
    }
}
