//! The JSON form of podman's records (`libpod/container_config.go`, `libpod/container.go`), trimmed to the fields that
//! are read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) spec: Spec,
    #[serde(rename = "rootfsImageID")]
    pub(super) image_id: String,
    #[serde(rename = "rootfsImageName")]
    pub(super) image_name: String,
    #[serde(rename = "idMappingsOptions")]
    pub(super) id_mappings: Value,
    #[serde(rename = "ShmDir")]
    pub(super) shm: String,
    pub(super) mounts: Vec<String>,
    #[serde(rename = "staticDir")]
    pub(super) static_dir: PathBuf,
    #[serde(rename = "createNetNS")]
    pub(super) own_network: bool,
    #[serde(rename = "newPortMappings")]
    pub(super) ports: Option<Vec<Ports>>,
    #[serde(rename = "newNetworks")]
    pub(super) networks: BTreeMap<String, Value>,
    #[serde(rename = "networkMode")]
    pub(super) network_mode: String,
    #[serde(rename = "cgroupsMode")]
    pub(super) cgroups: String,
    #[serde(rename = "logPath")]
    pub(super) log: String,
    #[serde(rename = "logDriver")]
    pub(super) log_driver: String,
    pub(super) runtime: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) restart_policy: String,
    #[serde(default)]
    pub(super) restart_retries: u64,
}

#[derive(Deserialize)]
pub(super) struct Ports {
    pub(super) host_ip: String,
    pub(super) container_port: u16,
    pub(super) host_port: u16,
    pub(super) range: u16,
    pub(super) protocol: String,
}

#[derive(Deserialize)]
pub(super) struct Spec {
    pub(super) process: Process,
    pub(super) mounts: Vec<SpecMount>,
    pub(super) linux: Linux,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) hooks: Option<Value>,
}

#[derive(Deserialize)]
pub(super) struct Process {
    #[serde(default)]
    pub(super) terminal: bool,
}

#[derive(Deserialize)]
pub(super) struct SpecMount {
    pub(super) destination: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Deserialize)]
pub(super) struct Linux {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) devices: Option<Value>,
    pub(super) resources: Option<Resources>,
}

#[derive(Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) path: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Resources {
    pub(super) memory: Option<Value>,
    pub(super) devices: Option<Vec<DeviceRule>>,
}

#[derive(Deserialize)]
pub(super) struct DeviceRule {
    pub(super) allow: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    pub(super) state: u64,
    pub(super) config_path: PathBuf,
    pub(super) mounted: bool,
    pub(super) mount_point: PathBuf,
    pub(super) pid: i32,
    pub(super) conmon_pid: i32,
    pub(super) netns: String,
    pub(super) network_status: BTreeMap<String, NetworkStatus>,
}

#[derive(Deserialize)]
pub(super) struct NetworkStatus {
    pub(super) interfaces: BTreeMap<String, Interface>,
}

#[derive(Deserialize)]
pub(super) struct Interface {
    pub(super) subnets: Vec<Subnet>,
    pub(super) mac_address: String,
}

#[derive(Deserialize)]
pub(super) struct Subnet {
    pub(super) ipnet: String,
    pub(super) gateway: Option<String>,
}
