//! TCP connections whose two ends are in the container.
//!
//! The network of a copy is cut off while CRIU restores it, but its loopback device is not. CRIU sends data that a socket had
//! not sent yet anew, when it makes the socket (`libsoccr_restore_queue`). If the socket of the other end is not there
//! yet, the kernel resets the connection, and the restore fails. So such data are declared to have been sent: CRIU
//! puts them into the queue of a socket that is silent, and the kernel sends them again after the restore, as it does with
//! what gets lost.
//!
//! In a dump CRIU silences one socket after another. A packet that comes to a socket already dumped, and is acknowledged
//! before the other end is dumped, is in neither image. That is found by the sequence numbers.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::readdress::{FILES, INTERNET_SOCKET};
use super::tmpfs::io_error;
use super::{Chunk, Error};
use crate::protobuf::{MAGIC, Value, fields, put_varint, take, take_field, take_varint, take_word};

/// Two magic numbers and the length of the entry.
const HEAD: usize = 12;
/// Most bytes that this and the entry have: some twenty numbers.
const MOST: usize = 256;
/// Numbers of fields (CRIU's `tcp-stream.proto`).
const RECEIVED: u64 = 2;
const QUEUED: u64 = 3;
const QUEUED_TO: u64 = 4;
const UNSENT: u64 = 12;
/// Numbers of fields (CRIU's `sk-inet.proto`).
const INODE: u64 = 2;
const PROTOCOL: u64 = 5;
const STATE: u64 = 6;
const OWN_PORT: u64 = 7;
const FAR_PORT: u64 = 8;
const OWN_ADDRESS: u64 = 11;
const FAR_ADDRESS: u64 = 12;
/// IPPROTO_TCP, and the state of an established connection (`include/net/tcp_states.h`).
const TCP: u64 = 6;
const ESTABLISHED: u64 = 1;

/// Looks at connections while their images arrive: there may be ten thousand of them.
#[derive(Debug, Default)]
pub struct InnerConnections {
    /// The beginnings of the images of queues, by the images' names.
    heads: HashMap<String, Vec<u8>>,
}

/// A connection's socket, as the image of its queues has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stream {
    /// The sequence number that it expects next.
    received: u32,
    /// The sequence number of what the other end has not acknowledged.
    unacknowledged: u32,
    /// Bytes that have never been sent.
    unsent: u64,
}

/// Where a socket is connected, and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    own: SocketAddr,
    far: SocketAddr,
    state: u64,
}

impl InnerConnections {
    /// Takes a piece of an image.
    pub fn take(&mut self, Chunk { name, offset, bytes }: &Chunk) {
        if inode(name).is_none() {
            return;
        }
        let head = match *offset {
            // It may be sent from its beginning once more.
            0 => {
                let head = self.heads.entry(name.clone()).or_default();
                head.clear();
                head
            }
            _ => match self.heads.get_mut(name) {
                Some(head) if head.len() < MOST => head,
                _ => return,
            },
        };
        head.extend(bytes.iter().take(MOST - head.len()));
    }

    /// Makes these connections ready for the restore. Returns how many images were changed. The directory holds whole images.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Differs`] for an image that is none; [`Error::InMotion`].
    pub fn settle(&self, directory: &Path) -> Result<usize, Error> {
        let streams: HashMap<u64, (&str, Stream)> = self
            .heads
            .iter()
            .filter_map(|(name, head)| Some((inode(name)?, (name.as_str(), Stream::read(head)?))))
            .collect();
        if streams.len() < 2 {
            return Ok(0);
        }
        let path = directory.join(FILES);
        let image = fs::read(&path).map_err(io_error("read", &path))?;
        let unknown = |name: &str| Error::Differs { name: name.to_owned(), problem: "format" };
        let ends = connected(&image).ok_or_else(|| unknown(FILES))?;
        let by_ends: HashMap<(SocketAddr, SocketAddr), u64> =
            ends.iter().map(|(inode, ends)| ((ends.own, ends.far), *inode)).collect();
        let mut settled = 0;
        for (inode, (name, stream)) in &streams {
            let Some(here) = ends.get(inode) else { continue };
            let Some(other) = by_ends.get(&(here.far, here.own)) else { continue };
            let (Some(there), Some((_, other))) = (ends.get(other), streams.get(other)) else {
                continue;
            };
            let are_open = here.state == ESTABLISHED && there.state == ESTABLISHED;
            if are_open && is_after(stream.unacknowledged, other.received) {
                return Err(Error::InMotion { own: here.own, far: here.far });
            }
            if stream.unsent > 0 {
                let path = directory.join(name);
                let image = fs::read(&path).map_err(io_error("read", &path))?;
                let sent = as_sent(&image).ok_or_else(|| unknown(name))?;
                fs::write(&path, sent).map_err(io_error("write", &path))?;
                settled += 1;
            }
        }
        Ok(settled)
    }
}

