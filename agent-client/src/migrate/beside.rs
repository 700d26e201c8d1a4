//! Connections with other containers of the same network, by their own addresses: before they can be
//! held and led, their packets have to come to this host (see [`netmig::beside`]).

use std::net::IpAddr;

use agent_core::carried;
use agent_core::cause::Cause;
use agent_core::directories::Directories;
use netmig::beside::{Beside, Detour};
use netmig::flow::{Aliases, Conntrack, Flow, NoAlias, StandIn};
use netmig::sockets::{Connections, TcpSockets};

use super::plan::Plan;

/// What is made of such connections on this host.
#[derive(Default)]
pub struct Besides {
    found: Option<Beside>,
    detours: Vec<Detour>,
    /// Containers that have left already: flows with them end.
    parted: Vec<IpAddr>,
}

impl Besides {
    /// Finds the other containers.
    pub fn find(directories: &Directories, plan: &Plan) -> Result<Self, Cause> {
        Ok(Self {
            found: Some(Beside::find(&plan.port, &plan.namespace, &plan.addresses)?),
            parted: carried::parted(directories, &plan.container.id, &plan.addresses)?,
            ..Self::default()
        })
    }

    /// Whether a flow's other end has left this host, too.
    pub fn is_parted(&self, flow: &Flow, container: &[IpAddr]) -> bool {
        flow.other_end(container).is_some_and(|end| self.parted.contains(&end))
    }

    /// Makes the entries of connections that are open now, so that none of their packets is taken for
    /// the first of a flow; gives the detours that they need.
    pub fn prepare(
        &mut self,
        conntrack: &mut Conntrack,
        sockets: &mut TcpSockets,
        container: &[IpAddr],
    ) -> Result<Vec<Detour>, Cause> {
        if self.addresses().is_empty() {
            return Ok(Vec::new());
        }
        let known = conntrack.dump(container)?;
        self.complete(conntrack, &sockets.list()?, known).map(|(_, detours)| detours)
    }

    /// The same for connections that have been opened since, given all flows that are known; gives
    /// all flows, and the detours that are new.
    pub fn complete(
        &mut self,
        conntrack: &mut Conntrack,
        tcp: &Connections,
        mut known: Vec<Flow>,
    ) -> Result<(Vec<Flow>, Vec<Detour>), Cause> {
        let Some(found) = &mut self.found else { return Ok((known, Vec::new())) };
        let made = found.flows(tcp, &known)?;
        if !made.is_empty() {
            conntrack.create(&made)?;
            known.extend(made);
        }
        let mut detours = found.detours(&known)?;
        detours.retain(|detour| {
            !self.detours.contains(detour) && !self.parted.contains(&detour.beside)
        });
        self.detours.extend(detours.iter().cloned());
        Ok((known, detours))
    }

    /// Has these containers send to this host what is for the one that moves. They have been noted.
    pub fn lay(&mut self, detours: &[Detour]) -> Result<(), Cause> {
        match &mut self.found {
            Some(found) => Ok(found.lay(detours)?),
            None => Ok(()),
        }
    }

    /// What the other containers' addresses are in the tunnel, each with that of the container by which
    /// they talk to it.
    pub fn stand_ins(&self, aliases: &Aliases) -> Result<Vec<(StandIn, IpAddr)>, NoAlias> {
        let of = |detour: &Detour| Ok((aliases.of(detour.beside)?, detour.towards));
        self.detours.iter().map(of).collect()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.found.as_ref().map(Beside::addresses).unwrap_or_default()
    }
}
