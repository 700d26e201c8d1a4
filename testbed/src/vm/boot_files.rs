//! The files for booting the second kernel: the kernel, an initial file system, and a disk with the hosts' root file
//! system and the kernel's modules. They are built once and kept in the cache.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::init::{ROLE, SCRATCH};
use super::kernel_package::{self, Kernel};
use crate::cache::{self, Key};
use crate::error::{Context, Result};
use crate::subprocess;

/// The modules in the initial file system. Their dependencies are added. A module that the kernel has built in, or
/// does not have, is left out.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_console", "nd_pmem", "nfit", "crc32c_generic", "crc32c_intel", "ext4"];
/// The program that the kernel runs to load what a rule, an interface or a mount needs. busybox takes a module for loaded
/// that another process is loading, and the kernel would not find it: two hosts that start at once mount overlays. The wait
/// has a limit, since a module that is being loaded can ask for another one.
const MODPROBE: &str = "#!/bin/busybox sh\n\
    busybox modprobe \"$@\"\n\
    code=$? looks=0\n\
    while [ $looks -lt 100 ] && busybox grep -q ' Loading ' /proc/modules; do\n\
    busybox sleep 0.02\n\
    looks=$((looks + 1))\n\
    done\n\
    exit $code\n";
/// The time limit for each program.
const LIMIT: Duration = Duration::from_secs(300);
/// The size of the root disk; a sparse file.
pub(super) const ROOT_SIZE: &str = "1536M";

/// The files for a boot.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// The kernel.
    pub(super) kernel: PathBuf,
    /// The initial file system, which mounts the disks and hands over to the testbed.
    pub(super) initramfs: PathBuf,
    /// The disk with the root file system. It is read-only.
    pub(super) root: PathBuf,
    /// The kernel's release.
    pub(super) release: String,
}

/// Builds the files unless the cache has them, in half a minute and 500 MB.
///
/// # Errors
/// The kernel's package is not available, or a step failed.
pub(super) fn ensure(rootfs: &Path) -> Result<Image> {
    let package = kernel_package::package()?;
    let key = Key::default()
        .with(rootfs.to_string_lossy().as_bytes())
        .with(&package)
        .with(script(&["modules"]))
        .with(MODPROBE)
        .with(MODULES.join(" "));
    let directory = cache::entry("vm", &key.finish(), |target| {
        eprintln!("building the disk of the virtual machine with {package}");
        make(rootfs, &package, target)
    })?;
    let release = fs::read_to_string(directory.join("release"))
        .context(|| format!("reading the kernel's release in {}", directory.display()))?;
    Ok(Image {
        kernel: directory.join("vmlinuz"),
        initramfs: directory.join("initramfs"),
        root: directory.join("root.ext4"),
        release,
    })
}

fn make(rootfs: &Path, package: &str, target: &Path) -> Result<()> {
    cache::create_private(target)?;
    let scratch = target.join("scratch");
    let kernel = kernel_package::unpack(package, &scratch.join("kernel"))?;
    let tree = scratch.join("root");
    plant(rootfs, &kernel, &tree)?;
    initramfs(&tree, &kernel.release, &scratch.join("initramfs"), &target.join("initramfs"))?;
    // Without a journal, since the disk is read-only.
    let features = ["-O", "^has_journal", "-m", "0"];
    ext4(&tree, &target.join("root.ext4"), ROOT_SIZE, &features)?;
    fs::rename(&kernel.image, target.join("vmlinuz")).context(|| "keeping the kernel")?;
    fs::write(target.join("release"), &kernel.release).context(|| "keeping the kernel's name")?;
    cache::remove(&scratch)
}

/// Creates a disk with an ext4 file system that has a copy of `tree`.
pub(super) fn ext4(tree: &Path, disk: &Path, size: &str, options: &[&str]) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4"]).args(options);
    mke2fs.arg("-d").arg(tree).arg(disk).arg(size);
    subprocess::run(&mut mke2fs, LIMIT).map(drop)
}

/// Links the hosts' root file system and the kernel's modules into `tree`.
fn plant(rootfs: &Path, kernel: &Kernel, tree: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.args(["--archive", "--link", "--no-target-directory"]).args([rootfs, tree]);
    subprocess::run(&mut cp, LIMIT)?;
    let place = tree.join("usr/lib/modules");
    fs::create_dir_all(&place)
        .and_then(|()| fs::rename(&kernel.modules, place.join(&kernel.release)))
        .and_then(|()| fs::create_dir_all(tree.join(SCRATCH.trim_start_matches('/'))))
        .and_then(|()| write_program(&tree.join("usr/sbin/modprobe"), MODPROBE))
        .context(|| format!("putting the kernel's modules into {}", tree.display()))?;
    let mut depmod = Command::new(tree.join("usr/bin/busybox"));
    depmod.args(["depmod", "-b"]).arg(tree).arg(&kernel.release);
    subprocess::run(&mut depmod, LIMIT).map(drop)
}

