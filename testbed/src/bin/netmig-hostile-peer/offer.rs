//! The offer of a container of this host.

use checkpoint::criu;
use migration::offer::Offer;
use protocol::message::{ImageRef, Network};
use state::cause::Cause;
use state::host;
use state::id::{HostId, MigrationId};

/// Builds the offer that the client would send for a container of this host.
pub(super) async fn describe(
    name: &str,
    migration: MigrationId,
    anchors: Vec<HostId>,
) -> Result<Offer, Cause> {
    let engine = engine::detect(None);
    let container = engine.inspect(name).await?;
    let described = engine.description(&container.id).await?;
    let version = criu::version(&host::find_program("criu")?).await?;
    Ok(Offer {
        migration,
        id: container.id.clone(),
        name: container.name.clone(),
        image: ImageRef { id: container.image.id.clone(), name: container.image.name.clone() },
        image_shipped: false,
        runtime: container.runtime.name.clone(),
        forwarders: Vec::new(),
        networks: container.networks.iter().map(network).collect(),
        any_address: true,
        direct: None,
        // The container publishes no ports.
        ports: Vec::new(),
        anchors,
        aliases: Vec::new(),
        memory: container.memory_in_use,
        disk: 0,
        description: described.description,
        criu: (version.major, version.minor, version.patch),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_flags: Vec::new(),
        without_symlinks: Vec::new(),
    })
}

fn network(network: &engine::inspect::Network) -> Network {
    Network {
        name: network.name.clone(),
        addresses: network.addresses.iter().map(|(address, _)| *address).collect(),
    }
}
