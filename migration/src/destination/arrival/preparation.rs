//! What is made before anything of the container comes: the tunnels, and everything around the copy.

use std::net::IpAddr;

use checkpoint::images::ImageDir;
use checkpoint::runtime::Runtime;
use engine::Engine;
use engine::stage::{self, Conflict, PreparedStage, Stage, Staged};
use netmig::bridge_port::Port;
use netmig::configuration::{Configuration, Difference, Known};
use netmig::container_network::ContainerNetwork;
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::table::{Table, TableError};
use netmig::tunnel;
use protocol::message::{AnchorTunnel, Failure, FailureCode, Message};
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use state::directories::create_private;
use state::interrupt_slot::{Place, give_way};
use state::journal::Record;
use state::{deadline, host};
use steering::reconciler;
use steering::tunnels::{self, KeyPassedOn, SteeringLock, TunnelEnd};
use tokio::task::block_in_place;

use super::{Arrival, Incomplete, Network, NotOffered};
use crate::convert::{NetworkState, Wire};
use crate::destination::admission::Addresses;

/// The staged container is not where the offer says.
#[derive(Debug, thiserror::Error)]
#[error("the staged container does not have the address {address} that was offered")]
struct OtherAddress {
    address: IpAddr,
}

/// The engine has made another network for the container than it has at the source.
#[derive(Debug, thiserror::Error)]
#[error(
    "the network of the staged container differs from the original's: {}; undo it before the move, or make \
     the network alike on both hosts", named(.0)
)]
struct OtherNetwork(Vec<Difference>);

/// Most differences that an error names.
const NAMED: usize = 5;

fn named(differences: &[Difference]) -> String {
    let mut text: Vec<String> = differences.iter().take(NAMED).map(ToString::to_string).collect();
    if differences.len() > NAMED {
        text.push(format!("and {} more", differences.len() - NAMED));
    }
    text.join("; ")
}

impl Arrival {
    /// Gives the staged network namespace the kernel parameters of the original's, and compares everything
    /// else of it.
    fn make_equal(
        &self,
        namespace: &Namespace,
        sandbox: &ContainerNetwork,
        port: &Port,
    ) -> Result<(), Cause> {
        let Some(NetworkState { configuration, parameters }) = &self.wanted else { return Ok(()) };
        let set = parameters.apply(namespace)?;
        tracing::debug!("{}: {set} kernel parameters of the network set", self.offer.migration);
        let interface = sandbox.interface_at(port)?;
        let gateways = sandbox.gateways().iter().map(|gateway| gateway.address);
        let known = Known {
            interface: interface.name.clone(),
            mac: interface.mac,
            mtu: interface.mtu,
            addresses: self.addresses(),
            gateways: gateways.chain(port.bridge().addresses.iter().copied()).collect(),
        };
        let copy = Configuration::read(namespace, &known)?;
        match configuration.differences(&copy) {
            none if none.is_empty() => Ok(()),
            differences => Err(OtherNetwork(differences).into()),
        }
    }

    pub(super) async fn answer_tunnel(
        &mut self,
        connection: &mut Connection,
        offer: TunnelEnd,
    ) -> Result<(), Cause> {
        let address = connection.peer().ip();
        self.source_address = Some(address.to_canonical());
        // What was allowed is what was offered.
        if offer.is_direct() != self.offer.direct.is_some() {
            return Err(NotOffered.into());
        }
        let answer = self.connect(self.anchor, address, &offer).await?;
        let (migration, here, there) = (self.offer.migration, &answer.kind, &offer.kind);
        tracing::info!("{migration}: tunnel to {address}: {here} here, {there} there");
        // It takes the kernel a moment to say, and nobody waits for it.
        tokio::task::spawn_blocking(move || match queueing() {
            Ok(queue) => tracing::info!("{migration}: packet queue of this kernel: {queue}"),
            Err(e) => tracing::warn!("{migration}: {}", chain(&e)),
        });
        Ok(connection.send(&Message::TunnelAnswer(answer.into_wire())).await?)
    }

    /// Makes the tunnel to a third host by which some of the flows will come.
    pub(super) async fn meet_anchor(
        &mut self,
        connection: &mut Connection,
        anchor: AnchorTunnel,
    ) -> Result<(), Cause> {
        let end = TunnelEnd::from_wire(anchor.end)?;
        let stranger = !self.offer.anchors.contains(&anchor.host) || anchor.host == self.host.id;
        if stranger || end.is_direct() {
            return Err(NotOffered.into());
        }
        let number = tunnels::allot(&self.host.directories, anchor.host).await?;
        if let Some(journal) = &mut self.journal {
            block_in_place(|| journal.append(&Record::Anchor { peer: anchor.host }))?;
        }
        self.anchors.add(anchor.host, number);
        let answer = match self.connect_passed_on(number, anchor.address, &end).await {
            Ok(answer) => answer,
            // Its flows go by the source; nothing else is wrong with the migration.
            Err(cause) if cause.is::<KeyPassedOn>() => {
                tracing::warn!("{}: {}", self.offer.migration, chain(cause.as_ref()));
                let failure =
                    Failure { code: FailureCode::Conflict, message: chain(cause.as_ref()).into() };
                return Ok(connection.send(&Message::Failure(failure)).await?);
            }
            Err(cause) => return Err(cause),
        };
        self.anchors.listen(anchor.host);
        Ok(connection.send(&Message::TunnelAnswer(answer.into_wire())).await?)
    }

