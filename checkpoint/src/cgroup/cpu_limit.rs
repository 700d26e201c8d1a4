//! How much of the processors a container may use (`cpu.max` in `Documentation/admin-guide/cgroup-v2.rst`, "CPU Interface
//! Files"). Where crun runs under systemd the container's own cgroup is below the one that the engine has made for it, and
//! both have a limit.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::locate::SUBGROUP;
use super::{Cgroup, Error};

/// The file of the limit: a time in microseconds or `max`, and the period in which tasks may use so much.
pub const CPU_MAX: &str = "cpu.max";
/// The word for no limit.
const NO_LIMIT: &str = "max";
/// The period of a limit of ours: as long as a task waits at most that has used its share.
const PERIOD: Duration = Duration::from_millis(20);
/// The shortest time and the longest period that the kernel takes (`min_cfs_quota_period` and `max_cfs_quota_period`,
/// `kernel/sched/core.c`).
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(1);

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimit {
    /// How much processor time its tasks may use in each period; `None` for any.
    pub quota: Option<Duration>,
    /// The period.
    pub period: Duration,
}

impl CpuLimit {
    /// Parses the content of `cpu.max`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (quota, period) = text.trim().split_once(' ')?;
        let micros = |number: &str| number.parse().ok().map(Duration::from_micros);
        let quota = match quota {
            NO_LIMIT => None,
            number => Some(micros(number)?),
        };
        Some(Self { quota, period: micros(period).filter(|period| !period.is_zero())? })
    }

    /// Returns the limit that lets tasks use so many processors, by the part: 0.5 is half of one. The kernel has none that
    /// is smaller than a thousandth of a processor.
    #[must_use]
    pub fn of_processors(processors: f64) -> Self {
        let processors = processors.max(SHORTEST.as_secs_f64() / LONGEST.as_secs_f64());
        let period = whole(PERIOD.max(SHORTEST.div_f64(processors)).min(LONGEST));
        Self { quota: Some(whole(period.mul_f64(processors)).max(SHORTEST)), period }
    }

    /// Returns this limit without its quota.
    #[must_use]
    pub fn lifted(self) -> Self {
        Self { quota: None, ..self }
    }

    /// Returns how many processors tasks may use; `None` for any number.
    #[must_use]
    pub fn processors(&self) -> Option<f64> {
        self.quota.map(|quota| quota.as_secs_f64() / self.period.as_secs_f64())
    }
}

/// Returns whole microseconds, in which the kernel counts.
fn whole(duration: Duration) -> Duration {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl std::fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.quota {
            None => write!(f, "{NO_LIMIT} {}", self.period.as_micros()),
            Some(quota) => write!(f, "{} {}", quota.as_micros(), self.period.as_micros()),
        }
    }
}

impl Cgroup {
    /// Returns the limits of the container: that of its own cgroup first, then that of the one above, if the engine has made
    /// it for this container alone. Nothing is returned where the kernel has no controller of processors in this hierarchy.
    ///
    /// # Errors
    /// [`Error::Access`] when a limit cannot be read.
    pub fn cpu_limits(&self) -> Result<Vec<CpuLimit>, Error> {
        let mut limits = Vec::new();
        for path in self.cpu_files() {
            let text = match fs::read_to_string(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                other => other.map_err(|source| Error::Access { path: path.clone(), source })?,
            };
            let unknown = || io::Error::from(io::ErrorKind::InvalidData);
            let limit = CpuLimit::parse(&text).ok_or_else(unknown);
            limits.push(limit.map_err(|source| Error::Access { path, source })?);
        }
        Ok(limits)
    }

    /// Sets limits, in the order of [`Cgroup::cpu_limits`]. Tasks that wait for their next period go on at once if they may.
    ///
    /// # Errors
    /// [`Error::Access`]. The others are set all the same.
    pub fn set_cpu_limits(&self, limits: &[CpuLimit]) -> Result<(), Error> {
        let set = |(path, limit): (PathBuf, &CpuLimit)| {
            let opened = OpenOptions::new().write(true).truncate(true).open(&path);
            // The kernel takes a value by one call.
            let written = opened.and_then(|mut file| file.write_all(limit.to_string().as_bytes()));
            written.map_err(|source| Error::Access { path, source })
        };
        self.cpu_files().into_iter().zip(limits).map(set).fold(Ok(()), Result::and)
    }

