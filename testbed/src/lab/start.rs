//! Starts a lab.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::claim::Claim;
use super::storage_template::{self, Storage};
use super::{
    LOGS, Lab, Owner, Runtime, SHARE, SWITCH, State, cgroup, standing_name, switch_namespaces,
};
use crate::error::{Context, Error, Result};
use crate::host::init::{HOST_ARGUMENT, InitPlan, LEAF, READY, SWITCH_ARGUMENT};
use crate::host::{self, Host};
use crate::programs::Programs;
use crate::subprocess;
use crate::{prepare, slowdown, switch};

/// The directory on a host with the product's and the testbed's programs. It is empty in the root file system.
const PROGRAMS: &str = "/usr/local/bin";

/// The time limit for systemd to boot.
const BOOT: Duration = Duration::from_secs(60);
/// The time between two checks.
const LOOK: Duration = Duration::from_millis(50);

/// The settings of a lab.
#[derive(Debug, Clone)]
#[must_use = "nothing is started until start is called"]
pub struct LabBuilder {
    hosts: Vec<String>,
    runtime: Runtime,
    standing: bool,
    empty_storage: bool,
    systemd: bool,
}

impl LabBuilder {
    /// Returns the default settings for the named hosts. The first host gets the address 192.0.2.1.
    pub fn new<S: AsRef<str>>(hosts: &[S]) -> Self {
        Self {
            hosts: hosts.iter().map(|name| name.as_ref().to_owned()).collect(),
            runtime: Runtime::default(),
            standing: false,
            empty_storage: false,
            systemd: false,
        }
    }

    /// Sets the OCI runtime of the hosts' podman.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Lets the lab outlive this program.
    pub fn standing(mut self) -> Self {
        self.standing = true;
        self
    }

    /// Makes systemd process 1 of each host, and podman use systemd's cgroups.
    pub fn systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    /// Leaves the hosts without any image.
    pub fn empty_storage(mut self) -> Self {
        self.empty_storage = true;
        self
    }

    /// Starts the lab, after building everything that it needs and the cache lacks.
    ///
    /// # Errors
    /// A name is invalid or occurs twice, something could not be built, or the kernel refused.
    pub fn start(&self) -> Result<Lab> {
        let needed = prepare::for_labs()?;
        let storage = if self.empty_storage {
            Storage::Empty
        } else {
            Storage::Copy(storage_template::template(&needed)?)
        };
        self.start_with(&needed.rootfs, &needed.programs, &storage)
    }

    /// Starts the lab from the given inputs.
    pub(crate) fn start_with(
        &self,
        rootfs: &Path,
        programs: &Programs,
        storage: &Storage,
    ) -> Result<Lab> {
        self.check()?;
        let claim = Claim::new(self.standing.then(standing_name).transpose()?.as_deref())?;
        let outcome = self.fill(&claim, rootfs, programs, storage);
        match outcome {
            Ok((hosts, switch, children)) => {
                let owner = if self.standing {
                    Owner::Standing(claim.places)
                } else {
                    Owner::Us { claim, children: Mutex::new(children) }
                };
                Ok(Lab {
                    owner,
                    hosts,
                    switch,
                    runtime: self.runtime,
                    servers: Mutex::default(),
                    pairs: Mutex::default(),
                })
            }
            Err(error) => {
                if let Err(second) = claim.places.clear() {
                    eprintln!("{}", crate::error::chain(&second));
                }
                Err(error)
            }
        }
    }

    fn check(&self) -> Result<()> {
        for (index, name) in self.hosts.iter().enumerate() {
            host::check_name(name)?;
            if self.hosts[..index].contains(name) {
                return Err(Error::Refused(format!("the host name {name} is given twice")));
            }
        }
        if !(1..=200).contains(&self.hosts.len()) {
            return Err(Error::Refused("a lab has from 1 to 200 hosts".to_owned()));
        }
        Ok(())
    }

