//! The server, seen from the agent that orders the restore.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::hold::kill;
use super::{SERVE, State, state};

/// What the server says when it listens.
pub(super) const READY: &[u8] = b"ready\n";
/// What it says when another process takes its place if it is killed.
pub(super) const HELD: &[u8] = b"held\n";
/// The order that names the container: its first process and its ID follow.
pub(super) const CONTAINER: &str = "container";
/// The order to put pages in place that nothing waits for.
pub(super) const GO: &str = "go";
/// How long the server may take to listen, or to have a holder.
const START: Duration = Duration::from_secs(5);
/// Between two looks at a server that has taken the place of another one.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A server of pages for one restore. Dropped before CRIU has come to it, it ends. After that it goes on by itself.
#[derive(Debug)]
pub struct LazyPages {
    child: Child,
    orders: ChildStdin,
    told: ChildStdout,
    lock: PathBuf,
    /// The first process of the container and its ID, once it is named.
    container: Option<(i32, String)>,
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
            Ok(Ok(_)) => {
                Ok(Some(Self { child, orders, told, lock: lock.to_owned(), container: None }))
            }
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

    /// Returns whether pages are served, or none is missing any more.
    #[must_use]
    pub fn is_well(&self) -> bool {
        state(&self.lock).is_ok_and(|state| state != State::Lost)
    }

    /// Waits until no page is missing. Returns `false` if some never will be put in place: the container is killed then.
    ///
    /// # Errors
    /// The lock cannot be looked at, or the container cannot be killed.
    pub async fn finish(mut self) -> io::Result<bool> {
        drop(self.orders);
        if self.child.wait().await?.success() {
            return Ok(true);
        }
        loop {
            match state(&self.lock)? {
                State::Whole => return Ok(true),
                State::UnderWay => tokio::time::sleep(LOOK_EVERY).await,
                State::Lost => break,
            }
        }
        // A server that could not go on has killed it. Servers that were all killed have not.
        if let Some((pid, id)) = self.container {
            tokio::task::block_in_place(|| kill(pid, &id))?;
        }
        Ok(false)
    }

    /// Names the container that was restored, and waits until the server may be killed: from then on another process takes
    /// its place.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn name_container(&mut self, pid: i32, id: &str) -> io::Result<()> {
        self.container = Some((pid, id.to_owned()));
        let order = format!("{CONTAINER} {pid} {id}\n");
        let mut word = [0; HELD.len()];
        let told = async {
            self.orders.write_all(order.as_bytes()).await?;
            tokio::time::timeout(START, self.told.read_exact(&mut word)).await?
        };
        match told.await {
            // It has ended already, for there was nothing to do.
            Err(_) if state(&self.lock)? == State::Whole => Ok(()),
            other => other.map(drop),
        }
    }

    /// Has it put pages in place that nothing waits for, too.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn go(&mut self) -> io::Result<()> {
        self.orders.write_all(format!("{GO}\n").as_bytes()).await
    }
}