    /// Sets limits back that are still one of `ours`, each in the order of [`Cgroup::cpu_limits`]. What somebody else has set since
    /// stays. Returns whether any was set.
    ///
    /// # Errors
    /// As [`Cgroup::set_cpu_limits`].
    pub fn put_cpu_limits_back(
        &self,
        ours: &[Vec<CpuLimit>],
        original: &[CpuLimit],
    ) -> Result<bool, Error> {
        let present = self.cpu_limits()?;
        let of_level = |(level, present): (usize, &CpuLimit)| {
            let is_ours = ours.iter().any(|limits| limits.get(level) == Some(present));
            original.get(level).filter(|_| is_ours).copied().unwrap_or(*present)
        };
        let wanted: Vec<CpuLimit> = present.iter().enumerate().map(of_level).collect();
        if wanted == present {
            return Ok(false);
        }
        self.set_cpu_limits(&wanted)?;
        Ok(true)
    }

    /// Returns the processor time that all tasks have used (`usage_usec` of `cpu.stat`, which every cgroup has).
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn cpu_usage(&self) -> Result<Duration, Error> {
        let path = self.path().join("cpu.stat");
        let text = fs::read_to_string(&path)
            .map_err(|source| Error::Access { path: path.clone(), source })?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let usage = usage.and_then(|number| number.trim().parse().ok()).map(Duration::from_micros);
        let unknown = || io::Error::from(io::ErrorKind::InvalidData);
        usage.ok_or_else(unknown).map_err(|source| Error::Access { path, source })
    }

    fn cpu_files(&self) -> Vec<PathBuf> {
        let own = self.path();
        let is_below = own.file_name().is_some_and(|name| name == SUBGROUP);
        let above = own.parent().filter(|_| is_below);
        [Some(own), above].into_iter().flatten().map(|path: &Path| path.join(CPU_MAX)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let half = CpuLimit::parse("50000 100000\n").unwrap();
        assert_eq!(half.processors(), Some(0.5));
        assert_eq!(half.to_string(), "50000 100000");
        assert_eq!(half.lifted().to_string(), "max 100000");
        assert_eq!(CpuLimit::parse("max 100000").unwrap().processors(), None);
        for text in ["", "max", "1 0", "-1 100000", "x 100000", "max 1 2"] {
            assert_eq!(CpuLimit::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_limits_of_ours_are_put_back() {
        let scope = tempfile::tempdir().unwrap();
        let own = scope.path().join(SUBGROUP);
        fs::create_dir(&own).unwrap();
        for name in ["cgroup.freeze", "cgroup.events"] {
            fs::write(own.join(name), "0").unwrap();
        }
        let cgroup = Cgroup::open(own.clone()).unwrap();
        assert_eq!(cgroup.cpu_limits().unwrap(), [], "there is no controller");
        let files = [own.join(CPU_MAX), scope.path().join(CPU_MAX)];
        files.iter().for_each(|path| fs::write(path, "70000 100000\n").unwrap());
        let original = cgroup.cpu_limits().unwrap();
        assert_eq!(original.len(), 2);
        let slower = vec![CpuLimit::of_processors(0.3), original[1]];
        let lifted: Vec<CpuLimit> = original.iter().map(|limit| limit.lifted()).collect();
        let ours = [slower, lifted];
        for limits in &ours {
            cgroup.set_cpu_limits(limits).unwrap();
            assert_eq!(&cgroup.cpu_limits().unwrap(), limits);
            assert!(cgroup.put_cpu_limits_back(&ours, &original).unwrap());
            assert_eq!(cgroup.cpu_limits().unwrap(), original);
        }
        assert!(!cgroup.put_cpu_limits_back(&ours, &original).unwrap(), "it is what it was");
        cgroup.set_cpu_limits(&ours[1][..1]).unwrap();
        assert!(cgroup.put_cpu_limits_back(&ours, &original).unwrap(), "one of two was set");
        assert_eq!(cgroup.cpu_limits().unwrap(), original);
        fs::write(&files[0], "20000 100000\n").unwrap();
        assert!(!cgroup.put_cpu_limits_back(&ours, &original).unwrap(), "somebody has changed it");
        assert_eq!(cgroup.cpu_limits().unwrap()[0].to_string(), "20000 100000");
    }

    #[test]
    fn a_limit_is_one_that_the_kernel_takes() {
        for processors in [64.0, 1.0, 0.8, 0.1, 0.03, 0.004, 0.0] {
            let limit = CpuLimit::of_processors(processors);
            let quota = limit.quota.unwrap();
            assert!(quota >= SHORTEST, "{processors}: {limit}");
            assert!((PERIOD..=LONGEST).contains(&limit.period), "{processors}: {limit}");
            let got = limit.processors().unwrap();
            assert!((got - processors.max(0.001)).abs() < 0.0005, "{processors}: {got}");
        }
    }
}
