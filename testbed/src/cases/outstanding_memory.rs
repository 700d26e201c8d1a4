//! A move that is decided while most of the container's memory is still at its source.

use std::sync::Arc;

use super::kernel_release::needs_kernel;
use super::memory_programs::{self, MEMORY, is_all_in_place};
use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::drop_agent_packets;
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::Context;

/// A rate at which memory takes longer than anything else in a test.
const SLOWLY: &str = "1MB";

/// A lab with a server whose move from `a` to `b` is decided.
pub(super) struct Outstanding {
    pub(super) lab: Arc<Lab>,
    /// The container's ID.
    pub(super) id: String,
    pub(super) clients: Clients,
    /// The process that moves it.
    pub(super) order: HostProcess,
}

impl Outstanding {
    /// Starts the move. `arguments` are those of the destination's agent.
    pub(super) fn begin(context: &Context, arguments: &[&str]) -> Result<Self> {
        needs_kernel()?;
        let lab = context.lab(&["a", "b", "c"])?;
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        lab.serve_with("b", arguments)?;
        lab.serve("b")?;
        serve(a, "web", 7000, &["--memory", MEMORY], c)?;
        let id = container_state::id(a, "web")?;
        let clients = Clients::gentle(c, a.port(7000))?;
        let words = ["migrate", "web", "b", "--memory", "post-copy", "--bandwidth", SLOWLY];
        let limits = ["--max-interruption", "60", "--compress", "none"];
        let order = a.command("agent-client").args(words.iter().chain(&limits).copied()).spawn()?;
        until("pages are outstanding", LIMIT, || Ok(has_record(a, "pages-outstanding")))?;
        let this = Self { lab, id, clients, order };
        this.is_frozen_and_runs()?;
        Ok(this)
    }

    pub(super) fn host(&self, name: &str) -> Result<&Host> {
        self.lab.host(name)
    }

    /// Returns the state of the container on a host.
    pub(super) fn state(&self, name: &str) -> Result<State> {
        Ok(container_state::state(self.host(name)?, &self.id))
    }

    /// Checks that the original is kept and the copy runs.
    pub(super) fn is_frozen_and_runs(&self) -> Result<()> {
        let (original, copy) = (self.state("a")?, self.state("b")?);
        ensure!(original == State::Frozen, "the original is not frozen but {original:?}");
        ensure!(copy == State::Running, "the copy does not run but is {copy:?}");
        Ok(())
    }

    /// Checks every byte, from the client's host: so all pages that are missing are needed at once.
    pub(super) fn check_memory(&self) -> Result<()> {
        memory_programs::check_memory(&self.lab, "b")
    }

    /// Cuts the link between the agents, and waits until the source has noticed. What is said of the other host is lost.
    pub(super) fn cut_link(&self) -> Result<()> {
        drop_agent_packets(self.host("b")?, self.host("a")?, "dport")?;
        until("the source notices", LIMIT, || Ok(self.order.stderr().contains("is not reached")))
    }

    /// Waits until the copy has ended.
    pub(super) fn copy_ends(&self) -> Result<()> {
        until("the copy has ended", LIMIT, || Ok(self.state("b")? == State::Absent))
    }

    /// Waits until the move is done and checks that nothing is left.
    pub(super) fn end(self) -> Result<String> {
        let said = self.order.wait(LIMIT)?.success()?.error_text();
        settled(&self.lab)?;
        let left = container_state::state(self.lab.host("a")?, &self.id);
        ensure!(left == State::Absent, "the original is still there: {left:?}");
        // A server that waits for pages does not read datagrams: its receive buffer may become full.
        self.clients.stop_losing(u64::MAX)?;
        ensure!(is_all_in_place(self.lab.host("b")?)?, "something is left on b");
        Ok(said)
    }
}
