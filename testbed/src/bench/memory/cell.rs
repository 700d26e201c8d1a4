//! The cells of the benchmark: how much memory moves, in which way, over which link, and what uses it.

use std::fmt;

/// The modes of `agent-client migrate --memory`, the preferred one first.
pub(super) const MODES: [&str; 4] = ["pre-copy", "stop", "hybrid", "post-copy"];
/// The sizes in mebibytes, and those of a quick run.
const SIZES: [usize; 5] = [0, 64, 256, 1024, 2048];
const QUICK: [usize; 3] = [0, 256, 1024];
/// The size in mebibytes of cells that differ in something else.
const LARGE: usize = 1024;
/// Connections of the cell that has many.
pub(super) const CONNECTIONS: u32 = 10_000;

/// What a cell measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// A move with a mode of `--memory`.
    Move(&'static str),
    /// CRIU's dump and its restore.
    Floor,
    /// CRIU's dump and a restore that puts memory in place later, which CRIU calls lazy.
    LazyFloor,
    /// podman's own checkpoint and restore.
    Podman,
}

/// What the container does, or where its memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    /// A server with one connection, on a link without a limit.
    Plain,
    /// The same on a link of so many gigabits a second.
    Link(u32),
    /// The same with [`CONNECTIONS`].
    Connections,
    /// redis with random values under 1,000 requests a second.
    Redis,
}

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) way: Way,
    /// Mebibytes of memory.
    pub(super) size: usize,
    pub(super) setting: Setting,
}

impl Cell {
    /// Returns all cells in the order in which a round measures them: those to be compared follow each other.
    fn all(is_quick: bool) -> Vec<Self> {
        let plain = |way, size| Self { way, size, setting: Setting::Plain };
        let sizes: &[usize] = if is_quick { &QUICK } else { &SIZES };
        let mut all = Vec::new();
        for &size in sizes {
            all.extend(MODES.map(|mode| plain(Way::Move(mode), size)));
            all.extend([Way::LazyFloor, Way::Floor, Way::Podman].map(|way| plain(way, size)));
        }
        if !is_quick {
            for gigabits in [10, 1] {
                let setting = Setting::Link(gigabits);
                all.extend(MODES.map(|mode| Self { way: Way::Move(mode), size: LARGE, setting }));
            }
            for setting in [Setting::Connections, Setting::Redis] {
                all.extend(MODES.map(|mode| Self { way: Way::Move(mode), size: LARGE, setting }));
            }
        }
        all
    }

    /// Returns the cells that `--only` names, or all. A word names the cell of this name or, if there is none, those whose names
    /// have it in them.
    pub(super) fn chosen(is_quick: bool, only: Option<&str>) -> Vec<Self> {
        let all = Self::all(is_quick);
        let Some(only) = only else { return all };
        let all_names: Vec<String> = all.iter().map(Self::to_string).collect();
        let is_named = |name: &str| {
            only.split(',').any(|word| match all_names.iter().any(|name| name == word) {
                true => name == word,
                false => name.contains(word),
            })
        };
        all.into_iter().filter(|cell| is_named(&cell.to_string())).collect()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Move(mode) => mode,
            Self::Floor => "floor",
            Self::LazyFloor => "lazy-floor",
            Self::Podman => "podman",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.way, self.size)?;
        match self.setting {
            Setting::Plain => Ok(()),
            Setting::Link(gigabits) => write!(f, "/{gigabits}Gbit"),
            Setting::Connections => write!(f, "/{CONNECTIONS}-connections"),
            Setting::Redis => f.write_str("/redis"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &str) -> Vec<String> {
        Cell::chosen(false, Some(only)).iter().map(Cell::to_string).collect()
    }

    #[test]
    fn a_whole_name_means_one_cell_and_a_part_means_all_that_have_it() {
        assert_eq!(names("stop/1024,lazy-floor/1024"), ["stop/1024", "lazy-floor/1024"]);
        assert_eq!(names("stop/1024/1G"), ["stop/1024/1Gbit"]);
        assert_eq!(names("redis").len(), MODES.len());
        assert!(names("no such cell").is_empty());
    }
}
