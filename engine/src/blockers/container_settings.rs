//! Obstacles and differences that the engine's description of a container shows.

use super::Finding;
use crate::inspect::{Container, MountKind, State};

/// The annotation that makes crun and runc use another CRIU configuration than ours.
const CRIU_ANNOTATION: &str = "org.criu.config";

/// Returns what will differ after the move.
pub(super) fn warnings(container: &Container) -> Vec<Finding> {
    let mut found = Vec::new();
    if container.health_check {
        found.push(Finding {
            code: "health-check",
            message: format!(
                "the health check of {} will not run on the destination until the container is \
                 started anew",
                container.name
            ),
        });
    }
    if container.log_driver == "journald" {
        found.push(Finding {
            code: "journald",
            message: format!("older log lines of {} stay in this host's journal", container.name),
        });
    }
    found
}

/// Returns everything that stands in the way, each by its name.
pub(super) fn findings(c: &Container) -> Vec<Finding> {
    let name = &c.name;
    let mut found = Vec::new();
    let mut add = |code, message| found.push(Finding { code, message });

    match &c.state {
        State::Running => {}
        State::Paused => add("paused", format!("{name} is paused; `unpause` it first")),
        State::Other(state) => add("not-running", format!("{name} is {state}, not running")),
        State::Unknown => add("not-running", format!("{name} is not running")),
    }
    if c.rootless {
        add("rootless", format!("{name} runs without root; only root's containers can be moved"));
    }
    if c.user_namespace {
        add(
            "user-namespace",
            format!("{name} has a user namespace of its own; create it without --userns"),
        );
    }
    if let Some(pod) = &c.pod {
        add("pod", format!("{name} is in pod {pod}; only single containers can be moved"));
    }
    if !c.dependencies.is_empty() {
        let list = c.dependencies.join(", ");
        add("dependencies", format!("{name} depends on {list}; create it without --requires"));
    }
    if !matches!(c.runtime.name.as_str(), "crun" | "runc") {
        let runtime = &c.runtime.name;
        add("runtime", format!("{name} uses the runtime {runtime:?}; use crun or runc"));
    }
    network(c, &mut add);
    storage(c, &mut add);
    if c.privileged {
        add("privileged", format!("{name} is privileged; create it without --privileged"));
    }
    for device in &c.devices {
        let device = device.display();
        add("device", format!("{name} uses {device}, which stays on this host"));
    }
    for shared in &c.shared_namespaces {
        add(
            "shared-namespace",
            format!("{name} shares a namespace ({shared}); create it with its own"),
        );
    }
    if !matches!(c.cgroups.as_str(), "" | "default" | "enabled") {
        let mode = &c.cgroups;
        add("cgroups", format!("{name} has --cgroups={mode}; create it with the default"));
    }
    if c.systemd {
        add("systemd", format!("{name} runs systemd, which cannot be moved"));
    }
    if c.log_driver.starts_with("passthrough") {
        add(
            "log-driver",
            format!("{name} writes to its creator's terminal; use another log driver"),
        );
    }
    if !c.hooks.is_empty() {
        let stages = c.hooks.join(", ");
        add("hooks", format!("{name} has OCI hooks ({stages}), which a restore does not run"));
    }
    if c.annotations.contains_key(CRIU_ANNOTATION) {
        add(
            "criu-annotation",
            format!("{name} has the annotation {CRIU_ANNOTATION}; create it without"),
        );
    }
    found
}

