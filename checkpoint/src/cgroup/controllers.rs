//! The settings of a container's own cgroup: limits and weights that may have been changed since it was
//! started, by `podman update` or by hand (`Documentation/admin-guide/cgroup-v2.rst`).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Cgroup;

/// Most settings of one cgroup: there is one of each for every size of large pages.
pub const MOST: usize = 256;
/// Longest value, in bytes.
const LONGEST: usize = 4096;

/// Controllers with settings, as the names of files begin.
const CONTROLLERS: &[&str] =
    &["cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma"];
/// Files of the core that are settings; the others are commands and states.
const OF_THE_CORE: &[&str] = &["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];
/// Files of controllers that can be written and are no settings, and why.
const NO_SETTINGS: &[&str] = &[
    // The same as cpu.weight, in other units.
    "cpu.weight.nice",
    // Registers who wants to be told.
    "cpu.pressure",
    "io.pressure",
    "memory.pressure",
    // Writing it sets a mark back.
    "memory.peak",
    "memory.swap.peak",
    // Orders the kernel to do something.
    "memory.reclaim",
];

/// A setting could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused, or has no such setting.
    #[error(
        "cannot set {file} of the copy's cgroup to {wanted:?}, as the original has it (it is {present}); set \
         it back before the move, for instance by podman update"
    )]
    Set {
        /// The file's name.
        file: String,
        /// The original's value.
        wanted: String,
        /// The copy's value, or that there is none.
        present: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel has taken another value.
    #[error(
        "{file} of the copy's cgroup became {present:?} instead of {wanted:?}, as the original has it; set it \
         back before the move, for instance by podman update"
    )]
    Other {
        /// The file's name.
        file: String,
        /// The original's value.
        wanted: String,
        /// The copy's value.
        present: String,
    },
    /// The source sent what is no setting.
    #[error("the source sent a setting of a cgroup that cannot be one: {0:?}")]
    Strange(String),
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSetting {
    /// The file's name.
    pub file: String,
    /// Its value.
    pub value: String,
}

impl Cgroup {
    /// Reads the settings that can be written, in the order of their names. One that cannot be read is left
    /// out.
    #[must_use]
    pub fn settings(&self) -> Vec<CgroupSetting> {
        read_all(self.path())
    }

    /// Sets those that are others here; returns how many there were.
    ///
    /// # Errors
    /// [`Error`]: the first that cannot be set.
    pub fn apply(&self, settings: &[CgroupSetting]) -> Result<usize, Error> {
        apply_all(self.path(), settings)
    }
}

fn read_all(directory: &Path) -> Vec<CgroupSetting> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let setting = |entry: fs::DirEntry| {
        let file = entry.file_name().to_str()?.to_owned();
        let is_writable = entry.metadata().ok()?.permissions().mode() & 0o200 != 0;
        let is_file = entry.file_type().ok()?.is_file();
        if !is_setting(&file) || !is_writable || !is_file {
            return None;
        }
        let value = read(&entry.path()).ok()?;
        Some(CgroupSetting { file, value })
    };
    let mut all: Vec<CgroupSetting> = entries.filter_map(setting).take(MOST).collect();
    all.sort_by(|one, other| one.file.cmp(&other.file));
    all
}

fn apply_all(directory: &Path, settings: &[CgroupSetting]) -> Result<usize, Error> {
    let strange = settings.iter().find(|one| !is_setting(&one.file) || one.value.len() > LONGEST);
    if let Some(CgroupSetting { file, .. }) = strange {
        return Err(Error::Strange(file.chars().take(64).collect()));
    }
    let mut set = 0;
    for CgroupSetting { file, value: wanted } in settings.iter().take(MOST) {
        let path = directory.join(file);
        let present = read(&path);
        if present.as_ref().is_ok_and(|present| present == wanted) {
            continue;
        }
        // What a controller that only one kernel has does by itself is no setting of anybody's.
        if present.as_ref().is_err_and(is_absent) && is_default(file, wanted) {
            continue;
        }
        let described = present.map_or_else(|_| "not there".to_owned(), |text| format!("{text:?}"));
        write(&path, wanted).map_err(|source| Error::Set {
            file: file.clone(),
            wanted: wanted.clone(),
            present: described,
            source,
        })?;
        let present = read(&path).unwrap_or_default();
        if present != *wanted {
            return Err(Error::Other { file: file.clone(), wanted: wanted.clone(), present });
        }
        set += 1;
    }
    Ok(set)
}

