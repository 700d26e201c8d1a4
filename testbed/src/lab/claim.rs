//! The resources of a lab outside its namespaces: a run-time directory with a lock, a directory on disk, a cgroup. The
//! holder of the lock owns the lab. A lab whose lock is free is left over from a killed run.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::cache;
use crate::error::{Context, Error, Result};

use super::cgroup;

/// The prefix of the name of every lab's cgroup.
const PREFIX: &str = "netmig-testbed-";

/// The paths of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) id: String,
    /// The run-time directory, with lock and state.
    pub(crate) run: PathBuf,
    /// The directory on disk, with overlays, container storage, programs and logs.
    pub(crate) disk: PathBuf,
    pub(crate) cgroup: PathBuf,
}

impl Places {
    pub(crate) fn of(id: &str) -> Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            run: cache::run_directories().join(id),
            disk: cache::lab_directories().join(id),
            cgroup: cgroup::hierarchy()?.join(format!("{PREFIX}{id}")),
        })
    }

    /// Kills every process and removes everything. Goes on after an error and returns the first one.
    pub(crate) fn clear(&self) -> Result<()> {
        let killed = cgroup::destroy(&self.cgroup);
        let disk = cache::remove(&self.disk);
        // The lock file goes last: without it no later run would find the rest.
        let run = if killed.is_ok() && disk.is_ok() { cache::remove(&self.run) } else { Ok(()) };
        killed.and(disk).and(run)
    }

    /// Returns whether any trace of the lab is left.
    pub(crate) fn any_trace(&self) -> bool {
        [&self.run, &self.disk, &self.cgroup].into_iter().any(|path| path.exists())
    }

    fn lock_path(&self) -> PathBuf {
        self.run.join("lock")
    }
}

/// The ownership of a lab's paths. Dropping it releases the lock and removes nothing.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) places: Places,
    lock: File,
}

impl Claim {
    /// Claims the paths of a new lab, after removing labs without owner. Without a name the lab gets a unique one.
    pub(crate) fn new(name: Option<&str>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let _all = lock_all()?;
        sweep()?;
        let id = name.map_or_else(
            || format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            str::to_owned,
        );
        let places = Places::of(&id)?;
        if places.run.exists() {
            return Err(Error::Refused(format!("the lab {id} is already up")));
        }
        cache::create_private(&places.run)?;
        let lock = cache::open_lock(&places.lock_path())?;
        lock.lock().context(|| format!("locking {}", places.lock_path().display()))?;
        cache::create_private(&places.disk)?;
        cgroup::create(&places.cgroup)?;
        if name.is_none() {
            ours().push(places.clone());
        }
        Ok(Self { places, lock })
    }

    /// Returns the lock, to be handed to processes that keep the lab alive without this program.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }
}

/// The labs that end with this program.
static OURS: Mutex<Vec<Places>> = Mutex::new(Vec::new());

fn ours() -> MutexGuard<'static, Vec<Places>> {
    OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Removes every lab of this program.
pub(crate) fn clear_ours() {
    let all = std::mem::take(&mut *ours());
    for places in all.iter().filter(|places| places.any_trace()) {
        if let Err(error) = places.clear() {
            eprintln!("{}", crate::error::chain(&error));
        }
    }
}

fn lock_all() -> Result<File> {
    let root = cache::run_directories();
    cache::create_private(&root)?;
    cache::lock(&root.join(".lock"))
}

/// Removes the labs without owner and names them on standard error.
pub(crate) fn sweep_all() -> Result<Vec<String>> {
    let _all = lock_all()?;
    sweep()
}

fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for id in known()? {
        let places = Places::of(&id)?;
        if is_alive(&places)? {
            continue;
        }
        eprintln!("removing the lab {id}, which its owner left behind");
        places.clear()?;
        swept.push(id);
    }
    Ok(swept)
}

/// Returns every lab of which any trace exists.
fn known() -> Result<Vec<String>> {
    let mut all = names(&cache::run_directories())?;
    all.extend(names(&cache::lab_directories())?);
    let groups = names(&cgroup::hierarchy()?)?;
    all.extend(groups.iter().filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned));
    all.sort();
    all.dedup();
    Ok(all)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("listing {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.context(what)?;
        if entry.file_type().context(what)?.is_dir() {
            all.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(all)
}

/// Returns whether a process holds the lock of a lab.
pub(crate) fn is_alive(places: &Places) -> Result<bool> {
    let path = places.lock_path();
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.context(|| format!("opening {}", path.display()))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(error).context(|| format!("locking {}", path.display()))
        }
    }
}
