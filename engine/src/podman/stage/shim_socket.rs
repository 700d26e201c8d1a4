//! The agent's end of the socket to the shim.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use checkpoint::shim::messages::{self, FromShim, Hello, ToShim};

/// A connected shim.
#[derive(Debug)]
pub(super) struct ShimSocket {
    stream: UnixStream,
    pub(super) hello: Hello,
}

/// Starts to listen; a socket that a dead process left is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}

impl ShimSocket {
    /// Waits for the shim.
    pub(super) async fn accept(listener: &UnixListener) -> io::Result<Self> {
        let (mut stream, _) = listener.accept().await?;
        match receive(&mut stream).await? {
            FromShim::Hello(hello) => Ok(Self { stream, hello }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub(super) async fn send(&mut self, message: &ToShim) -> io::Result<()> {
        self.stream.write_all(&message.encode()).await
    }

    pub(super) async fn receive(&mut self) -> io::Result<FromShim> {
        receive(&mut self.stream).await
    }
}

async fn receive(stream: &mut UnixStream) -> io::Result<FromShim> {
    let mut header = [0; messages::HEADER];
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; messages::payload_len(header)?];
    stream.read_exact(&mut payload).await?;
    FromShim::decode(header[0], &payload)
}
