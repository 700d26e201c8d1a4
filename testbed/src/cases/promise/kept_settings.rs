//! A migrated container has the same settings. A container whose settings cannot all be kept is refused.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cases::untouched::Untouched;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-settings-are-kept", &["promise"], settings_are_kept),
    Case::new("promise-unknown-settings-are-refused", &["promise"], unknown_are_refused),
];

/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;

/// The options of the first container. They have no resource limits and no other user, since not every machine has the
/// controllers and CAP_SYS_RESOURCE for them.
const PLAIN: &[&str] =
    &["--publish=7000:7000", "--publish=8100-8101:8100-8101/udp", "--restart=on-failure:3"];
const RICH: &[&str] = &[
    "--hostname=richhost",
    "--user=0:0",
    "--group-add=44",
    "--umask=0027",
    "--workdir=/tmp",
    "--env=MULTI=x y",
    "--label=one=line\nline",
    "--annotation=my.note=hello",
    "--add-host=far:192.0.2.9",
    "--dns=9.9.9.9",
    "--dns-search=example.com",
    "--dns-option=ndots:2",
    "--tmpfs=/scratch:size=8m,mode=1777",
    "--shm-size=32m",
    "--ulimit=nofile=4096:8192",
    "--ulimit=core=0",
    "--cap-drop=CHOWN",
    "--security-opt=no-new-privileges",
    "--security-opt=mask=/proc/cpuinfo",
    "--sysctl=net.ipv4.ip_unprivileged_port_start=80",
    "--oom-score-adj=100",
    "--stop-signal=SIGINT",
    "--stop-timeout=3",
    "--log-opt=max-size=1mb",
    "--no-healthcheck",
    "--network=podman:alias=ali,ip=10.88.0.50,mac=02:11:22:33:44:55,interface_name=eth5",
    "--publish=127.0.0.1:8090:90/tcp",
    "--expose=7777",
    "--tz=UTC",
    "--ipc=private",
    "--rm",
];

/// The paths in podman's description that may differ, with the reason. A path that ends in a dot stands for all below
/// it.
const INSPECTED: &[(&str, &str)] = &[
    (".State.", "the process is another one and began later"),
    (".Created", "podman writes down when it imported the container"),
    (".GraphDriver.", "directories of the other host's store"),
    (".NetworkSettings.SandboxKey", "the other host's network namespace"),
    (".NetworkSettings.SandboxID", "the same"),
    (".NetworkSettings.Networks.podman.NetworkID", "each host has its own network of that name"),
    (".lockNumber", "a number of the engine's"),
];
/// The paths in the OCI configuration that may differ, with the reason.
const CONFIGURED: &[(&str, &str)] = &[
    (".root.path", "a directory of the other host's store"),
    (".linux.namespaces.", "the path of the other host's network namespace"),
    (".mounts.", "the order, and how the engine mounts its own files when it imports a container"),
    (
        ".hostname",
        "the container's ID, unless its creator gave one; the engine sets it at the next start",
    ),
];

fn settings_are_kept(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for (name, options) in [("plain", PLAIN), ("rich", RICH)] {
        let run = ["run", "--detach", "--name", name];
        let command = ["probe:1", "netmig-probe", "serve"];
        a.podman([&run, options, &command].concat())?;
        let before = [inspected(a, name)?, configured(a, name)?];
        lab.migrate(name, "a", "b")?;
        let after = [inspected(b, name)?, configured(b, name)?];
        for ((before, after), expected) in before.iter().zip(&after).zip([INSPECTED, CONFIGURED]) {
            let differences = differences(before, after);
            let unexpected: Vec<&String> = differences
                .iter()
                .filter(|(path, _)| !expected.iter().any(|(known, _)| covers(known, path)))
                .map(|(_, told)| told)
                .collect();
            ensure!(unexpected.is_empty(), "{name}: {unexpected:#?}");
        }
        let mounts = [&before[1], &after[1]].map(mounts);
        ensure!(mounts[0] == mounts[1], "{name}: mounts were {:?}, are {:?}", mounts[0], mounts[1]);
    }
    Ok(())
}

fn unknown_are_refused(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    let a = lab.host("a")?;
    let kinds: [(&[&str], &str); 3] = [
        (&["--cidfile", "/run/web.cid"], "--cidfile /run/web.cid"),
        (&["--pidfile", "/run/web.pid"], "pid_file"),
        (&["--log-opt", "path=/run/web.log"], "logPath"),
    ];
    for (options, setting) in kinds {
        let run = ["run", "--detach", "--name", "web", "--publish", "7000:7000/udp"];
        a.podman([&run, options, &["probe:1", "netmig-probe", "serve"]].concat())?;
        let before = Untouched::look(&lab, "a", "b", "web")?;
        let attempt = lab.attempt("web", "a", "b", &[])?;
        ensure!(attempt.code == Some(REFUSED), "{setting}: {attempt:?}");
        ensure!(attempt.stderr.contains(setting), "no {setting} in {}", attempt.stderr);
        ensure!(attempt.json()?.to_string().contains("\"setting\""), "{attempt:?}");
        before.check()?;
        a.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    Ok(())
}

fn inspected(host: &Host, name: &str) -> Result<Value> {
    let list: Value = json(&host.podman(["container", "inspect", name])?)?;
    Ok(list[0].clone())
}

/// Reads the OCI configuration of a container.
fn configured(host: &Host, name: &str) -> Result<Value> {
    let path = host.podman(["inspect", "--format", "{{.OCIConfigPath}}", name])?;
    json(&host.run(["cat", path.trim()])?)
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::Check(format!("{e}: {text}")))
}

/// Returns the mounts of a configuration, without the host's paths.
fn mounts(configuration: &Value) -> BTreeMap<String, String> {
    let mounts = configuration["mounts"].as_array().into_iter().flatten();
    let one = |mount: &Value| (mount["destination"].to_string(), mount["type"].to_string());
    mounts.map(one).collect()
}

fn covers(known: &str, path: &str) -> bool {
    path == known || (known.ends_with('.') && path.starts_with(known))
}

/// Returns the paths at which two values differ, each with both values.
fn differences(before: &Value, after: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(before, after, String::new(), &mut found);
    found
}

fn collect(before: &Value, after: &Value, path: String, found: &mut BTreeMap<String, String>) {
    match (before, after) {
        (Value::Object(one), Value::Object(two)) => {
            for key in one.keys().chain(two.keys()) {
                let [before, after] = [one, two].map(|map| map.get(key).unwrap_or(&Value::Null));
                collect(before, after, format!("{path}.{key}"), found);
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            for (number, (before, after)) in one.iter().zip(two).enumerate() {
                collect(before, after, format!("{path}.{number}"), found);
            }
        }
        _ if before == after => {}
        _ => drop(found.insert(path.clone(), format!("{path} was {before}, is {after}"))),
    }
}
