//! What an agent has to know about the machine on which it runs.

use std::io;
use std::path::PathBuf;

/// Directories in which programs are searched, independent of the agent's `PATH`.
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"];

/// Maximum number of processor flags: more than any processor has, and a peer may not send more.
pub const CPU_FLAGS_LIMIT: usize = 1024;

/// A program that is not installed.
#[derive(Debug, thiserror::Error)]
#[error("{program} is not installed on this host; install it and try again")]
pub struct MissingProgram {
    /// Its name.
    pub program: String,
}

/// Finds a program by its name.
///
/// # Errors
/// [`MissingProgram`], if it is in none of the usual directories.
pub fn find_program(name: &str) -> Result<PathBuf, MissingProgram> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| MissingProgram { program: name.to_owned() })
}

/// Finds `netmig-shim`, which is installed beside the running program.
///
/// # Errors
/// [`MissingProgram`], if it is neither there nor in one of the usual directories.
pub fn find_shim() -> Result<PathBuf, MissingProgram> {
    const SHIM: &str = "netmig-shim";
    let beside = std::env::current_exe().map(|program| program.with_file_name(SHIM));
    beside.ok().filter(|path| path.is_file()).map_or_else(|| find_program(SHIM), Ok)
}

/// Returns this host's name, to show to people.
#[must_use]
pub fn name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the release of the running kernel, as `uname -r` prints it.
///
/// # Errors
/// `/proc/sys/kernel/osrelease` cannot be read.
pub fn kernel_release() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned())
}

/// Returns the features of the first processor in the text of `/proc/cpuinfo`.
#[must_use]
pub fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    cpuinfo
        .lines()
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            matches!(key.trim(), "flags" | "Features").then_some(value)
        })
        .map(|flags| flags.split_whitespace().take(CPU_FLAGS_LIMIT).map(str::to_owned).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_both_architectures() {
        let x86 = "processor\t: 0\nflags\t\t: fpu sse2 avx\nbugs\t\t: spectre_v1\n";
        assert_eq!(cpu_flags(x86), ["fpu", "sse2", "avx"]);
        assert_eq!(cpu_flags("processor : 0\nFeatures : fp asimd\n"), ["fp", "asimd"]);
        assert!(cpu_flags("").is_empty());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find_program("no-such-program-here").unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"));
    }
}
