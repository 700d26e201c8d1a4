//! What the shim and the process that stages say to each other.
//!
//! A frame is one byte of kind, four bytes of payload length (little endian) and the payload: a
//! sequence of fields, each four bytes of length and its bytes. Both ends come from the same
//! build, and the socket is in a directory that only root can enter; lengths are bounded all the
//! same.
//!
//! ```text
//! shim                               stage
//!  │ ── Hello{pid, runtime, argv} ──►  │   staged: podman has done its part
//!  │ ◄───────── Ready{images, …} ───   │   may be left out
//!  │ ── Waiting ────────────────────►  │   the runtime waits in front of CRIU, or takes long
//!  │ ◄──────────── Go{images, …} ───   │   or Abort, or end of file: exit 1
//!  │ ── Ended{status, elapsed} ─────►  │   the runtime has exited
//!  │ ◄─────────────────── Keep ─────   │   the copy is the container: never deleted from now on
//!  │ ◄───────────────── Finish ─────   │   exit 0, podman takes over; or Abort: delete, exit 1
//! ```
//! When the connection breaks after a successful `Ended`, the shim connects anew, until the lease
//! that `Go` granted runs out, and says `Hello` with the result in it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Largest payload, in bytes: a command line of the kernel's usual limit fits well.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes before the payload.
pub const HEADER: usize = 5;

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShim {
    /// It is there and waits.
    Hello(Hello),
    /// The runtime waits in front of CRIU, or is on its way there.
    Waiting,
    /// The runtime has exited.
    Ended(Ended),
}

/// The shim's first message on each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The shim's process ID.
    pub pid: u32,
    /// The real OCI runtime.
    pub runtime: PathBuf,
    /// The runtime's arguments, without its name.
    pub argv: Vec<OsString>,
    /// Present when the runtime has already restored the container.
    pub ended: Option<Ended>,
}

/// How the runtime's `restore` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit status; 128 plus the signal's number when it was killed.
    pub status: i32,
    /// From its start to its exit.
    pub elapsed: Duration,
}

/// What the shim is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToShim {
    /// Start the runtime, and have it wait in front of CRIU. What it needs of the images is there.
    Ready(Go),
    /// Restore.
    Go(Go),
    /// The copy is the container now: when the connection breaks, or time is over, exit with success.
    Keep,
    /// Exit with success: podman finishes its part.
    Finish,
    /// Delete what was restored and exit with an error.
    Abort,
}

/// What to restore from, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    /// Directory of CRIU's images.
    pub images: PathBuf,
    /// Directory for CRIU's log.
    pub work: PathBuf,
    /// Directory that stands in for `/etc/criu`.
    pub criu_config: PathBuf,
    /// How long a restored container is kept when the connection has broken.
    pub lease: Duration,
    /// Whether the memory follows ([`crate::lazy_pages`]).
    pub lazy_pages: bool,
}

impl FromShim {
    /// Returns the frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => {
                let mut fields = Fields::new(1);
                fields.number(u64::from(hello.pid));
                fields.ended(hello.ended);
                fields.bytes(hello.runtime.as_os_str().as_bytes());
                for arg in &hello.argv {
                    fields.bytes(arg.as_bytes());
                }
                fields.frame()
            }
            Self::Ended(ended) => {
                let mut fields = Fields::new(2);
                fields.ended(Some(*ended));
                fields.frame()
            }
            Self::Waiting => Fields::new(3).frame(),
        }
    }

    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for an unknown kind or missing or wrong fields.
    pub fn decode(kind: u8, payload: &[u8]) -> io::Result<Self> {
        let mut fields = Reader(payload);
        match kind {
            1 => {
                let pid = u32::try_from(fields.number()?).map_err(|_| invalid("process ID"))?;
                let ended = fields.ended()?;
                let runtime = fields.path()?;
                let mut argv = Vec::new();
                while !fields.0.is_empty() {
                    argv.push(fields.text()?);
                }
                Ok(Self::Hello(Hello { pid, runtime, argv, ended }))
            }
            2 => {
                let ended = fields.ended()?.ok_or_else(|| invalid("status"))?;
                fields.end()?;
                Ok(Self::Ended(ended))
            }
            3 => fields.end().map(|()| Self::Waiting),
            _ => Err(invalid("kind")),
        }
    }
}

impl ToShim {
    /// Returns the frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Go(go) | Self::Ready(go) => {
                let mut fields = Fields::new(if matches!(self, Self::Go(_)) { 16 } else { 19 });
                for path in [&go.images, &go.work, &go.criu_config] {
                    fields.bytes(path.as_os_str().as_bytes());
                }
                fields.number(millis(go.lease));
                fields.number(u64::from(go.lazy_pages));
                fields.frame()
            }
            Self::Keep => Fields::new(20).frame(),
            Self::Finish => Fields::new(17).frame(),
            Self::Abort => Fields::new(18).frame(),
        }
    }

    /// Reads a frame's payload.
    ///
    /// # Errors
    /// As [`FromShim::decode`].
    pub fn decode(kind: u8, payload: &[u8]) -> io::Result<Self> {
        let mut fields = Reader(payload);
        let message = match kind {
            16 => Self::Go(fields.go()?),
            19 => Self::Ready(fields.go()?),
            20 => Self::Keep,
            17 => Self::Finish,
            18 => Self::Abort,
            _ => return Err(invalid("kind")),
        };
        fields.end()?;
        Ok(message)
    }

    /// Reads one message.
    ///
    /// # Errors
    /// The reader's, and as [`FromShim::decode`]; `None` at the end of the stream.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        match from.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut payload = vec![0; payload_len(header)?];
        from.read_exact(&mut payload)?;
        Self::decode(header[0], &payload).map(Some)
    }
}

