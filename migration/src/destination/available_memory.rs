//! Whether this host has the memory for a container.

/// Returns how many bytes of memory the container needs here at most. Images that are restored lazily are given back page by page, so
/// that they and the copy need the memory once; an eighth more is for what is being copied and for page tables.
pub(super) fn needed_memory(offered: u64, is_lazy: bool) -> u64 {
    match is_lazy {
        true => offered.saturating_add(offered / 8),
        false => offered.saturating_mul(2),
    }
}

/// Reads `MemAvailable` of `/proc/meminfo`, in bytes.
pub(super) fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_needed_once_where_images_are_given_back() {
        assert_eq!(needed_memory(800, true), 900);
        assert_eq!(needed_memory(800, false), 1600);
        assert_eq!(needed_memory(u64::MAX, true), u64::MAX);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(available_memory(text), Some(1_024_000));
        assert_eq!(available_memory("MemTotal: 5 kB\n"), None);
    }
}
