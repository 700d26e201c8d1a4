//! The time after a move, in which the container has more to read than usual.

use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use netmig::netns::Namespace;
use netmig::sockets::{UdpQueues, receive_buffers};
use state::cause::{Cause, chain};

/// How long no datagrams may have piled up in a container's sockets before these get their own buffers
/// back: what was held has come through the tunnel then, and the processors are free again.
const CALM: Duration = Duration::from_secs(2);
/// How long that may take. A container that is always behind gets its own buffers back then.
const CALM_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at what it has not read yet.
const CALM_LOOK: Duration = Duration::from_millis(20);
/// Bytes that do not count as a pile, as the kernel counts them: half of a receive buffer of default
/// size.
const CALM_REST: u64 = 100 << 10;

/// Gives the container's UDP sockets their own buffers back, once it keeps up with what comes.
pub async fn settle_buffers(pid: i32, container: String) {
    let settle = async {
        let mut queues = UdpQueues::open(&Namespace::of_pid(pid)?)?;
        let began = Instant::now();
        let mut calm = began;
        while calm.elapsed() < CALM && began.elapsed() < CALM_LIMIT {
            tokio::time::sleep(CALM_LOOK).await;
            if queues.pending()? > CALM_REST {
                calm = Instant::now();
            }
        }
        receive_buffers::restore(&Cgroup::of_pid(pid, &container)?.pids()?)?;
        Ok::<(), Cause>(())
    };
    // The container may have ended, or have moved on.
    if let Err(e) = settle.await {
        tracing::debug!("{container}: {}", chain(e.as_ref()));
    }
}
