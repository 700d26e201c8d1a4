//! Kernel parameters of `podman run` hold after a migration.

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-kernel-parameters-crun", &["fidelity"], |context| {
        are_kept(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-kernel-parameters-runc", &["fidelity"], |context| {
        are_kept(context, Runtime::Runc)
    })
    .limit(240),
];

/// Parameters with values that differ from the kernel's defaults.
const PARAMETERS: &[(&str, &str)] = &[
    ("net.ipv4.ip_unprivileged_port_start", "80"),
    ("net.core.somaxconn", "77"),
    ("net.ipv4.tcp_keepalive_time", "123"),
    ("net.ipv6.conf.all.hop_limit", "33"),
    ("kernel.shmmax", "123456789"),
    ("kernel.msgmax", "9000"),
    ("fs.mqueue.msg_max", "33"),
];

/// A program that opens a socket as ping(8) does without CAP_NET_RAW, and pings itself.
const PING: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(b"\x08\x00\x00\x00\x00\x00\x00\x01", ("127.0.0.1", 0))
print(len(s.recv(100)))
"#;

fn values(host: &Host) -> Result<Vec<String>> {
    let names = PARAMETERS.iter().map(|(name, _)| *name).chain(["net.ipv4.ping_group_range"]);
    names
        .map(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            host.podman(["exec", "params", "cat", &path])
        })
        .collect()
}

fn are_kept(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let options: Vec<String> =
        PARAMETERS.iter().map(|(name, value)| format!("--sysctl={name}={value}")).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let run = ["run", "--detach", "--name", "params"];
    let command = ["python:1", "sleep", "100000"];
    lab.host("a")?.podman([&run[..], &options, &command].concat())?;
    let before = values(lab.host("a")?)?;
    for ((name, value), is) in PARAMETERS.iter().zip(&before) {
        ensure!(value == is, "{name} is {is} from the beginning");
    }
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("params", from, to)?;
        let host = lab.host(to)?;
        let after = values(host)?;
        ensure!(after == before, "on {to} they are {after:?}, were {before:?}");
        host.podman(["exec", "params", "python3", "-c", PING])?;
    }
    Ok(())
}
