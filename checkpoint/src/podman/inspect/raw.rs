//! podman's own form of `podman container inspect` and `podman network inspect`
//! (`libpod/define/container_inspect.go`), trimmed to what is used. Go writes empty lists and
//! maps as `null`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawContainer {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: RawState,
    #[serde(default)]
    pub(super) image: String,
    #[serde(default)]
    pub(super) image_name: String,
    #[serde(default)]
    pub(super) rootfs: String,
    #[serde(default)]
    pub(super) pod: String,
    #[serde(default)]
    pub(super) static_dir: PathBuf,
    #[serde(rename = "OCIConfigPath", default)]
    pub(super) oci_config_path: PathBuf,
    #[serde(rename = "OCIRuntime", default)]
    pub(super) oci_runtime: String,
    #[serde(rename = "ExecIDs")]
    pub(super) exec_ids: Option<Vec<String>>,
    pub(super) graph_driver: Option<RawGraphDriver>,
    pub(super) mounts: Option<Vec<RawMount>>,
    pub(super) dependencies: Option<Vec<String>>,
    pub(super) network_settings: Option<RawNetworkSettings>,
    pub(super) config: RawConfig,
    pub(super) host_config: RawHostConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawState {
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) pid: i32,
    #[serde(default)]
    pub(super) conmon_pid: i32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawGraphDriver {
    #[serde(default)]
    pub(super) name: String,
    pub(super) data: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawMount {
    #[serde(rename = "Type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) source: PathBuf,
    pub(super) destination: PathBuf,
    #[serde(rename = "RW", default)]
    pub(super) rw: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawNetworkSettings {
    pub(super) sandbox_key: Option<String>,
    pub(super) ports: Option<BTreeMap<String, Option<Vec<RawBinding>>>>,
    pub(super) networks: Option<BTreeMap<String, RawNetwork>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawBinding {
    #[serde(default)]
    pub(super) host_ip: String,
    pub(super) host_port: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(super) struct RawNetwork {
    pub(super) gateway: String,
    #[serde(rename = "IPAddress")]
    pub(super) ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub(super) ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub(super) ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(super) global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub(super) global_ipv6_prefix_len: u8,
    pub(super) mac_address: String,
    #[serde(rename = "SecondaryIPAddresses")]
    pub(super) secondary_ip_addresses: Option<Vec<RawAddress>>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub(super) secondary_ipv6_addresses: Option<Vec<RawAddress>>,
}

#[derive(Deserialize)]
pub(super) struct RawAddress {
    #[serde(rename = "Addr")]
    pub(super) addr: String,
    #[serde(rename = "PrefixLength")]
    pub(super) prefix_length: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawConfig {
    #[serde(default)]
    pub(super) tty: bool,
    #[serde(default)]
    pub(super) open_stdin: bool,
    #[serde(default)]
    pub(super) systemd_mode: bool,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) healthcheck: Option<RawHealthcheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawHealthcheck {
    pub(super) test: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawHostConfig {
    #[serde(default)]
    pub(super) log_config: RawLogConfig,
    #[serde(default)]
    pub(super) network_mode: String,
    #[serde(default)]
    pub(super) restart_policy: RawRestartPolicy,
    #[serde(default)]
    pub(super) auto_remove: bool,
    #[serde(default)]
    pub(super) privileged: bool,
    #[serde(default)]
    pub(super) init: bool,
    #[serde(default)]
    pub(super) pid_mode: String,
    #[serde(default)]
    pub(super) ipc_mode: String,
    #[serde(rename = "UTSMode", default)]
    pub(super) uts_mode: String,
    #[serde(default)]
    pub(super) cgroups: String,
    pub(super) tmpfs: Option<BTreeMap<String, String>>,
    pub(super) devices: Option<Vec<RawDevice>>,
    #[serde(default)]
    pub(super) memory: i64,
    #[serde(rename = "IDMappings")]
    pub(super) id_mappings: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawLogConfig {
    #[serde(rename = "Type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawRestartPolicy {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) maximum_retry_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawDevice {
    #[serde(default)]
    pub(super) path_on_host: String,
}

/// One network as `podman network inspect` prints it, and as its file describes it.
#[derive(Deserialize)]
pub(in crate::podman) struct RawNetworkInspect {
    pub(in crate::podman) name: String,
    #[serde(default)]
    pub(in crate::podman) driver: String,
}
