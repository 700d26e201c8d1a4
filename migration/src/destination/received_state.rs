//! What streams in during the interruption: images, files and flows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use checkpoint::images::{self, Chunk, ImageDir, InnerConnections, Manifest};
use checkpoint::tree::{self, Applier, Record};
use netmig::flow::{Conntrack, Flow, Relocation};
use protocol::message::{Tree, TreeChange, TreeDigest, TreeEnd};
use state::cause::Cause;

use super::arrival::FarEnds;
use super::claimed_flows::Claims;
use crate::convert::{FlowBatch, Settings, Wire};
use crate::state_stream::StatePart;

/// Flows of one container; more than a host's conntrack table holds by default.
const FLOW_LIMIT: usize = 1_000_000;

/// Sockets and threads of one container with settings of their own.
const SETTINGS_LIMIT: usize = 1_000_000;

/// Bytes of a container's log.
const LOG_LIMIT: u64 = 16 << 30;

/// A peer sent more than a container can have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many flows.
    #[error("the source sent more than {FLOW_LIMIT} flows")]
    TooManyFlows,
    /// Too many settings.
    #[error("the source sent more than {SETTINGS_LIMIT} settings of sockets, threads and cgroups")]
    TooManySettings,
    /// Too long a log.
    #[error("the container's log is larger than {} GiB; rotate it", LOG_LIMIT >> 30)]
    LogTooLarge,
    /// Too long a log, beside the files that came.
    #[error(
        "the container's files and its log take more than the {0} bytes of disk that the source may use \
         here; rotate the log, or see `agent-server peers allow` (--disk)"
    )]
    DiskLimit(u64),
    /// A change of a tree that the container does not have.
    #[error("the source sent files of a tree that the staged container does not have")]
    NoSuchTree,
    /// Changes that were not all there, or not as they were sent.
    #[error("the files of {0:?} did not arrive whole; try again")]
    Incomplete(Tree),
    /// Flows that are others' here.
    #[error("this host carries {count} of these flows already, the first one is {flow}")]
    CarriedAlready {
        /// How many.
        count: usize,
        /// The first.
        flow: String,
    },
}

/// How much may come.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of checkpoint images.
    pub images: u64,
    /// Bytes of files, the container's log among them.
    pub disk: u64,
}

/// A pass over a tree that has not ended.
struct Pass {
    applier: Applier,
    digest: TreeDigest,
}

/// Everything that has come so far.
pub struct ReceivedState {
    images: images::Writer,
    inner: InnerConnections,
    roots: HashMap<Tree, PathBuf>,
    passes: HashMap<Tree, Pass>,
    disk: u64,
    tree_bytes: u64,
    log: File,
    log_bytes: u64,
    conntrack: Conntrack,
    image_directory: PathBuf,
    /// Addresses of the container that are others here, each after the one that it replaces.
    pub readdressed: Vec<(IpAddr, IpAddr)>,
    /// Its mount points in which symbolic links are not followed.
    pub without_symlinks: Vec<String>,
    /// Whether some connection may be without window scaling.
    pub unscaled: bool,
    /// What is to be set on the copy.
    pub settings: Settings,
    /// Entries that were made here, to be unmade if the migration fails.
    pub created: Vec<Flow>,
    /// Flows whose far ends are on this host.
    pub far_ends: FarEnds,
}

impl ReceivedState {
    /// Opens the places where everything goes.
    pub fn open(
        images: &ImageDir,
        limits: Limits,
        trees: &[(Tree, &Path)],
        log: &Path,
    ) -> Result<Self, Cause> {
        let room = images::Limits { bytes: limits.images, ..images::Limits::default() };
        Ok(Self {
            images: images::Writer::new(images.path(), room)?,
            inner: InnerConnections::default(),
            roots: trees.iter().map(|(tree, root)| (*tree, root.to_path_buf())).collect(),
            passes: HashMap::new(),
            disk: limits.disk,
            tree_bytes: 0,
            // conmon has it open in the same way: both append.
            log: OpenOptions::new().append(true).create(true).mode(0o600).open(log)?,
            log_bytes: 0,
            conntrack: Conntrack::open()?,
            image_directory: images.path().to_owned(),
            readdressed: Vec::new(),
            without_symlinks: Vec::new(),
            unscaled: false,
            settings: Settings::default(),
            created: Vec::new(),
            far_ends: FarEnds::default(),
        })
    }

    /// Takes pieces of images.
    pub fn chunks(&mut self, chunks: &[Chunk]) -> Result<(), Cause> {
        chunks.iter().for_each(|chunk| self.inner.take(chunk));
        Ok(chunks.iter().try_for_each(|chunk| self.images.write(chunk))?)
    }

    /// Takes the next bytes of the container's log.
    fn log(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        self.log_bytes = self.log_bytes.saturating_add(bytes.len() as u64);
        if self.log_bytes > LOG_LIMIT {
            return Err(Error::LogTooLarge.into());
        }
        if self.taken() > self.disk {
            return Err(Error::DiskLimit(self.disk).into());
        }
        Ok(self.log.write_all(bytes)?)
    }

