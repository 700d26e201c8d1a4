//! Lists the resources of a lab on this machine, to show that it leaves none.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cache;
use crate::error::{Context, Result};
use crate::lab::Lab;

/// The resources of one lab on this machine.
#[derive(Debug)]
pub(super) struct LabResources {
    processes: Vec<i32>,
    namespaces: BTreeSet<String>,
    cgroup: std::path::PathBuf,
    directories: Vec<std::path::PathBuf>,
    id: String,
}

impl LabResources {
    /// Lists the resources of a running lab.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let processes = lab.processes();
        let own = namespaces_of("self")?;
        let mut namespaces = BTreeSet::new();
        for pid in &processes {
            // A process may have ended since the list was made.
            namespaces.extend(namespaces_of(&pid.to_string()).unwrap_or_default());
        }
        Ok(Self {
            processes,
            namespaces: namespaces.difference(&own).cloned().collect(),
            cgroup: lab.cgroup().to_owned(),
            directories: vec![lab.disk().to_owned(), cache::run_directories().join(lab.id())],
            id: lab.id().to_owned(),
        })
    }

    /// Returns how many processes and namespaces the lab had.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.processes.len(), self.namespaces.len())
    }

    /// Returns the resources that still exist.
    pub(super) fn remaining(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        left.extend(
            std::iter::once(&self.cgroup)
                .chain(&self.directories)
                .filter(|path| path.exists())
                .map(|path| format!("{}", path.display())),
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").context(|| "reading mounts")?;
        left.extend(
            mounts.lines().filter(|l| l.contains(&format!("/{}/", self.id))).map(str::to_owned),
        );
        let alive = namespaces_in_use()?;
        left.extend(self.namespaces.intersection(&alive).cloned());
        Ok(left)
    }
}

/// Returns the namespaces of a process, in the form `net:[4026531840]`.
fn namespaces_of(pid: &str) -> Result<BTreeSet<String>> {
    let directory = Path::new("/proc").join(pid).join("ns");
    let what = || format!("reading {}", directory.display());
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(&directory).context(what)? {
        let target = fs::read_link(entry.context(what)?.path()).context(what)?;
        all.insert(target.to_string_lossy().into_owned());
    }
    Ok(all)
}

/// Returns the namespaces of all processes of this machine.
fn namespaces_in_use() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir("/proc").context(|| "listing processes")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            all.extend(namespaces_of(&name).unwrap_or_default());
        }
    }
    Ok(all)
}