/// Returns the inode of the socket whose queues are in the image of that name.
fn inode(name: &str) -> Option<u64> {
    let inode = name.strip_prefix("tcp-stream-")?.strip_suffix(".img")?;
    u64::from_str_radix(inode, 16).ok()
}

impl Stream {
    /// Reads the beginning of an image of queues.
    fn read(head: &[u8]) -> Option<Self> {
        let mut numbers = [0_u64; 4];
        let wanted = [RECEIVED, QUEUED, QUEUED_TO, UNSENT];
        for (number, value) in fields(entry(head)?) {
            let place = wanted.iter().position(|wanted| *wanted == number);
            if let (Some(place), Value::Varint(value)) = (place, value) {
                numbers[place] = value;
            }
        }
        let [received, queued, queued_to, unsent] = numbers;
        // Sequence numbers have 32 bits and wrap around (RFC 9293, 3.4).
        Some(Self {
            received: received as u32,
            unacknowledged: (queued_to as u32).wrapping_sub(queued as u32),
            unsent,
        })
    }
}

/// Returns whether a sequence number is after another one.
fn is_after(one: u32, other: u32) -> bool {
    let ahead = one.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

/// Returns the entry of an image of queues.
fn entry(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MAGIC {
        return None;
    }
    image.get(HEAD..HEAD.checked_add(word(8)? as usize)?)
}

/// Returns an image of queues with nothing unsent.
fn as_sent(image: &[u8]) -> Option<Vec<u8>> {
    let old = entry(image)?;
    // Of a field that is there twice the last one counts (Protocol Buffers, encoding).
    let mut new = old.to_vec();
    put_varint(&mut new, UNSENT << 3);
    put_varint(&mut new, 0);
    let mut whole = image.get(..8)?.to_vec();
    whole.extend(u32::try_from(new.len()).ok()?.to_le_bytes());
    whole.extend(new);
    whole.extend(image.get(HEAD + old.len()..)?);
    Some(whole)
}

/// Returns the TCP sockets of `files.img` by their inodes.
fn connected(mut image: &[u8]) -> Option<HashMap<u64, Ends>> {
    let mut all = HashMap::new();
    if take(&mut image, 8)?[..4] != MAGIC.to_le_bytes() {
        return None;
    }
    while !image.is_empty() {
        let length = take_word(&mut image)?;
        let mut entry = take(&mut image, length.into())?;
        while !entry.is_empty() {
            if let (INTERNET_SOCKET, Value::Bytes(socket)) = take_field(&mut entry)? {
                all.extend(ends(socket));
            }
        }
    }
    Some(all)
}

/// Returns a TCP socket's inode and ends; `None` for other sockets.
fn ends(socket: &[u8]) -> Option<(u64, Ends)> {
    let (mut inode, mut protocol, mut state) = (0, 0, 0);
    let (mut ports, mut words) = ([0_u16; 2], [const { Vec::new() }; 2]);
    for (number, value) in fields(socket) {
        match (number, value) {
            (INODE, Value::Varint(value)) => inode = value,
            (PROTOCOL, Value::Varint(value)) => protocol = value,
            (STATE, Value::Varint(value)) => state = value,
            (OWN_PORT, Value::Varint(value)) => ports[0] = u16::try_from(value).ok()?,
            (FAR_PORT, Value::Varint(value)) => ports[1] = u16::try_from(value).ok()?,
            (OWN_ADDRESS, value) => put_words(&mut words[0], value)?,
            (FAR_ADDRESS, value) => put_words(&mut words[1], value)?,
            _ => {}
        }
    }
    let [own, far] = words.map(|words| address(&words));
    let (own, far) = (SocketAddr::new(own?, ports[0]), SocketAddr::new(far?, ports[1]));
    (protocol == TCP).then_some((inode, Ends { own, far, state }))
}

/// Adds the words of a field, of which several may stand in one (Protocol Buffers, packed).
fn put_words(words: &mut Vec<u32>, value: Value<'_>) -> Option<()> {
    match value {
        Value::Varint(word) => words.push(u32::try_from(word).ok()?),
        Value::Bytes(mut packed) => {
            while !packed.is_empty() {
                words.push(u32::try_from(take_varint(&mut packed)?).ok()?);
            }
        }
        Value::Fixed(_) => return None,
    }
    Some(())
}

/// Returns an address, whose words are as they are in memory.
fn address(words: &[u32]) -> Option<IpAddr> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if let Ok(octets) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::put_field;

    const CLIENT: u64 = 0x1a;
    const SERVER: u64 = 0x1b;

    fn queues(received: u32, queued: u64, queued_to: u32, unsent: u64) -> Vec<u8> {
        let mut entry = Vec::new();
        let values = [(RECEIVED, received.into()), (QUEUED, queued), (QUEUED_TO, queued_to.into())];
        for (number, value) in values.into_iter().chain([(UNSENT, unsent)]) {
            put_field(&mut entry, number, Value::Varint(value));
        }
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        image.extend((entry.len() as u32).to_le_bytes());
        image.extend(entry);
        image.extend(b"queue");
        image
    }

    fn socket(inode: u64, (own, own_port): (&str, u16), (far, far_port): (&str, u16)) -> Vec<u8> {
        let mut socket = Vec::new();
        let numbers = [
            (INODE, inode),
            (PROTOCOL, TCP),
            (STATE, ESTABLISHED),
            (OWN_PORT, own_port.into()),
            (FAR_PORT, far_port.into()),
        ];
        for (number, value) in numbers {
            put_field(&mut socket, number, Value::Varint(value));
        }
        for (number, address) in [(OWN_ADDRESS, own), (FAR_ADDRESS, far)] {
            let octets = match address.parse().unwrap() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            for chunk in octets.chunks(4) {
                let word = u32::from_ne_bytes(chunk.try_into().unwrap());
                put_field(&mut socket, number, Value::Varint(word.into()));
            }
        }
        let mut entry = Vec::new();
        put_field(&mut entry, INTERNET_SOCKET, Value::Bytes(&socket));
        entry
    }

    /// Writes the images of a client and a server of one container, of which the server speaks both families.
    fn settled(far: &str, client: Vec<u8>, server: Vec<u8>) -> (Result<usize, Error>, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let mut files = MAGIC.to_le_bytes().to_vec();
        files.extend([1, 2, 3, 4]);
        let server_address = format!("::ffff:{far}");
        for entry in [
            socket(CLIENT, ("127.0.0.1", 40_000), (far, 80)),
            socket(SERVER, (&server_address, 80), ("::ffff:127.0.0.1", 40_000)),
            socket(0x1c, ("0.0.0.0", 80), ("0.0.0.0", 0)),
        ] {
            files.extend((entry.len() as u32).to_le_bytes());
            files.extend(entry);
        }
        fs::write(directory.path().join(FILES), files).unwrap();
        let mut connections = InnerConnections::default();
        let names = [CLIENT, SERVER].map(|inode| format!("tcp-stream-{inode:x}.img"));
        for (name, image) in names.iter().zip([&client, &server]) {
            fs::write(directory.path().join(name), image).unwrap();
            // An image may come in pieces.
            for (offset, bytes) in [(0, &image[..15]), (15, &image[15..])] {
                let bytes = bytes.to_vec().into();
                connections.take(&Chunk { name: name.clone(), offset, bytes });
            }
        }
        let result = connections.settle(directory.path());
        (result, fs::read(directory.path().join(&names[0])).unwrap())
    }

    #[test]
    fn unsent_data_within_a_container_are_declared_sent() {
        let (result, image) =
            settled("127.0.0.1", queues(77, 900, 1_000, 400), queues(500, 0, 77, 0));
        assert_eq!(result.unwrap(), 1);
        assert!(image.ends_with(b"queue"));
        let stream = Stream::read(&image).unwrap();
        assert_eq!((stream.unsent, stream.received, stream.unacknowledged), (0, 77, 100));
    }

    #[test]
    fn data_for_others_stay_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let mut alone = InnerConnections::default();
        let bytes = queues(77, 900, 1_000, 400).into();
        alone.take(&Chunk { name: "tcp-stream-1a.img".to_owned(), offset: 0, bytes });
        assert_eq!(alone.settle(directory.path()).unwrap(), 0, "no files are read");
    }

    #[test]
    fn what_was_lost_in_the_dump_is_found() {
        // The server was dumped when it expected 500, and has acknowledged 600 since.
        let lost = settled("127.0.0.1", queues(77, 400, 1_000, 0), queues(500, 0, 77, 0));
        assert!(matches!(lost.0, Err(Error::InMotion { .. })), "{:?}", lost.0);
        // Numbers wrap around.
        let wrapped = settled("127.0.0.1", queues(77, 100, 50, 0), queues(u32::MAX, 0, 77, 0));
        assert_eq!(wrapped.0.unwrap(), 0);
        assert!(is_after(5, u32::MAX) && !is_after(u32::MAX, 5) && !is_after(5, 5));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert_eq!(inode("core-1.img"), None);
        let whole = queues(1, 1, 1, 1);
        for end in 0..HEAD + 8 {
            assert_eq!(Stream::read(&whole[..end]), None, "cut at {end}");
        }
        assert_eq!(connected(b"\x19\x43\x56\x54"), None);
    }
}