fn network(c: &Container, add: &mut impl FnMut(&'static str, String)) {
    let name = &c.name;
    if c.network_mode != "bridge" {
        let mode = &c.network_mode;
        add(
            "network-mode",
            format!("{name} has --network={mode}; only bridge networks can be moved"),
        );
        return;
    }
    for network in c.networks.iter().filter(|n| !n.driver.is_empty() && n.driver != "bridge") {
        add(
            "network-driver",
            format!("{name} is on the {} network {}; use a bridge", network.driver, network.name),
        );
    }
    if c.networks.len() > 1 {
        let list: Vec<&str> = c.networks.iter().map(|n| n.name.as_str()).collect();
        let list = list.join(", ");
        add("many-networks", format!("{name} is on several networks ({list}); leave it on one"));
    }
    if c.networks.is_empty() && c.state == State::Running {
        add("no-network", format!("{name} is on no network; connect it to one"));
    }
    for port in c.ports.iter().filter(|p| !matches!(p.protocol.as_str(), "tcp" | "udp")) {
        let (number, protocol) = (port.host_port, &port.protocol);
        add(
            "port-protocol",
            format!("{name} publishes {number}/{protocol}; only TCP and UDP move"),
        );
    }
}

fn storage(c: &Container, add: &mut impl FnMut(&'static str, String)) {
    let name = &c.name;
    if let Some(root) = &c.external_rootfs {
        let root = root.display();
        add("external-rootfs", format!("{name} runs from {root}; create it from an image"));
    }
    if c.storage_driver != "overlay" {
        let driver = &c.storage_driver;
        add("storage-driver", format!("{name} is stored by {driver:?}; use overlay"));
    }
    for mount in &c.mounts {
        let (source, destination) = (mount.source.display(), mount.destination.display());
        match &mount.kind {
            // The migration judges those that have a name, by what their engine says of them.
            MountKind::Volume if mount.name.is_some() => {}
            MountKind::Volume => {
                add("volume", format!("{name} has a volume without name on {destination}"));
            }
            MountKind::Bind => {
                add(
                    "bind-mount",
                    format!("{name} has {source} on {destination}; files of a host do not move"),
                );
            }
            MountKind::Other(kind) => {
                add(
                    "mount",
                    format!("{name} has a mount of type {kind} on {destination}; leave it out"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Mount, Network, PublishedPort, Runtime};

    fn plain() -> Container {
        Container {
            id: "a7".repeat(32),
            name: "echo".into(),
            state: State::Running,
            runtime: Runtime { name: "crun".into(), path: None },
            storage_driver: "overlay".into(),
            network_mode: "bridge".into(),
            networks: vec![Network {
                name: "podman".into(),
                driver: "bridge".into(),
                ..Network::default()
            }],
            cgroups: "default".into(),
            ..Container::default()
        }
    }

    type Change<'a> = &'a dyn Fn(&mut Container);

    fn codes(container: &Container) -> Vec<&'static str> {
        findings(container).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_plain_container_can_be_moved() {
        assert_eq!(codes(&plain()), [""; 0]);
        let harmless = Container {
            tty: true,
            init: true,
            auto_remove: true,
            tmpfs: vec!["/tmp".into()],
            ports: vec![PublishedPort {
                protocol: "udp".into(),
                host_ip: None,
                host_port: 53,
                container_port: 53,
            }],
            ..plain()
        };
        assert_eq!(codes(&harmless), [""; 0]);
        assert!(warnings(&harmless).is_empty());
        assert_eq!(warnings(&Container { health_check: true, ..plain() }).len(), 1);
    }

    #[test]
    fn each_obstacle_has_its_code() {
        let mount = |kind, name: Option<&str>| Mount {
            kind,
            name: name.map(str::to_owned),
            source: "/data".into(),
            destination: "/v".into(),
            writable: true,
        };
        let port = PublishedPort {
            protocol: "sctp".into(),
            host_ip: None,
            host_port: 5,
            container_port: 5,
        };
        let network = Network { name: "m".into(), driver: "macvlan".into(), ..Network::default() };
        let one = |change: Change| {
            let mut container = plain();
            change(&mut container);
            codes(&container)
        };
        let cases: [(&str, Change); 24] = [
            ("paused", &|c| c.state = State::Paused),
            ("not-running", &|c| c.state = State::Other("exited".into())),
            ("not-running", &|c| c.state = State::Unknown),
            ("rootless", &|c| c.rootless = true),
            ("user-namespace", &|c| c.user_namespace = true),
            ("pod", &|c| c.pod = Some("p".into())),
            ("dependencies", &|c| c.dependencies = vec!["d".into()]),
            ("runtime", &|c| c.runtime.name = "runsc".into()),
            ("network-mode", &|c| c.network_mode = "host".into()),
            ("network-driver", &|c| c.networks = vec![network.clone()]),
            ("many-networks", &|c| c.networks.push(Network::default())),
            ("no-network", &|c| c.networks.clear()),
            ("port-protocol", &|c| c.ports = vec![port.clone()]),
            ("external-rootfs", &|c| c.external_rootfs = Some("/r".into())),
            ("storage-driver", &|c| c.storage_driver = "vfs".into()),
            ("volume", &|c| c.mounts = vec![mount(MountKind::Volume, None)]),
            ("bind-mount", &|c| c.mounts = vec![mount(MountKind::Bind, None)]),
            ("mount", &|c| c.mounts = vec![mount(MountKind::Other("image".into()), None)]),
            ("privileged", &|c| c.privileged = true),
            ("device", &|c| c.devices = vec!["/dev/fuse".into()]),
            ("shared-namespace", &|c| c.shared_namespaces = vec!["pid host".into()]),
            ("cgroups", &|c| c.cgroups = "split".into()),
            ("systemd", &|c| c.systemd = true),
            ("hooks", &|c| c.hooks = vec!["prestart".into()]),
        ];
        for (code, change) in cases {
            assert_eq!(one(change), [code]);
        }
        assert_eq!(one(&|c| c.log_driver = "passthrough-tty".into()), ["log-driver"]);
        let annotated = one(&|c| drop(c.annotations.insert(CRIU_ANNOTATION.into(), "/x".into())));
        assert_eq!(annotated, ["criu-annotation"]);
    }

    #[test]
    fn all_at_once_and_with_names() {
        let mut container = plain();
        container.privileged = true;
        container.network_mode = "host".into();
        container.mounts = vec![Mount {
            kind: MountKind::Bind,
            name: None,
            source: "/data".into(),
            destination: "/v".into(),
            writable: true,
        }];
        let found = findings(&container);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|finding| finding.message.contains("echo")));
        assert!(found.iter().any(|finding| finding.message.contains("data")));
    }
}