    /// Takes settings of sockets and threads.
    fn settings(&mut self, more: Settings) -> Result<(), Cause> {
        let Settings { sockets, tasks, cgroup } = &mut self.settings;
        let count = sockets.len() + tasks.len() + more.sockets.len() + more.tasks.len();
        let count = count + cgroup.len() + more.cgroup.len();
        if count > SETTINGS_LIMIT {
            return Err(Error::TooManySettings.into());
        }
        sockets.extend(more.sockets);
        tasks.extend(more.tasks);
        cgroup.extend(more.cgroup);
        Ok(())
    }

    /// Takes a part that needs nothing but what is here. Images, flows, memory and volumes come back: the arrival has a part in them.
    pub fn take(&mut self, part: StatePart) -> Result<Option<StatePart>, Cause> {
        match part {
            StatePart::TreeChange(change) => self.change(change)?,
            StatePart::TreeEnd(end) => self.end_pass(&end)?,
            StatePart::LogData(data) => self.log(&data.0)?,
            StatePart::Settings(settings) => self.settings(Settings::from_wire(settings)?)?,
            other @ (StatePart::Chunks(_)
            | StatePart::Flows(_)
            | StatePart::Memory(_)
            | StatePart::EmptyMemory(_)
            | StatePart::MemoryLater(_)
            | StatePart::SharedMemory(_)
            | StatePart::EmptySharedMemory(_)
            | StatePart::SharedMemoryEnd(_)
            | StatePart::VolumeChange(_)
            | StatePart::VolumeEnd(_)) => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Takes a change of a tree.
    fn change(&mut self, change: TreeChange) -> Result<(), Cause> {
        let taken = self.taken();
        let disk = self.disk;
        let pass = self.pass(change.tree)?;
        // The log and another tree may have taken of it since the last change.
        let by_others = taken - pass.applier.bytes();
        pass.applier.set_room(disk.saturating_sub(by_others));
        pass.digest.add(&change.record);
        Ok(pass.applier.apply(Record::from_wire(change.record)?)?)
    }

    /// Ends a pass over a tree.
    fn end_pass(&mut self, end: &TreeEnd) -> Result<(), Cause> {
        // A pass that changed nothing was never begun.
        let pass = self.passes.remove(&end.tree);
        let digest = pass.as_ref().map(|pass| pass.digest.clone()).unwrap_or_default();
        if digest.value() != end.digest {
            return Err(Error::Incomplete(end.tree).into());
        }
        if let Some(pass) = pass {
            let bytes = pass.applier.finish()?.bytes;
            self.tree_bytes = self.tree_bytes.saturating_add(bytes);
        }
        Ok(())
    }

    /// Bytes of the disk that were taken so far.
    fn taken(&self) -> u64 {
        let unfinished = self.passes.values().map(|pass| pass.applier.bytes());
        unfinished.fold(self.log_bytes.saturating_add(self.tree_bytes), u64::saturating_add)
    }

    fn pass(&mut self, tree: Tree) -> Result<&mut Pass, Cause> {
        match self.passes.entry(tree) {
            Entry::Occupied(pass) => Ok(pass.into_mut()),
            Entry::Vacant(place) => {
                let root = self.roots.get(&tree).ok_or(Error::NoSuchTree)?;
                let all = tree::Limits::default();
                let bytes = all.bytes.min(self.disk);
                let applier = Applier::new(root, tree::Limits { bytes, ..all })?;
                Ok(place.insert(Pass { applier, digest: TreeDigest::default() }))
            }
        }
    }

    /// Makes the entries that lead the flows' packets between the container and the anchor, if all of them are
    /// the container's.
    pub fn flows(
        &mut self,
        batch: &FlowBatch,
        container: &[IpAddr],
        arrival: &Relocation<'_>,
        claims: &Claims,
    ) -> Result<(), Cause> {
        let flows = &batch.flows[..];
        if self.created.len() + flows.len() > FLOW_LIMIT {
            return Err(Error::TooManyFlows.into());
        }
        self.unscaled |= flows.iter().any(|flow| flow.tcp.is_some_and(|tcp| !tcp.is_scaled()));
        let entries: Vec<Flow> =
            flows.iter().filter_map(|flow| flow.at_destination(container, arrival)).collect();
        claims.check(&entries)?;
        self.far_ends.add(batch, container, arrival);
        // Also of a request that is refused some may have been made.
        self.created.extend(entries.iter().cloned());
        let mut existing = self.conntrack.create(&entries)?.existing;
        if !existing.is_empty() {
            // The address is the staged container's now: what an earlier holder of it left goes.
            let stale: Vec<Flow> =
                existing.iter().filter_map(|&index| entries.get(index).cloned()).collect();
            if let Some(other) = claims.clear(&mut self.conntrack, &stale)? {
                return Err(Error::CarriedAlready {
                    count: existing.len(),
                    flow: other.to_string(),
                }
                .into());
            }
            existing = self.conntrack.create(&entries)?.existing;
            existing.retain(|index| entries.get(*index).is_some_and(|entry| stale.contains(entry)));
        }
        match existing.first().and_then(|&index| entries.get(index)) {
            Some(first) => {
                let flow = first.to_string();
                Err(Error::CarriedAlready { count: existing.len(), flow }.into())
            }
            None => Ok(()),
        }
    }

    /// Compares the images with what was announced; gives the entries that were made.
    pub fn complete(self, manifest: &Manifest) -> Result<Vec<Flow>, (Vec<Flow>, Cause)> {
        if let Some(tree) = self.passes.keys().next() {
            return Err((self.created, Error::Incomplete(*tree).into()));
        }
        let finished = self.images.finish(manifest).and_then(|_| {
            if !self.readdressed.is_empty() {
                images::readdress(&self.image_directory, &self.readdressed)?;
            }
            images::rewind_calls(&self.image_directory)?;
            images::keep_mount_flags(&self.image_directory, &self.without_symlinks)?;
            self.inner.settle(&self.image_directory)?;
            match self.unscaled {
                true => images::settle_scales(&self.image_directory),
                false => Ok(0),
            }
        });
        match finished {
            Ok(_) => Ok(self.created),
            Err(e) => Err((self.created, e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use checkpoint::tree::{Kind, Meta};
    use protocol::message::{EntryKind, TreeRecord};

    use super::*;

    const LIMITS: Limits = Limits { images: 1 << 20, disk: 1000 };

    fn file(tree: Tree, name: &'static str, bytes: usize) -> [TreeChange; 2] {
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1, mtime_ns: 2, xattrs: Vec::new() };
        let kind = Kind::File { length: bytes as u64, patch: false };
        let entry = Record::Entry { path: name.into(), meta, kind };
        let data = Record::Data { offset: 0, bytes: vec![7; bytes].into() };
        [entry, data].map(|record| TreeChange { tree, record: record.into_wire() })
    }

    /// Does something with an arrival that may take 1,000 bytes of the disk; needs root, and says so.
    fn with(work: impl FnOnce(&mut ReceivedState)) {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let (root, shm) = (dir.path().join("root"), dir.path().join("shm"));
        [&root, &shm].into_iter().for_each(|tree| std::fs::create_dir(tree).unwrap());
        let trees = [(Tree::Root, root.as_path()), (Tree::SharedMemory, shm.as_path())];
        let images = ImageDir::create(&dir.path().join("images"), LIMITS.images).unwrap();
        let mut incoming =
            ReceivedState::open(&images, LIMITS, &trees, &dir.path().join("log")).unwrap();
        work(&mut incoming);
        images.remove().unwrap();
    }

    fn take(incoming: &mut ReceivedState, changes: [TreeChange; 2]) -> Result<(), Cause> {
        changes.into_iter().try_for_each(|change| incoming.change(change))
    }

    #[test]
    fn the_log_counts_against_the_disks_limit() {
        with(|incoming| {
            incoming.log(&[7; 600]).unwrap();
            assert!(incoming.log(&[7; 401]).is_err(), "the log alone");
        });
        with(|incoming| {
            take(incoming, file(Tree::Root, "a", 600)).unwrap();
            incoming.log(&[7; 400]).unwrap();
            assert!(incoming.log(&[7]).is_err(), "files of a pass that has not ended, and the log");
        });
        with(|incoming| {
            incoming.log(&[7; 600]).unwrap();
            assert!(take(incoming, file(Tree::Root, "a", 401)).is_err(), "the log first");
        });
    }

    #[test]
    fn trees_that_come_at_one_time_share_the_limit() {
        with(|incoming| {
            take(incoming, file(Tree::Root, "a", 500)).unwrap();
            take(incoming, file(Tree::SharedMemory, "a", 500)).unwrap();
            assert!(take(incoming, file(Tree::Root, "b", 1)).is_err());
        });
    }

    #[test]
    fn a_large_file_may_be_patched_when_the_disk_is_nearly_full() {
        with(|incoming| {
            take(incoming, file(Tree::Root, "a", 900)).unwrap();
            let digest = incoming.passes[&Tree::Root].digest.value();
            incoming.end_pass(&TreeEnd { tree: Tree::Root, digest }).unwrap();
            let [mut entry, _] = file(Tree::Root, "a", 0);
            if let TreeRecord::Entry { kind, .. } = &mut entry.record {
                *kind = EntryKind::File { length: 900, patch: true };
            }
            let data = TreeRecord::Data { offset: 5, bytes: vec![8; 100].into() };
            take(incoming, [entry, TreeChange { tree: Tree::Root, record: data }]).unwrap();
        });
    }
}
