//! Offers and verdicts. Numbers and names in an offer are checked by the destination's admission, which names
//! what is wrong with each.

use protocol::message as wire;
use state::blocker::Blocker;
use steering::port_forward::Forwarder;

use super::same_fields;
use crate::offer::{Offer, Port, Verdict};

same_fields! {
    Blocker => wire::Blocker { code, message }
    Verdict => wire::Verdict { blockers, image_missing, addresses }
    Forwarder => wire::Forwarder { host, readdressed }
    Port => wire::Port { protocol, host_address, host_port, container_port }
    Offer => wire::Offer {
        migration, id, name, image, image_shipped, runtime, forwarders, networks, any_address, direct, aliases,
        ports, anchors, memory, disk, description, criu, architecture, cpu_flags, without_symlinks,
    }
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Alias, Protocol};
    use state::id::{HostId, MigrationId};

    use super::*;
    use crate::convert::comes_back;

    #[test]
    fn an_offer_comes_back() {
        let text = |text: &str| text.to_owned();
        let own = [10, 88, 0, 2].into();
        comes_back(&Offer {
            migration: MigrationId([7; 16]),
            id: "a7".repeat(32),
            name: text("web"),
            image: wire::ImageRef { id: "70".repeat(32), name: text("localhost/probe:1") },
            image_shipped: true,
            runtime: text("crun"),
            forwarders: vec![Forwarder {
                host: HostId([4; 16]),
                readdressed: vec![([10, 88, 0, 3].into(), own)],
            }],
            networks: vec![wire::Network { name: text("podman"), addresses: vec![own] }],
            any_address: true,
            direct: Some(1500),
            aliases: vec![Alias { here: own, address: [198, 18, 7, 7].into() }],
            ports: vec![Port {
                protocol: Protocol::Udp,
                host_address: None,
                host_port: 8080,
                container_port: 80,
            }],
            anchors: vec![HostId([5; 16])],
            memory: 1,
            disk: 2,
            description: super::super::description::tests::full(),
            criu: (4, 2, 1),
            architecture: text("x86_64"),
            cpu_flags: vec![text("avx")],
            without_symlinks: vec![text("/data")],
        });
    }

    #[test]
    fn a_verdict_comes_back() {
        let blocker = Blocker { code: "cpu".into(), message: "b lacks avx".into() };
        let addresses = vec![[192, 0, 2, 2].into()];
        comes_back(&Verdict { blockers: vec![blocker], image_missing: true, addresses });
    }
}
