//! The server, seen from the agent that orders the restore.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

use super::SERVE;

/// What the server says when it listens.
pub(super) const READY: &[u8] = b"ready\n";
/// The order that names the container: its first process and its ID follow.
pub(super) const CONTAINER: &str = "container";
/// The order to put pages in place that nothing waits for.
pub(super) const GO: &str = "go";
/// How long the server may take to listen.
const START: Duration = Duration::from_secs(5);

/// A server of pages for one restore. Dropped before CRIU has come to it, it ends. After that it goes on by itself.
#[derive(Debug)]
pub struct LazyPages {
    child: Child,
    orders: ChildStdin,
}

/// Where a server listens, and what it keeps.
#[derive(Debug, Clone, Copy)]
pub struct Listening<'a> {
    /// The socket for CRIU.
    pub socket: &'a Path,
    /// The file that it keeps locked until no page is missing.
    pub lock: &'a Path,
    /// The socket for the agent, should pages be at the source ([`SourceLink`](super::SourceLink)).
    pub source_link: &'a Path,
    /// How long the container waits for pages of a source that cannot be asked, before it is ended.
    pub patience: Duration,
}

impl LazyPages {
    /// Starts a server, which is the program `shim`, in a process group of its own. It reads `images`. `log` gets its messages.
    /// Returns `None` where the kernel cannot do it.
    ///
    /// # Errors
    /// It cannot be started, or does not listen in time.
    pub async fn start(
        shim: &Path,
        images: &Path,
        listening: Listening<'_>,
        log: File,
    ) -> io::Result<Option<Self>> {
        let Listening { socket, lock, source_link, patience } = listening;
        let mut child = Command::new(shim)
            .arg(SERVE)
            .args([images, socket, lock, source_link])
            .arg(patience.as_secs().to_string())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .spawn()?;
        let (orders, told) = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(mut told)) = (orders, told) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut word = [0; READY.len()];
        match tokio::time::timeout(START, told.read_exact(&mut word)).await {
            Ok(Ok(_)) => Ok(Some(Self { child, orders })),
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                match child.wait().await?.success() {
                    true => Ok(None),
                    false => Err(io::Error::other("the server of pages has ended")),
                }
            }
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Returns whether it has neither failed nor been killed.
    pub fn is_well(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none_or(|status| status.success()))
    }

    /// Names the container that was restored: it is killed if the server is.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn name_container(&mut self, pid: i32, id: &str) -> io::Result<()> {
        self.orders.write_all(format!("{CONTAINER} {pid} {id}\n").as_bytes()).await
    }

    /// Has it put pages in place that nothing waits for, too.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn go(&mut self) -> io::Result<()> {
        self.orders.write_all(format!("{GO}\n").as_bytes()).await
    }
}
