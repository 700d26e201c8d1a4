//! The JSON form of podman's `ContainerConfig` and of its networks' state, trimmed to the fields that are read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::description::HealthCheck;

/// What is read of the configuration.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) spec: Created,
    #[serde(rename = "CreateCommand")]
    pub(super) create_command: Vec<String>,
    #[serde(rename = "RawImageName")]
    pub(super) raw_image_name: String,
    #[serde(rename = "rootfsImageID")]
    pub(super) image_id: String,
    #[serde(rename = "rootfsImageName")]
    pub(super) image_name: String,
    #[serde(rename = "NOShmShare")]
    pub(super) no_shm_share: bool,
    #[serde(rename = "NoShm")]
    pub(super) no_shm: bool,
    #[serde(rename = "shmSize")]
    pub(super) shm_size: i64,
    #[serde(rename = "createWorkingDir")]
    pub(super) create_working_dir: bool,
    pub(super) runtime: String,
    pub(super) volatile: bool,
    pub(super) passwd: Option<bool>,
    pub(super) chroot_directories: Vec<String>,
    pub(super) privileged: bool,
    pub(super) labelopts: Vec<String>,
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    #[serde(rename = "newPortMappings")]
    pub(super) ports: Vec<PortMapping>,
    #[serde(rename = "exposedPorts")]
    pub(super) exposed: BTreeMap<u16, Vec<String>>,
    #[serde(rename = "UseImageResolvConf")]
    pub(super) image_resolver: bool,
    #[serde(rename = "dnsServer")]
    pub(super) dns_servers: Vec<IpAddr>,
    #[serde(rename = "dnsSearch")]
    pub(super) dns_search: Vec<String>,
    #[serde(rename = "dnsOption")]
    pub(super) dns_options: Vec<String>,
    #[serde(rename = "useImageHostname")]
    pub(super) image_hostname: bool,
    #[serde(rename = "UseImageHosts")]
    pub(super) image_hosts: bool,
    #[serde(rename = "baseHostsFile")]
    pub(super) hosts_file: String,
    #[serde(rename = "hostsAdd")]
    pub(super) extra_hosts: Vec<String>,
    #[serde(rename = "newNetworks")]
    pub(super) networks: BTreeMap<String, NetworkOptions>,
    #[serde(rename = "namedVolumes")]
    pub(super) named_volumes: Vec<NamedVolume>,
    #[serde(rename = "userVolumes")]
    pub(super) user_volumes: Vec<String>,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) labels: BTreeMap<String, String>,
    #[serde(rename = "stopSignal")]
    pub(super) stop_signal: u64,
    #[serde(rename = "stopTimeout")]
    pub(super) stop_timeout: u64,
    pub(super) timeout: u64,
    #[serde(rename = "createdTime")]
    pub(super) created: String,
    #[serde(rename = "cgroupParent")]
    pub(super) cgroup_parent: String,
    pub(super) group_entry: String,
    #[serde(rename = "logTag")]
    pub(super) log_tag: String,
    #[serde(rename = "logSize")]
    pub(super) log_size: i64,
    #[serde(rename = "logDriver")]
    pub(super) log_driver: String,
    pub(super) restart_policy: String,
    pub(super) restart_retries: u64,
    #[serde(rename = "sdnotifyMode")]
    pub(super) notify_mode: String,
    pub(super) healthcheck: Option<HealthCheck>,
    pub(super) healthcheck_on_failure_action: u64,
    #[serde(rename = "healthLogDestination")]
    pub(super) health_log: Option<String>,
    #[serde(rename = "healthMaxLogCount")]
    pub(super) health_log_count: Option<u64>,
    #[serde(rename = "healthMaxLogSize")]
    pub(super) health_log_size: Option<u64>,
    #[serde(rename = "startupHealthCheck")]
    pub(super) startup: Option<Startup>,
    pub(super) timezone: String,
    pub(super) umask: String,
    pub(super) device_host_src: Vec<HostDevice>,
    pub(super) passwd_entry: String,
    #[serde(rename = "mountAllDevices")]
    pub(super) all_devices: bool,
    #[serde(rename = "readWriteTmpfs")]
    pub(super) writable_memory: bool,
}

/// The OCI configuration with which a container was created; the one by which it was started has a host name
/// in any case.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Created {
    pub(super) hostname: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct PortMapping {
    pub(super) host_ip: String,
    pub(super) container_port: u16,
    pub(super) host_port: u16,
    pub(super) range: u16,
    pub(super) protocol: String,
}

/// `ContainerNamedVolume` (`libpod/container.go`).
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct NamedVolume {
    #[serde(rename = "volumeName")]
    pub(super) name: String,
    pub(super) dest: String,
    pub(super) options: Vec<String>,
    #[serde(rename = "setAnonymous")]
    pub(super) is_anonymous: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct NetworkOptions {
    pub(super) static_ips: Vec<IpAddr>,
    pub(super) aliases: Vec<String>,
    pub(super) static_mac: String,
    pub(super) interface_name: String,
    pub(super) options: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Startup {
    #[serde(flatten)]
    pub(super) check: HealthCheck,
    #[serde(rename = "Successes")]
    pub(super) successes: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct HostDevice {
    pub(super) path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) interfaces: BTreeMap<String, Interface>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    pub(super) subnets: Vec<Subnet>,
    pub(super) mac_address: String,
}

#[derive(Deserialize)]
pub(super) struct Subnet {
    pub(super) ipnet: String,
    #[serde(default)]
    pub(super) gateway: Option<IpAddr>,
}
