//! The JSON form of `podman container inspect` and `podman network inspect`
//! (`libpod/define/container_inspect.go`), trimmed to the fields that are read. Go writes empty lists and
//! maps as `null`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawContainer {
    pub(in crate::podman) id: String,
    pub(in crate::podman) name: String,
    pub(in crate::podman) state: RawState,
    #[serde(default)]
    pub(in crate::podman) image: String,
    #[serde(default)]
    pub(in crate::podman) image_name: String,
    #[serde(default)]
    pub(in crate::podman) rootfs: String,
    #[serde(default)]
    pub(in crate::podman) pod: String,
    #[serde(default)]
    pub(in crate::podman) static_dir: PathBuf,
    #[serde(rename = "OCIConfigPath", default)]
    pub(in crate::podman) oci_config_path: PathBuf,
    #[serde(rename = "OCIRuntime", default)]
    pub(in crate::podman) oci_runtime: String,
    pub(in crate::podman) graph_driver: Option<RawGraphDriver>,
    pub(in crate::podman) mounts: Option<Vec<RawMount>>,
    pub(in crate::podman) dependencies: Option<Vec<String>>,
    pub(in crate::podman) network_settings: Option<RawNetworkSettings>,
    pub(in crate::podman) config: RawConfig,
    pub(in crate::podman) host_config: RawHostConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawState {
    #[serde(default)]
    pub(in crate::podman) status: String,
    #[serde(default)]
    pub(in crate::podman) pid: i32,
    #[serde(default)]
    pub(in crate::podman) conmon_pid: i32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawGraphDriver {
    #[serde(default)]
    pub(in crate::podman) name: String,
    pub(in crate::podman) data: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawMount {
    #[serde(rename = "Type", default)]
    pub(in crate::podman) kind: String,
    #[serde(default)]
    pub(in crate::podman) name: String,
    #[serde(default)]
    pub(in crate::podman) source: PathBuf,
    pub(in crate::podman) destination: PathBuf,
    #[serde(rename = "RW", default)]
    pub(in crate::podman) rw: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawNetworkSettings {
    pub(in crate::podman) sandbox_key: Option<String>,
    pub(in crate::podman) ports: Option<BTreeMap<String, Option<Vec<RawBinding>>>>,
    pub(in crate::podman) networks: Option<BTreeMap<String, RawNetwork>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawBinding {
    #[serde(default)]
    pub(in crate::podman) host_ip: String,
    pub(in crate::podman) host_port: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(in crate::podman) struct RawNetwork {
    pub(in crate::podman) gateway: String,
    #[serde(rename = "IPAddress")]
    pub(in crate::podman) ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub(in crate::podman) ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub(in crate::podman) ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(in crate::podman) global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub(in crate::podman) global_ipv6_prefix_len: u8,
    pub(in crate::podman) mac_address: String,
    #[serde(rename = "SecondaryIPAddresses")]
    pub(in crate::podman) secondary_ip_addresses: Option<Vec<RawAddress>>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub(in crate::podman) secondary_ipv6_addresses: Option<Vec<RawAddress>>,
}

#[derive(Deserialize)]
pub(in crate::podman) struct RawAddress {
    #[serde(rename = "Addr")]
    pub(in crate::podman) addr: String,
    #[serde(rename = "PrefixLength")]
    pub(in crate::podman) prefix_length: u8,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawConfig {
    #[serde(default)]
    pub(in crate::podman) tty: bool,
    #[serde(default)]
    pub(in crate::podman) open_stdin: bool,
    #[serde(default)]
    pub(in crate::podman) systemd_mode: bool,
    pub(in crate::podman) labels: Option<BTreeMap<String, String>>,
    pub(in crate::podman) annotations: Option<BTreeMap<String, String>>,
    pub(in crate::podman) healthcheck: Option<RawHealthcheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawHealthcheck {
    pub(in crate::podman) test: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawHostConfig {
    #[serde(default)]
    pub(in crate::podman) log_config: RawLogConfig,
    #[serde(default)]
    pub(in crate::podman) network_mode: String,
    #[serde(default)]
    pub(in crate::podman) restart_policy: RawRestartPolicy,
    #[serde(default)]
    pub(in crate::podman) auto_remove: bool,
    #[serde(default)]
    pub(in crate::podman) privileged: bool,
    #[serde(default)]
    pub(in crate::podman) init: bool,
    #[serde(default)]
    pub(in crate::podman) pid_mode: String,
    #[serde(default)]
    pub(in crate::podman) ipc_mode: String,
    #[serde(rename = "UTSMode", default)]
    pub(in crate::podman) uts_mode: String,
    #[serde(default)]
    pub(in crate::podman) cgroups: String,
    pub(in crate::podman) tmpfs: Option<BTreeMap<String, String>>,
    pub(in crate::podman) devices: Option<Vec<RawDevice>>,
    #[serde(default)]
    pub(in crate::podman) memory: i64,
    #[serde(rename = "IDMappings")]
    pub(in crate::podman) id_mappings: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawLogConfig {
    #[serde(rename = "Type", default)]
    pub(in crate::podman) kind: String,
    #[serde(default)]
    pub(in crate::podman) path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawRestartPolicy {
    #[serde(default)]
    pub(in crate::podman) name: String,
    #[serde(default)]
    pub(in crate::podman) maximum_retry_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::podman) struct RawDevice {
    #[serde(default)]
    pub(in crate::podman) path_on_host: String,
}

/// One network as `podman network inspect` prints it, and as its file describes it.
#[derive(Deserialize)]
pub(in crate::podman) struct RawNetworkInspect {
    pub(in crate::podman) name: String,
    #[serde(default)]
    pub(in crate::podman) driver: String,
}