/// Returns the script that the kernel executes first. Which disk is which, it tells by the one that is read-only.
fn script(modules: &[&str]) -> String {
    format!(
        "#!/bin/busybox sh\n\
         busybox mount -t devtmpfs dev /dev\n\
         for module in {}; do modprobe $module; done\n\
         until [ -b /dev/pmem0 ] && [ -b /dev/pmem1 ]; do busybox sleep 0.05; done\n\
         busybox mount -t sysfs sys /sys\n\
         root=pmem0 disk=pmem1\n\
         if [ $(busybox cat /sys/block/pmem1/ro) = 1 ]; then root=pmem1 disk=pmem0; fi\n\
         busybox mount -t ext4 -o ro /dev/$root /root\n\
         busybox mount -t ext4 /dev/$disk /root{SCRATCH}\n\
         busybox umount /sys /dev\n\
         exec busybox switch_root /root {SCRATCH}/bin/testbed {ROLE}\n",
        modules.join(" ")
    )
}

/// Writes a script that can be executed.
fn write_program(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Writes the archive that the kernel unpacks into memory when it boots.
fn initramfs(tree: &Path, release: &str, directory: &Path, archive: &Path) -> Result<()> {
    let what = || format!("filling {}", directory.display());
    let modules = Path::new("lib/modules").join(release);
    for name in ["bin", "sbin", "dev", "root", "proc", "sys"] {
        fs::create_dir_all(directory.join(name)).context(what)?;
    }
    let busybox = tree.join("usr/bin/busybox");
    fs::copy(&busybox, directory.join("bin/busybox")).context(what)?;
    symlink("../bin/busybox", directory.join("sbin/modprobe")).context(what)?;
    let from = tree.join("usr").join(&modules);
    let index = fs::read_to_string(from.join("modules.dep")).context(what)?;
    let (names, files) = wanted_modules(&index);
    let tables = ["modules.dep", "modules.alias", "modules.symbols"].map(str::to_owned);
    for file in files.iter().cloned().chain(tables) {
        let to = directory.join(&modules).join(&file);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).context(what)?;
        }
        fs::copy(from.join(&file), to).context(what)?;
    }
    let init = directory.join("init");
    write_program(&init, &script(&names)).context(what)?;

    let mut list = String::new();
    list_tree(directory, Path::new(""), &mut list)?;
    let create = || format!("creating {}", archive.display());
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(directory);
    cpio.stdin(Stdio::piped()).stderr(Stdio::null()).stdout(File::create(archive).context(create)?);
    let mut child = cpio.spawn().context(create)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(list.as_bytes()).context(create)?;
    }
    let status = subprocess::wait(&mut child, LIMIT).context(create)?;
    if status.is_none_or(|status| !status.success()) {
        return Err(crate::Error::Refused(format!("cpio could not write {}", archive.display())));
    }
    Ok(())
}

/// Every path below `directory`, those above first.
fn list_tree(directory: &Path, below: &Path, list: &mut String) -> Result<()> {
    let what = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory.join(below)).context(what)? {
        let entry = entry.context(what)?;
        let path = below.join(entry.file_name());
        list.push_str(&format!("{}\n", path.display()));
        if entry.file_type().context(what)?.is_dir() {
            list_tree(directory, &path, list)?;
        }
    }
    Ok(())
}

/// Returns those of [`MODULES`] that a kernel has as modules, by `modules.dep`, and the files of them and of
/// what they depend on.
fn wanted_modules(index: &str) -> (Vec<&'static str>, BTreeSet<String>) {
    let mut names = Vec::new();
    let mut files = BTreeSet::new();
    for name in MODULES {
        let line = index.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| {
            let base = file.rsplit('/').next().unwrap_or_default();
            let stem = base.split_once(".ko").map_or(base, |(stem, _)| stem);
            stem.replace('-', "_") == *name
        });
        if let Some((file, needed)) = line {
            names.push(*name);
            files.insert(file.to_owned());
            files.extend(needed.split_whitespace().map(str::to_owned));
        }
    }
    (names, files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_bring_what_they_depend_on() {
        let index = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                     kernel/fs/jbd2/jbd2.ko.xz:\n\
                     kernel/arch/x86/crypto/crc32c-intel.ko:\n\
                     kernel/net/tls.ko: kernel/net/other.ko\n";
        let (names, files) = wanted_modules(index);
        assert_eq!(names, ["crc32c_intel", "ext4"]);
        let expected = [
            "kernel/arch/x86/crypto/crc32c-intel.ko",
            "kernel/fs/ext4/ext4.ko.xz",
            "kernel/fs/jbd2/jbd2.ko.xz",
            "kernel/lib/crc16.ko.xz",
        ];
        assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    }
}
