//! Descriptions of containers. `Description::validate` checks each setting where an offer is judged.

use engine::description::{
    Address, Apparmor, BlockIo, Capabilities, Confinement, Connectivity, ConsoleSize, Cpu,
    Description, Device, DeviceRule, Filesystem, Health, HealthCheck, HugePages, Image, Life,
    Limit, Log, Memory, Mount, Namespaces, Network, Pids, Port, Process, Requested, Resources,
    Seccomp, SelinuxLabels, StartupCheck, Storage, Syscall, SyscallArgument,
};
use protocol::message::description as wire;

use super::{Refused, Wire, same_fields, same_variants};

same_variants! {
    Apparmor => wire::Apparmor { Absent, Default(version), Unconfined }
    Filesystem => wire::Filesystem { Proc, Sysfs, Tmpfs, Devpts, Mqueue, Cgroup, Host(path) }
}

same_fields! {
    Description => wire::Description {
        id, name, created, create_command, image, runtime, specification, process, hostname, labels,
        annotations, life, health, log, confinement, resources, storage, connectivity, timezone,
    }
    Image => wire::Image { id, name, requested }
    Process => wire::Process {
        args, entrypoint, command, env, cwd, creates_cwd, user, groups, uid, gid, additional_gids, umask,
        terminal, console_size, stdin, capabilities, limits, oom_score_adj, keeps_accounts, passwd_entry,
        group_entry,
    }
    ConsoleSize => wire::ConsoleSize { height, width }
    Capabilities => wire::Capabilities { bounding, effective, inheritable, permitted, ambient }
    Limit => wire::Limit { kind, soft, hard }
    Life => wire::Life {
        restart, restart_retries, stop_signal, stop_timeout, timeout, auto_remove, init, readiness,
    }
    Health => wire::Health { check, startup, on_failure, log, log_count, log_size }
    HealthCheck => wire::HealthCheck { test, start_period, start_interval, interval, timeout, retries }
    StartupCheck => wire::StartupCheck { check, successes }
    Log => wire::Log { driver, tag, max_size }
    Confinement => wire::Confinement {
        privileged, all_devices, no_new_privileges, seccomp, apparmor, selinux, masked_paths, readonly_paths,
        devices, requested_devices, device_rules, sysctls, namespaces, requested,
    }
    Namespaces => wire::Namespaces { host_pid, host_ipc, host_uts, host_cgroup }
    Requested => wire::Requested { seccomp, apparmor, label, pids_limit, cpus, mems, all_ports }
    SelinuxLabels => wire::SelinuxLabels { disabled, categories }
    Device => wire::Device { path, kind, major, minor, mode, uid, gid }
    DeviceRule => wire::DeviceRule { allow, kind, major, minor, access }
    Seccomp => wire::Seccomp { default_action, default_errno_ret, architectures, flags, syscalls }
    Syscall => wire::Syscall { names, action, errno_ret, args }
    SyscallArgument => wire::SyscallArgument { index, value, value_two, op }
    Resources => wire::Resources { memory, cpu, pids, block_io, hugepage_limits, unified, parent }
    Memory => wire::Memory { limit, reservation, swap, swappiness }
    Cpu => wire::Cpu {
        shares, quota, burst, period, realtime_runtime, realtime_period, cpus, mems, idle,
    }
    Pids => wire::Pids { limit }
    BlockIo => wire::BlockIo { weight }
    HugePages => wire::HugePages { page_size, limit }
    Mount => wire::Mount { destination, filesystem, options }
    Connectivity => wire::Connectivity {
        networks, ports, exposed, dns_servers, dns_search, dns_options, extra_hosts, hosts_file,
        image_resolver, image_hosts, image_hostname,
    }
    Network => wire::NetworkSettings {
        name, interface, aliases, static_addresses, static_mac, options, addresses, mac,
    }
    Address => wire::Address { ip, prefix, gateway }
    Port => wire::PortRange { protocol, host_address, host_port, container_port, range }
}

/// Volumes travel before the description: they have no place in its form.
impl Wire for Storage {
    type Form = wire::Storage;

    fn into_wire(self) -> wire::Storage {
        wire::Storage {
            read_only: self.read_only,
            writable_memory: self.writable_memory,
            volatile: self.volatile,
            shared_memory: self.shared_memory,
            without_shared_memory: self.without_shared_memory,
            private_shared_memory: self.private_shared_memory,
            mounts: self.mounts.into_wire(),
            requested_mounts: self.requested_mounts.into_wire(),
            roots: self.roots.into_wire(),
        }
    }

    fn from_wire(form: wire::Storage) -> Result<Self, Refused> {
        Ok(Self {
            read_only: form.read_only,
            writable_memory: form.writable_memory,
            volatile: form.volatile,
            shared_memory: form.shared_memory,
            without_shared_memory: form.without_shared_memory,
            private_shared_memory: form.private_shared_memory,
            mounts: Vec::from_wire(form.mounts)?,
            volumes: Vec::new(),
            requested_mounts: Vec::from_wire(form.requested_mounts)?,
            roots: Vec::from_wire(form.roots)?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use protocol::message::Message;

    use super::*;
    use crate::convert::comes_back;

    /// Returns the description in the recorded offer, in which every setting has a value.
    pub(in crate::convert) fn full() -> Description {
        let recorded = include_bytes!("../../../protocol/tests/conversations/v6/03-Offer");
        match Message::decode(&recorded[4..]).unwrap() {
            Message::Offer(offer) => Description::from_wire(offer.description).unwrap(),
            other => panic!("{} in place of an offer", other.name()),
        }
    }

    #[test]
    fn a_description_comes_back() {
        comes_back(&Description::default());
        let full = full();
        assert_ne!(full, Description::default());
        comes_back(&full);
        for apparmor in [Apparmor::Absent, Apparmor::Unconfined] {
            comes_back(&apparmor);
        }
    }
}
