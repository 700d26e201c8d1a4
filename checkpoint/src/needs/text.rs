//! The fields that matter, of podman's `ContainerConfig` (`libpod/container_config.go`) and of an
//! OCI configuration
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>). Go writes empty
//! lists and maps as `null`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    pub(super) id: String,
    #[serde(default)]
    pub(super) privileged: bool,
    #[serde(default)]
    pub(super) rootfs: PathBuf,
    pub(super) named_volumes: Option<Vec<NamedVolume>>,
    pub(super) overlay_volumes: Option<Vec<OverlayVolume>>,
    #[serde(rename = "createNetNS", default)]
    pub(super) own_network: bool,
    #[serde(default)]
    pub(super) network_mode: String,
    #[serde(default)]
    pub(super) pod: String,
    #[serde(rename = "Dependencies")]
    pub(super) dependencies: Option<Vec<String>>,
    pub(super) secrets: Option<Value>,
    #[serde(rename = "secret_env")]
    pub(super) env_secrets: Option<Value>,
    #[serde(default)]
    pub(super) base_hosts_file: String,
    #[serde(default)]
    pub(super) timezone: String,
    #[serde(default)]
    pub(super) cgroup_parent: String,
    #[serde(rename = "healthLogDestination", default)]
    pub(super) health_log: String,
    #[serde(rename = "sdnotifySocket", default)]
    pub(super) notify_socket: String,
    #[serde(rename = "ipcNsCtr", default)]
    ipc: String,
    #[serde(rename = "mountNsCtr", default)]
    mount: String,
    #[serde(rename = "netNsCtr", default)]
    network: String,
    #[serde(rename = "pidNsCtr", default)]
    pid: String,
    #[serde(rename = "userNsCtr", default)]
    user: String,
    #[serde(rename = "utsNsCtr", default)]
    uts: String,
    #[serde(rename = "cgroupNsCtr", default)]
    cgroup: String,
}

impl Config {
    /// Containers whose namespaces it shares, by kind; empty for none.
    pub(super) fn other_containers(&self) -> [(&'static str, &str); 7] {
        [
            ("ipc", &self.ipc),
            ("mount", &self.mount),
            ("network", &self.network),
            ("pid", &self.pid),
            ("user", &self.user),
            ("uts", &self.uts),
            ("cgroup", &self.cgroup),
        ]
    }
}

#[derive(Deserialize)]
pub(super) struct NamedVolume {
    #[serde(rename = "volumeName", default)]
    pub(super) name: String,
}

#[derive(Deserialize)]
pub(super) struct OverlayVolume {
    #[serde(default)]
    pub(super) source: PathBuf,
}

#[derive(Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) hooks: BTreeMap<String, Value>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) process: Process,
    #[serde(default)]
    pub(super) linux: Linux,
}

#[derive(Deserialize)]
pub(super) struct Mount {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) source: PathBuf,
    pub(super) options: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Process {
    #[serde(default)]
    pub(super) capabilities: Capabilities,
}

#[derive(Default, Deserialize)]
pub(super) struct Capabilities {
    pub(super) bounding: Option<Vec<String>>,
    pub(super) effective: Option<Vec<String>>,
    pub(super) permitted: Option<Vec<String>>,
    pub(super) inheritable: Option<Vec<String>>,
    pub(super) ambient: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Linux {
    #[serde(default)]
    pub(super) namespaces: Vec<Namespace>,
    pub(super) devices: Option<Vec<Device>>,
    #[serde(default)]
    pub(super) resources: Resources,
    pub(super) seccomp: Option<Seccomp>,
    #[serde(rename = "maskedPaths")]
    pub(super) masked: Option<Vec<String>>,
    #[serde(rename = "readonlyPaths")]
    pub(super) readonly: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) path: Option<PathBuf>,
}

#[derive(Deserialize)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: i64,
    #[serde(default)]
    pub(super) minor: i64,
}

#[derive(Default, Deserialize)]
pub(super) struct Resources {
    pub(super) devices: Option<Vec<DeviceRule>>,
    pub(super) memory: Option<Memory>,
}

#[derive(Deserialize)]
pub(super) struct DeviceRule {
    pub(super) allow: bool,
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct Memory {
    pub(super) limit: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seccomp {
    #[serde(default)]
    pub(super) default_action: String,
}