/// Whether a file of this name is a setting. There is no `/` in one.
fn is_setting(file: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let of_controller = file.split_once('.').is_some_and(|(name, rest)| {
        CONTROLLERS.contains(&name) && !rest.is_empty() && !NO_SETTINGS.contains(&file)
    });
    file.len() <= 64 && file.chars().all(is_plain) && (of_controller || OF_THE_CORE.contains(&file))
}

/// Whether a value limits nothing and prefers nobody: those that a fresh cgroup has.
fn is_default(file: &str, value: &str) -> bool {
    match file {
        "cpu.weight" => value == "100",
        "io.weight" => value == "default 100",
        "cpu.max" => value.starts_with("max "),
        "cpu.uclamp.min" => matches!(value, "0" | "0.00"),
        "cpuset.cpus.partition" => value == "member",
        "cgroup.pressure" | "memory.zswap.writeback" => value == "1",
        _ => matches!(value, "" | "0" | "max"),
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn read(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    if text.len() > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Writes a file that is there: the kernel takes a value by one call.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    // An empty list of processors is written as a line.
    let value = if value.is_empty() { "\n" } else { value };
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of files, as a cgroup is one.
    fn of(files: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, value, mode) in files {
            let path = directory.path().join(name);
            fs::write(&path, format!("{value}\n")).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        directory
    }

    fn setting(file: &str, value: &str) -> CgroupSetting {
        CgroupSetting { file: file.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn settings_are_told_from_states_and_commands() {
        let original = of(&[
            ("cgroup.freeze", "1", 0o644),
            ("cgroup.max.depth", "7", 0o644),
            ("cpu.max", "50000 100000", 0o644),
            ("cpu.weight.nice", "0", 0o644),
            ("memory.current", "4096", 0o444),
            ("memory.high", "max", 0o644),
            ("memory.reclaim", "", 0o200),
            ("pids.max", "77", 0o644),
        ]);
        let read = read_all(original.path());
        let names: Vec<&str> = read.iter().map(|one| one.file.as_str()).collect();
        assert_eq!(names, ["cgroup.max.depth", "cpu.max", "memory.high", "pids.max"]);
    }

    #[test]
    fn what_differs_is_set_and_the_rest_left_alone() {
        let copy = of(&[("cpu.max", "max 100000", 0o644), ("pids.max", "2048", 0o444)]);
        let wanted = [setting("cpu.max", "50000 100000"), setting("pids.max", "2048")];
        // A file in a directory keeps the end of a longer value.
        fs::write(copy.path().join("cpu.max"), "").unwrap();
        assert_eq!(apply_all(copy.path(), &wanted).unwrap(), 1);
        assert_eq!(read(&copy.path().join("cpu.max")).unwrap(), "50000 100000");
        assert_eq!(apply_all(copy.path(), &wanted).unwrap(), 0);
    }

    #[test]
    fn a_limit_that_the_destination_cannot_set_is_named() {
        let copy = of(&[]);
        let refused = apply_all(copy.path(), &[setting("memory.high", "1048576")]).unwrap_err();
        let told = refused.to_string();
        assert!(told.contains("memory.high") && told.contains("1048576"), "{told}");
        assert!(told.contains("not there"), "{told}");
        for (file, value) in [("memory.high", "max"), ("cpu.weight", "100"), ("memory.low", "0")] {
            assert_eq!(apply_all(copy.path(), &[setting(file, value)]).unwrap(), 0, "{file}");
        }
    }

    #[test]
    fn a_value_that_is_not_taken_as_it_is_is_named() {
        // A file keeps the end of what was there, so that it does not become what was written.
        let copy = of(&[("pids.max", "100000", 0o644)]);
        let refused = apply_all(copy.path(), &[setting("pids.max", "77")]).unwrap_err();
        assert!(matches!(refused, Error::Other { .. }), "{refused}");
    }

    #[test]
    fn nothing_else_is_written() {
        let copy = of(&[("cgroup.kill", "", 0o644), ("memory.reclaim", "", 0o644)]);
        for file in
            ["cgroup.kill", "memory.reclaim", "../x", "memory.", "memory./x", "cgroup.procs"]
        {
            let refused = apply_all(copy.path(), &[setting(file, "1")]);
            assert!(matches!(refused, Err(Error::Strange(_))), "{file}");
        }
        let long = setting("memory.high", &"1".repeat(LONGEST + 1));
        assert!(matches!(apply_all(copy.path(), &[long]), Err(Error::Strange(_))));
    }
}
