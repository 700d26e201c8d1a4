//! The floor: what remains of an interruption when it is nothing but freezing a container, the OCI
//! runtime's checkpoint, and the runtime's restore on another host, one right after the other.
//!
//! Before the measured time podman makes a container of the same image, address and ports on the
//! destination and stops short of starting its program; what podman has started there is taken
//! away again (conmon first, so that nothing is cleaned up), and a bundle with its network and
//! mounts is left. Images go to a tmpfs that both hosts share, so nothing is carried. The runtimes'
//! processes are forked and in their hosts' namespaces before; the freeze is written by this
//! program itself. In the measured time there is no podman, no packet is held and no connection
//! entry moved; packets wait in the frozen container or are lost. CRIU gets the options that the
//! product gives it.

pub mod prestarted;
mod shared_tmpfs;

use std::fs;
use std::io::{Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use prestarted::Prestarted;

use super::fixture::{self, Clients, NAME};
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::lab::{Lab, Runtime};

/// CRIU's options; the network lock is of no use where nothing is going to run on.
const OPTIONS: &str = "network-lock skip\nmanage-cgroups=ignore\ntcp-established\nfile-locks\n\
                       ghost-limit 268435456\ntimeout 10\n";
/// How long a freeze may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// How long the floor's parts took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Floor {
    /// From the order to freeze until the kernel says that it is done.
    pub(super) freeze: f64,
    /// The runtime's checkpoint.
    pub(super) dump: f64,
    /// The runtime's restore.
    pub(super) restore: f64,
    /// From the first moment to the last.
    pub(super) whole: f64,
}

/// Measures the floor once with a fresh container under the usual clients, and removes it.
pub(super) fn measure(lab: &Lab, runtime: Runtime) -> Result<Floor> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let server = fixture::start(a, c, runtime, NAME, 7000, &[])?;
    measure_running(lab, runtime, || Clients::start(c, server))
}

/// Measures the floor once with the container that runs on `a`, while what `traffic` returns talks
/// to it, and removes the container.
pub(super) fn measure_running<T>(
    lab: &Lab,
    runtime: Runtime,
    traffic: impl FnOnce() -> Result<T>,
) -> Result<Floor> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    shared_tmpfs::share(a, b)?;
    [a, b].into_iter().try_for_each(|host| fixture::set_criu_options(host, OPTIONS))?;
    let id = a.podman(["inspect", "--format", "{{.Id}}", NAME])?;
    let cgroup = a.podman(["inspect", "--format", "{{.State.CgroupPath}}", NAME])?;
    let (target, bundle) = stage(a, b, runtime)?;
    let [images, work] = ["images", "work"].map(|name| format!("{}/{name}", shared_tmpfs::PLACE));
    a.run(["mkdir", &images, &work])?;
    let places = ["--image-path", &images, "--work-path", &work];
    let options = ["--tcp-established", "--file-locks", "--manage-cgroups-mode", "ignore"];
    let line = |action: &[&str], id: &str| -> Vec<String> {
        let words = [runtime.name()].into_iter().chain(action.iter().copied());
        words.chain(options).chain(places).chain([id]).map(str::to_owned).collect()
    };
    let restore = ["restore", "--detach", "--bundle", &bundle];
    let restore = Prestarted::new(b, &line(&restore, &target))?;
    let dump = Prestarted::new(a, &line(&["checkpoint", "--leave-running"], &id))?;
    let freezer = Freezer::new(&a.path("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')))?;
    let traffic = traffic()?;

    let began = Instant::now();
    freezer.freeze()?;
    let frozen = Instant::now();
    let dumped = dump.run().map(|()| Instant::now());
    let restored = dumped.and_then(|dumped| restore.run().map(|()| (dumped, Instant::now())));

    drop(traffic);
    let outcome = restored.map(|(dumped, restored)| Floor {
        freeze: span(began, frozen),
        dump: span(frozen, dumped),
        restore: span(dumped, restored),
        whole: span(began, restored),
    });
    let outcome = outcome.inspect_err(|_| {
        for log in ["dump.log", "restore.log"] {
            let text = a.read(Path::new(&work).join(log)).unwrap_or_default();
            eprintln!("{log}: {}", crate::subprocess::tail(&text));
        }
    });
    fixture::remove(a, NAME)?;
    fixture::remove(b, NAME)?;
    [a, b].into_iter().try_for_each(fixture::remove_criu_options)?;
    outcome
}

/// Makes a bundle for the container on the destination; returns the container's ID there and the
/// bundle's directory.
fn stage(a: &Host, b: &Host, runtime: Runtime) -> Result<(String, String)> {
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = a.podman(["inspect", "--format", address, NAME])?;
    let command = a.podman(["inspect", "--format", "{{json .Config.Cmd}}", NAME])?;
    let command: Vec<String> = serde_json::from_str(&command)
        .map_err(std::io::Error::from)
        .context(|| "reading the command of a container")?;
    let mut words = vec!["--runtime", runtime.name(), "create", "--name", NAME, "--ip", &address];
    words.extend(["--publish", "7000:7000/tcp", "--publish", "7001:7001/tcp"]);
    words.extend(["--publish", "7000:7000/udp", "probe:1"]);
    words.extend(command.iter().map(String::as_str));
    b.podman(words)?;
    b.podman(["init", NAME])?;
    let target = b.podman(["inspect", "--format", "{{.Id}}", NAME])?;
    let config = b.podman(["inspect", "--format", "{{.OCIConfigPath}}", NAME])?;
    let conmon = b.podman(["inspect", "--format", "{{.State.ConmonPid}}", NAME])?;
    b.run(["kill", "-KILL", &conmon])?;
    b.run([runtime.name(), "delete", "--force", &target])?;
    let bundle = Path::new(&config).parent().unwrap_or(Path::new("/"));
    Ok((target, bundle.to_string_lossy().into_owned()))
}

/// A cgroup's files, open.
struct Freezer {
    freeze: fs::File,
    events: fs::File,
}

impl Freezer {
    fn new(cgroup: &Path) -> Result<Self> {
        let open = |name: &str, write: bool| {
            let path = cgroup.join(name);
            fs::OpenOptions::new()
                .read(!write)
                .write(write)
                .open(&path)
                .context(|| format!("opening {}", path.display()))
        };
        Ok(Self { freeze: open("cgroup.freeze", true)?, events: open("cgroup.events", false)? })
    }

    /// Freezes, and looks without pause until it is so.
    fn freeze(mut self) -> Result<()> {
        let what = || "freezing a container";
        std::io::Write::write_all(&mut self.freeze, b"1").context(what)?;
        let deadline = Instant::now() + FREEZE_LIMIT;
        loop {
            let mut text = String::new();
            self.events.rewind().context(what)?;
            self.events.read_to_string(&mut text).context(what)?;
            if text.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Check("a container did not freeze".to_owned()));
            }
            std::thread::yield_now();
        }
    }
}

fn span(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}