    /// Makes this host's end of the tunnel to a peer, and gives it.
    async fn connect(
        &mut self,
        peer: PeerNumber,
        address: IpAddr,
        end: &TunnelEnd,
    ) -> Result<TunnelEnd, Cause> {
        let _lock = SteeringLock::take(&self.host.directories.run).await?;
        let (local, mtu) = tunnels::connect(peer, address, end).await?;
        reconciler::start(&self.host.directories, self.host.background.reconciler)?;
        self.mtu = self.mtu.min(mtu);
        Ok(local)
    }

    /// Does the same for a tunnel to a third host, whose end the source has passed on.
    async fn connect_passed_on(
        &mut self,
        peer: PeerNumber,
        address: IpAddr,
        end: &TunnelEnd,
    ) -> Result<TunnelEnd, Cause> {
        let _lock = SteeringLock::take(&self.host.directories.run).await?;
        let tunnel = (peer, self.offer.migration);
        let directories = &self.host.directories;
        let (local, mtu) = tunnels::connect_passed_on(directories, tunnel, address, end).await?;
        reconciler::start(&self.host.directories, self.host.background.reconciler)?;
        self.mtu = self.mtu.min(mtu);
        Ok(local)
    }

    /// Builds everything around the container and cuts its network off.
    pub(super) async fn stage(&mut self) -> Result<ImageDir, Cause> {
        create_private(&self.work)?;
        let mut description = self.offer.description.clone();
        if let Addresses::Former(pairs) = &self.chosen {
            description.connectivity.readdress(pairs);
        }
        self.prepare_volumes().await?;
        let stage = Stage {
            description,
            fresh_addresses: self.chosen == Addresses::Fresh,
            log: Vec::new(),
            work: self.stage_directory(),
            shim: self.host.shim.clone(),
            lease: deadline::LEASE,
            deadline: deadline::STAGE,
            beside: self.begin_service().await?,
        };
        let may_choose = self.offer.any_address && self.chosen == Addresses::Own;
        let runtime = Runtime::new(&host::find_program(&self.offer.runtime)?, None)?;
        let criu = host::find_program("criu")?;
        if self.place.is_none() {
            self.place = Place::take(&self.host.directories.run, deadline::PLACE).await;
        }
        give_way(&self.host.directories.run, deadline::GIVE_WAY).await;
        // CRIU looks at a kernel once after a boot, for 30 ms; the engine's work is long enough for it.
        let (staged, warmed, heard, anchors) = tokio::join!(
            begin(&*self.host.engine, stage, self.prepared.take(), may_choose),
            runtime.warm(&criu),
            tunnel::confirm(self.anchor),
            self.anchors.heard()
        );
        let (staged, chosen_here) = staged?;
        if chosen_here {
            self.chosen = Addresses::Fresh;
        }
        let staged = self.staged.insert(staged);
        warmed?;
        heard?;
        anchors?;
        let path = staged.container().netns.clone().ok_or(Incomplete("a network namespace"))?;
        let namespace = Namespace::at_path(&path)?;
        // A runtime sets them when it starts a container, not when it restores one.
        namespace.set_parameters(&self.offer.description.confinement.sysctls)?;
        let sandbox = ContainerNetwork::open(&namespace)?;
        let interface = sandbox.interfaces().first().ok_or(Incomplete("an interface"))?;
        // Flows are taken over for these addresses, so they have to be the container's.
        let there: Vec<IpAddr> =
            sandbox.interfaces().iter().flat_map(|i| &i.addresses).map(|(ip, _)| *ip).collect();
        let wanted = self.settle_addresses(&there)?;
        if let Some(address) = wanted.into_iter().find(|ip| !there.contains(ip)) {
            return Err(OtherAddress { address }.into());
        }
        let port = Port::of_container(&namespace, &interface.name)?;
        // Isolated from birth: nobody hears the copy before the commit.
        port.block()?;
        block_in_place(|| self.make_equal(&namespace, &sandbox, &port))?;
        self.begin_late().await?;
        self.take_new_connections().await?;
        self.check_volumes().await?;
        let here = self.left_here()?;
        self.network = Some(Network { port, sandbox, namespace: path, here });
        Ok(ImageDir::create(&self.images(), self.limits.images)?)
    }
}

/// Stages; with other addresses if the engine does not let the container have its own and it may have
/// others, which is told as well. They may have been given away since this host looked, or belong to no
/// network here.
async fn begin(
    engine: &dyn Engine,
    stage: Stage,
    prepared: Option<Box<dyn PreparedStage>>,
    may_choose: bool,
) -> Result<(Box<dyn Staged>, bool), stage::Error> {
    let again = Stage { fresh_addresses: true, ..stage.clone() };
    let staged = match prepared {
        Some(prepared) => prepared.stage(stage).await,
        None => engine.stage(stage).await,
    };
    match staged {
        Err(stage::Error::Conflict {
            conflict: Conflict::Address(_) | Conflict::Network(_),
            ..
        }) if may_choose => Ok((engine.stage(again).await?, true)),
        other => other.map(|staged| (staged, false)),
    }
}

/// Returns how packets are held on this host when a container leaves it again.
fn queueing() -> Result<&'static str, TableError> {
    Ok(Table::open()?.queueing()?.name())
}