    fn fill(
        &self,
        claim: &Claim,
        rootfs: &Path,
        programs: &Programs,
        storage: &Storage,
    ) -> Result<(Vec<Host>, crate::host::namespaces::Namespaces, Vec<Child>)> {
        let disk = &claim.places.disk;
        let directory = |name: &str| -> Result<PathBuf> {
            let path = disk.join(name);
            fs::create_dir_all(&path).context(|| format!("creating {}", path.display()))?;
            Ok(path)
        };
        let (bin, share, logs) = (directory("bin")?, directory(SHARE)?, directory(LOGS)?);
        for file in &programs.files {
            // A copy, so that a build during the lab's life does not change it.
            fs::copy(file, bin.join(file.file_name().unwrap_or_default()))
                .context(|| format!("copying {}", file.display()))?;
        }

        cgroup::delegate(&claim.places.cgroup)?;
        let switch_cgroup = claim.places.cgroup.join(SWITCH);
        cgroup::create(&switch_cgroup)?;
        let keep = self.standing.then(|| claim.lock().as_raw_fd());
        let mut children =
            vec![spawn_init(SWITCH_ARGUMENT, switch_cgroup.as_os_str().as_bytes(), &logs, keep)?];
        for name in &self.hosts {
            let base = directory(&format!("hosts/{name}"))?;
            let plan = InitPlan {
                name: name.clone(),
                cgroup: claim.places.cgroup.join(name),
                root: base.join("root"),
                lower: rootfs.to_owned(),
                upper: base.join("upper"),
                work: base.join("work"),
                binds: vec![
                    (base.join("storage"), "/var/lib/containers".into()),
                    (bin.clone(), PROGRAMS.into()),
                    (share.clone(), "/lab".into()),
                ],
                systemd: self.systemd,
            };
            for path in [&plan.root, &plan.upper, &plan.work] {
                fs::create_dir_all(path).context(|| format!("creating {}", path.display()))?;
            }
            storage.provide(&base.join("storage"))?;
            self.configure(name, &plan.upper)?;
            cgroup::create(&plan.cgroup.join(LEAF))?;
            let text = serde_json::to_vec(&plan)
                .map_err(std::io::Error::from)
                .context(|| "writing the plan of a host")?;
            children.push(spawn_init(HOST_ARGUMENT, &text, &logs, keep)?);
        }
        for (child, name) in
            children.iter_mut().zip(std::iter::once("the switch").chain(self.names()))
        {
            await_ready(child, name, &logs)?;
        }
        let switch = switch_namespaces(children[0].id() as i32, &claim.places.cgroup)?;
        let mut hosts = Vec::new();
        for ((number, name), child) in (1..).zip(self.names()).zip(&children[1..]) {
            let cgroup = claim.places.cgroup.join(name);
            hosts.push(Host::new(name, number, child.id() as i32, &cgroup, &logs)?);
        }
        if self.systemd {
            hosts.iter().try_for_each(await_boot)?;
        }
        switch::connect(&switch, &hosts)?;
        let state = State {
            hosts: hosts.iter().map(|host| (host.name().to_owned(), host.init())).collect(),
            switch: children[0].id() as i32,
            runtime: self.runtime,
        };
        let path = claim.places.run.join("lab.json");
        serde_json::to_vec(&state)
            .map_err(Into::into)
            .and_then(|text| fs::write(&path, text))
            .context(|| format!("writing {}", path.display()))?;
        Ok((hosts, switch, children))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(String::as_str)
    }

    /// Writes the host's configuration into the upper layer of its root.
    fn configure(&self, name: &str, upper: &Path) -> Result<()> {
        let mut table = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
        for (number, other) in (1..).zip(self.names()) {
            table.push_str(&format!("{} {other}\n", host::address(number)));
            table.push_str(&format!("{} {other}\n", host::address6(number)));
        }
        // This machine may lack the pids controller, and most hosts have no journald for podman's events.
        let manager = if self.systemd { "systemd" } else { "cgroupfs" };
        let containers = format!(
            "[containers]\npids_limit=0\n[engine]\ncgroup_manager=\"{manager}\"\n\
             events_logger=\"file\"\nruntime=\"{}\"\n",
            self.runtime.name()
        );
        let files = [
            ("etc/hosts", table),
            ("etc/hostname", format!("{name}\n")),
            ("etc/resolv.conf", String::new()),
            ("etc/containers/containers.conf", containers),
        ];
        for (file, contents) in files {
            let path = upper.join(file);
            let what = || format!("writing {}", path.display());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).context(what)?;
            }
            fs::write(&path, contents).context(what)?;
        }
        Ok(())
    }
}

/// Executes this program again as a process 1 or as a switch, with its plan on standard input. `keep` is a descriptor
/// that stays open in the new process: the lock of a lab that outlives this program.
fn spawn_init(role: &str, plan: &[u8], logs: &Path, keep: Option<i32>) -> Result<Child> {
    let path = logs.join("init.err");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .context(|| format!("opening {}", path.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("testbed").arg(role).current_dir("/");
    command.stdin(subprocess::input_file(plan)?).stdout(Stdio::piped()).stderr(log);
    if let Some(descriptor) = keep {
        // SAFETY: fcntl(2) on a number, in the child between fork and exec; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }
    let is_host = role == HOST_ARGUMENT;
    // The first child of a thread that asked for a new PID namespace is its process 1.
    std::thread::scope(|scope| {
        let spawner = scope.spawn(|| {
            if is_host {
                unshare(CloneFlags::CLONE_NEWPID)?;
            }
            command.spawn()
        });
        spawner.join().unwrap_or_else(|_| Err(std::io::Error::other("the spawning thread died")))
    })
    .context(|| "starting a process 1")
}

/// Waits until a host's systemd has started everything.
fn await_boot(host: &Host) -> Result<()> {
    let end = Instant::now() + slowdown::limit(BOOT);
    // systemd cannot do everything in a namespace, such as mounting rpc_pipefs, and then reports "degraded".
    loop {
        let asked = host.command("systemctl").args(["is-system-running"]).output()?;
        let state = asked.text();
        if matches!(state.trim(), "running" | "degraded") {
            return Ok(());
        }
        if Instant::now() >= end {
            let name = host.name();
            return Err(Error::Refused(format!(
                "systemd of host {name} is {state:?} after a minute"
            )));
        }
        thread::sleep(LOOK);
    }
}

fn await_ready(child: &mut Child, name: &str, logs: &Path) -> Result<()> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .context(|| format!("waiting for host {name}"))?;
    }
    if line.trim() == READY {
        return Ok(());
    }
    let _ = child.wait();
    let reason = fs::read_to_string(logs.join("init.err")).unwrap_or_default();
    Err(Error::Refused(format!("host {name} did not start: {}", reason.trim())))
}