/// Returns the payload's length as a header tells it.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] above [`MAX_PAYLOAD`].
pub fn payload_len(header: [u8; HEADER]) -> io::Result<usize> {
    let [_, a, b, c, d] = header;
    usize::try_from(u32::from_le_bytes([a, b, c, d]))
        .ok()
        .filter(|len| *len <= MAX_PAYLOAD)
        .ok_or_else(|| invalid("length"))
}

/// Writes one message of the shim.
///
/// # Errors
/// The writer's.
pub fn send(to: &mut impl Write, message: &FromShim) -> io::Result<()> {
    to.write_all(&message.encode())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("shim message with a wrong {what}"))
}

/// A frame under construction.
struct Fields(Vec<u8>);

impl Fields {
    fn new(kind: u8) -> Self {
        Self(vec![kind, 0, 0, 0, 0])
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn ended(&mut self, ended: Option<Ended>) {
        let Some(ended) = ended else { return self.bytes(&[]) };
        let micros = u64::try_from(ended.elapsed.as_micros()).unwrap_or(u64::MAX);
        let mut bytes = ended.status.to_le_bytes().to_vec();
        bytes.extend_from_slice(&micros.to_le_bytes());
        self.bytes(&bytes);
    }

    fn frame(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - HEADER).unwrap_or(u32::MAX);
        self.0[1..HEADER].copy_from_slice(&len.to_le_bytes());
        self.0
    }
}

/// The fields that are left of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>().ok_or_else(|| invalid("field"))?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| invalid("field"))?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or_else(|| invalid("field"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let bytes = self.bytes()?.try_into().map_err(|_| invalid("number"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> io::Result<OsString> {
        Ok(OsString::from_vec(self.bytes()?.to_vec()))
    }

    fn path(&mut self) -> io::Result<PathBuf> {
        self.text().map(PathBuf::from)
    }

    fn ended(&mut self) -> io::Result<Option<Ended>> {
        let bytes = self.bytes()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let (status, micros) = bytes.split_first_chunk::<4>().ok_or_else(|| invalid("status"))?;
        let micros = micros.try_into().map_err(|_| invalid("status"))?;
        Ok(Some(Ended {
            status: i32::from_le_bytes(*status),
            elapsed: Duration::from_micros(u64::from_le_bytes(micros)),
        }))
    }

    fn go(&mut self) -> io::Result<Go> {
        Ok(Go {
            images: self.path()?,
            work: self.path()?,
            criu_config: self.path()?,
            lease: Duration::from_millis(self.number()?),
            lazy_pages: self.number()? != 0,
        })
    }

    fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(invalid("length")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_shim(message: &FromShim) -> FromShim {
        let frame = message.encode();
        assert_eq!(payload_len(frame[..HEADER].try_into().unwrap()).unwrap(), frame.len() - HEADER);
        FromShim::decode(frame[0], &frame[HEADER..]).unwrap()
    }

    #[test]
    fn messages_survive_the_wire() {
        let ended = Ended { status: 137, elapsed: Duration::from_micros(99_001) };
        for ended in [None, Some(ended)] {
            let hello = FromShim::Hello(Hello {
                pid: 77,
                runtime: "/usr/bin/crun".into(),
                argv: vec!["restore".into(), "".into(), OsString::from_vec(vec![0xff, 0x80])],
                ended,
            });
            assert_eq!(from_shim(&hello), hello);
        }
        assert_eq!(from_shim(&FromShim::Ended(ended)), FromShim::Ended(ended));

        assert_eq!(from_shim(&FromShim::Waiting), FromShim::Waiting);

        let go = Go {
            images: "/dev/shm/i".into(),
            work: "/run/w".into(),
            criu_config: "/run/c".into(),
            lease: Duration::from_secs(9),
            lazy_pages: true,
        };
        let (ready, go) = (ToShim::Ready(go.clone()), ToShim::Go(go));
        for message in [ready, go, ToShim::Finish, ToShim::Abort] {
            let frame = message.encode();
            assert_eq!(ToShim::read(&mut frame.as_slice()).unwrap(), Some(message));
        }
        assert_eq!(ToShim::read(&mut [].as_slice()).unwrap(), None);
    }

    #[test]
    fn damaged_frames_are_refused() {
        let hello = Hello { pid: 1, runtime: "/r".into(), argv: vec!["x".into()], ended: None };
        let frame = FromShim::Hello(hello).encode();
        for cut in HEADER..frame.len() {
            let decoded = FromShim::decode(frame[0], &frame[HEADER..cut]);
            // Cut exactly between two arguments the message is a shorter one.
            assert!(decoded.is_err() || cut == frame.len() - 5, "cut at {cut}");
        }
        for kind in [0, 4, 15, 16, 255] {
            assert!(FromShim::decode(kind, &[]).is_err());
        }
        for kind in [0, 1, 2, 16, 19, 21] {
            assert!(ToShim::decode(kind, &[]).is_err());
        }
        assert!(ToShim::decode(17, &[0]).is_err());
        assert!(payload_len([1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
