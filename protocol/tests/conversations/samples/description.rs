//! A description in which every setting has a value of its own.

use protocol::message::description::*;

use super::{ip, text};

pub(super) fn full() -> Description {
    Description {
        id: "a7".repeat(32),
        name: text("web"),
        created: text("2026-11-28T17:47:59.709796569Z"),
        create_command: vec![text("podman"), text("run")],
        image: Image {
            id: "70".repeat(32),
            name: text("localhost/probe:1"),
            requested: text("probe:1"),
        },
        runtime: text("crun"),
        specification: text("1.2.1"),
        process: process(),
        hostname: text("web.example"),
        labels: [(text("label"), text("1"))].into(),
        annotations: [(text("note"), text("2"))].into(),
        life: Life {
            restart: text("on-failure"),
            restart_retries: 3,
            stop_signal: 15,
            stop_timeout: 10,
            timeout: 3600,
            auto_remove: true,
            init: false,
            readiness: text("container"),
        },
        health: health(),
        log: Log { driver: text("k8s-file"), tag: text("tag"), max_size: 1 << 20 },
        confinement: confinement(),
        resources: resources(),
        storage: storage(),
        connectivity: connectivity(),
        timezone: text("Europe/Vienna"),
    }
}

fn process() -> Process {
    Process {
        args: vec![text("sleep"), text("1")],
        entrypoint: vec![text("/bin/sh")],
        command: vec![text("-c")],
        env: vec![text("A=1")],
        cwd: text("/srv"),
        creates_cwd: true,
        user: text("1000:100"),
        groups: vec![text("audio")],
        uid: 1000,
        gid: 100,
        additional_gids: vec![29],
        umask: text("0022"),
        terminal: false,
        console_size: Some(ConsoleSize { height: 25, width: 80 }),
        stdin: true,
        capabilities: Capabilities {
            bounding: vec![text("CAP_CHOWN")],
            effective: vec![text("CAP_KILL")],
            inheritable: vec![text("CAP_SETUID")],
            permitted: vec![text("CAP_SETGID")],
            ambient: vec![text("CAP_SETPCAP")],
        },
        limits: vec![Limit { kind: text("RLIMIT_NOFILE"), soft: 1024, hard: 4096 }],
        oom_score_adj: Some(-5),
        keeps_accounts: Some(false),
        passwd_entry: text("u"),
        group_entry: text("g"),
    }
}

fn health() -> Health {
    let check = |retries| HealthCheck {
        test: vec![text("CMD-SHELL"), text("true")],
        start_period: 1,
        start_interval: 2,
        interval: 3,
        timeout: 4,
        retries,
    };
    Health {
        check: Some(check(5)),
        startup: Some(StartupCheck { check: check(6), successes: 7 }),
        on_failure: 2,
        log: Some(text("local")),
        log_count: Some(8),
        log_size: Some(9),
    }
}

fn confinement() -> Confinement {
    let argument = SyscallArgument { index: 1, value: 2, value_two: 3, op: text("SCMP_CMP_EQ") };
    let call = Syscall {
        names: vec![text("clone")],
        action: text("SCMP_ACT_ALLOW"),
        errno_ret: Some(1),
        args: vec![argument],
    };
    Confinement {
        privileged: false,
        all_devices: true,
        no_new_privileges: false,
        seccomp: Some(Seccomp {
            default_action: text("SCMP_ACT_ERRNO"),
            default_errno_ret: Some(38),
            architectures: vec![text("SCMP_ARCH_X86_64")],
            flags: vec![text("SECCOMP_FILTER_FLAG_LOG")],
            syscalls: vec![call],
        }),
        apparmor: Apparmor::Default(text("0.62.2")),
        selinux: SelinuxLabels { disabled: true, categories: Some((1, 2)) },
        masked_paths: vec![text("/proc/kcore")],
        readonly_paths: vec![text("/proc/sys")],
        devices: vec![Device {
            path: text("/dev/fuse"),
            kind: text("c"),
            major: 10,
            minor: 229,
            mode: Some(0o666),
            uid: Some(1),
            gid: Some(2),
        }],
        requested_devices: vec![text("/dev/kvm")],
        device_rules: vec![DeviceRule {
            allow: true,
            kind: text("b"),
            major: Some(8),
            minor: Some(1),
            access: text("rwm"),
        }],
        sysctls: [(text("net.ipv4.ip_forward"), text("1"))].into(),
        namespaces: Namespaces {
            host_pid: true,
            host_ipc: false,
            host_uts: true,
            host_cgroup: false,
        },
        requested: Requested {
            seccomp: text("unconfined"),
            apparmor: text("profile"),
            label: text("label"),
            pids_limit: text("100"),
            cpus: text("0-1"),
            mems: text("0"),
            all_ports: true,
        },
    }
}

fn resources() -> Resources {
    Resources {
        memory: Memory { limit: Some(1), reservation: Some(2), swap: Some(3), swappiness: Some(4) },
        cpu: Cpu {
            shares: Some(1),
            quota: Some(2),
            burst: Some(3),
            period: Some(4),
            realtime_runtime: Some(5),
            realtime_period: Some(6),
            cpus: text("0-2"),
            mems: text("0"),
            idle: Some(7),
        },
        pids: Some(Pids { limit: -1 }),
        block_io: BlockIo { weight: Some(10) },
        hugepage_limits: vec![HugePages { page_size: text("2MB"), limit: 9 }],
        unified: [(text("memory.high"), text("1"))].into(),
        parent: text("/user.slice"),
    }
}

fn storage() -> Storage {
    let filesystems = [
        Filesystem::Proc,
        Filesystem::Sysfs,
        Filesystem::Tmpfs,
        Filesystem::Devpts,
        Filesystem::Mqueue,
        Filesystem::Cgroup,
        Filesystem::Host(text("/srv")),
    ];
    let mount = |filesystem| Mount {
        destination: text("/x"),
        filesystem,
        options: vec![text("rbind"), text("ro")],
    };
    Storage {
        read_only: true,
        writable_memory: false,
        volatile: true,
        shared_memory: 65_536_000,
        without_shared_memory: false,
        private_shared_memory: true,
        mounts: filesystems.into_iter().map(mount).collect(),
        requested_mounts: vec![text("/y")],
        roots: vec![text("/r")],
    }
}

fn connectivity() -> Connectivity {
    Connectivity {
        networks: vec![NetworkSettings {
            name: text("podman"),
            interface: text("eth0"),
            aliases: vec![text("alias")],
            static_addresses: vec![ip("10.88.0.2")],
            static_mac: text("02:42:0a:58:00:02"),
            options: [(text("mtu"), text("1400"))].into(),
            addresses: vec![Address {
                ip: ip("10.88.0.3"),
                prefix: 16,
                gateway: Some(ip("10.88.0.1")),
            }],
            mac: text("02:42:0a:58:00:03"),
        }],
        ports: vec![PortRange {
            protocol: text("tcp,udp"),
            host_address: Some(ip("192.0.2.1")),
            host_port: 8080,
            container_port: 80,
            range: 2,
        }],
        exposed: [(53, vec![text("udp")])].into(),
        dns_servers: vec![ip("192.0.2.53")],
        dns_search: vec![text("example")],
        dns_options: vec![text("ndots:1")],
        extra_hosts: vec![text("db:192.0.2.9")],
        hosts_file: text("none"),
        image_resolver: true,
        image_hosts: false,
        image_hostname: true,
    }
}
