//! The floor: an interruption that consists of the freeze of a container, the OCI runtime's checkpoint, and the
//! runtime's restore on another host, one right after the other.
//!
//! Before the measurement podman creates a container with the same image, address and ports on the destination and
//! does not start its program. The benchmark kills what podman has started there (conmon first, so that nothing is
//! cleaned up). A bundle with its network and mounts is left. Both hosts share a tmpfs for the images, so nothing is
//! transferred. The runtimes' processes are forked and in their hosts' namespaces beforehand, and this program
//! freezes the container itself. During the measurement no podman runs, no packet is held and no conntrack entry is
//! created. Packets wait in the frozen container or are lost. CRIU gets the product's options.

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

/// CRIU's options. The network lock is not needed, since the original does not go on.
const OPTIONS: &str = "network-lock skip\nmanage-cgroups=ignore\ntcp-established\nfile-locks\n\
                       ghost-limit 268435456\ntimeout 10\n";
/// The socket of CRIU's server of pages, in its work directory (`LAZY_PAGES_SOCK_NAME` in `criu/uffd.c`).
const SOCKET: &str = "lazy-pages.socket";
/// The time limit for a freeze.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// What a restore does with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restore {
    /// All of it is in place when the restore ends.
    Whole,
    /// Another process of CRIU puts it in place when it is needed, and in the end all of it
    /// (<https://criu.org/Lazy_migration>). That process starts after the dump, since it reads the images.
    Lazy,
}

/// The durations of the floor's parts in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Floor {
    /// The freeze, from the request until the kernel reports it.
    pub(super) freeze: f64,
    /// The runtime's checkpoint.
    pub(super) dump: f64,
    /// The runtime's restore.
    pub(super) restore: f64,
    /// From the start of the freeze to the end of the restore.
    pub(super) whole: f64,
}

/// Measures the floor once with a fresh container under the default clients, and removes it.
pub(super) fn measure(lab: &Lab, runtime: Runtime) -> Result<Floor> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let server = fixture::start(a, c, runtime, NAME, 7000, &[])?;
    measure_running(lab, runtime, Restore::Whole, || Clients::start(c, server))
}

/// Measures the floor once with the container that runs on `a`, under the clients that `traffic` starts, and removes
/// the container.
pub(super) fn measure_running<T>(
    lab: &Lab,
    runtime: Runtime,
    memory: Restore,
    traffic: impl FnOnce() -> Result<T>,
) -> Result<Floor> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    shared_tmpfs::share(a, b)?;
    let of_restore = match memory {
        Restore::Whole => OPTIONS.to_owned(),
        Restore::Lazy => format!("{OPTIONS}lazy-pages\n"),
    };
    fixture::set_criu_options(a, OPTIONS)?;
    fixture::set_criu_options(b, &of_restore)?;
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
    let pages = ["criu", "lazy-pages", "--images-dir", &images, "--work-dir", &work];
    let pages = match memory {
        Restore::Whole => None,
        Restore::Lazy => Some(Prestarted::new(b, &pages.map(str::to_owned))?),
    };
    let socket = b.path(&work).join(SOCKET);
    let freezer = Freezer::new(&a.path("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')))?;
    let traffic = traffic()?;

    let began = Instant::now();
    freezer.freeze()?;
    let frozen = Instant::now();
    let dumped = dump.run().map(|()| Instant::now());
    let restored = dumped.and_then(|dumped| {
        let pages = pages.map(|pages| pages.begin_until(&socket)).transpose()?;
        restore.run()?;
        let now = Instant::now();
        pages.map(Prestarted::end).transpose()?;
        Ok((dumped, now))
    });

    drop(traffic);
    let outcome = restored.map(|(dumped, restored)| Floor {
        freeze: span(began, frozen),
        dump: span(frozen, dumped),
        restore: span(dumped, restored),
        whole: span(began, restored),
    });
    let outcome = outcome.inspect_err(|_| {
        for log in ["dump.log", "restore.log", "criu.log"] {
            let text = a.read(Path::new(&work).join(log)).unwrap_or_default();
            eprintln!("{log}: {}", crate::subprocess::tail(&text));
        }
    });
    fixture::remove(a, NAME)?;
    fixture::remove(b, NAME)?;
    [a, b].into_iter().try_for_each(fixture::remove_criu_options)?;
    outcome
}

/// Creates a bundle for the container on the destination. Returns the container's ID there and the directory of the
/// bundle.
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

/// The open files of a cgroup.
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

    /// Freezes the cgroup and polls without pause until it is frozen.
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
