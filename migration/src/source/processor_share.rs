//! How much of the processors the container may use while it is moved. A container that writes its memory faster than it goes
//! over is slowed down step by step. CRIU does a part of the dump by code in the container's tasks, so limits are lifted for
//! that. The journal has the limits before they are changed, and recovery puts them back.

use std::sync::Arc;

use checkpoint::cgroup::{CPU_MAX, Cgroup, CgroupSetting, CpuLimit, Error};
use state::cause::Cause;
use state::journal::{Journal, Record};

/// The part of the processors that the container keeps in the first step, and how much less that is in each further one, in
/// percent of what it used before.
const FIRST: u32 = 80;
const STEP: u32 = 10;
/// The fewest processors that a container is taken to use: rounds may be too short to tell.
const FEWEST: f64 = 0.05;

/// How much of the processors a container may use.
#[derive(Debug)]
pub struct ProcessorShare {
    cgroup: Arc<Cgroup>,
    /// The limits as they were before the first change.
    original: Vec<CpuLimit>,
    /// All limits that were set.
    ours: Vec<Vec<CpuLimit>>,
    /// How many processors the container used before it was slowed down, and how much of that it has, in percent.
    slowed: Option<(f64, u32)>,
}

impl ProcessorShare {
    /// Makes the share of a container that has not been slowed down.
    #[must_use]
    pub fn new(cgroup: Arc<Cgroup>) -> Self {
        Self { cgroup, original: Vec::new(), ours: Vec::new(), slowed: None }
    }

    /// Returns how many processors the container has if it was slowed down, by the part.
    #[must_use]
    pub fn processors(&self) -> Option<f64> {
        self.slowed.map(|(used, percent)| used * f64::from(percent) / 100.0)
    }

    /// Slows the container down by one more step. `used` is how many processors it uses. Returns `false` if it has the
    /// smallest share already.
    ///
    /// # Errors
    /// The journal cannot be written, or the kernel refuses the limit. It may have been set then.
    pub fn slow_down(&mut self, journal: &mut Journal, used: f64) -> Result<bool, Cause> {
        let (used, percent) = match self.slowed {
            None => (used, FIRST),
            Some((_, percent)) if percent <= STEP => return Ok(false),
            Some((used, percent)) => (used, percent - STEP),
        };
        self.look()?;
        let allowed = self.original.first().and_then(CpuLimit::processors);
        let used = used.max(FEWEST).min(allowed.unwrap_or(f64::INFINITY));
        let mut limits = self.original.clone();
        let Some(own) = limits.first_mut() else { return Ok(false) };
        *own = CpuLimit::of_processors(used * f64::from(percent) / 100.0);
        self.note(journal, limits.clone())?;
        self.cgroup.set_cpu_limits(&limits)?;
        self.slowed = Some((used, percent));
        tracing::debug!(percent, limit = %limits[0], "the container is slowed down");
        Ok(true)
    }

    /// Notes that the limits will be lifted, if there are any.
    ///
    /// # Errors
    /// The journal cannot be written, or the limits cannot be read.
    pub fn note_lift(&mut self, journal: &mut Journal) -> Result<(), Cause> {
        self.look()?;
        let limits = self.lifted();
        match self.cgroup.cpu_limits()? == limits {
            true => Ok(()),
            false => self.note(journal, limits),
        }
    }

    /// Lifts the limits, as was noted, of a container that is about to be frozen or is frozen.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lift(&self) -> Result<(), Error> {
        let limits = self.lifted();
        match self.ours.contains(&limits) {
            true => self.cgroup.set_cpu_limits(&limits),
            false => Ok(()),
        }
    }

    /// Puts the limits back as they were, unless somebody else has changed them since.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn put_back(&self) -> Result<(), Error> {
        match self.ours.is_empty() {
            true => Ok(()),
            false => self.cgroup.put_cpu_limits_back(&self.ours, &self.original).map(drop),
        }
    }

    /// Returns settings of the container's own cgroup as they are without these changes.
    #[must_use]
    pub fn unchanged(&self, mut settings: Vec<CgroupSetting>) -> Vec<CgroupSetting> {
        let Some(own) = self.original.first() else { return settings };
        for setting in settings.iter_mut().filter(|setting| setting.file == CPU_MAX) {
            let present = CpuLimit::parse(&setting.value);
            if self.ours.iter().any(|ours| ours.first().copied() == present) {
                setting.value = own.to_string();
            }
        }
        settings
    }

    /// Takes limits that are not ours for the original ones: the first time, and when somebody has changed them.
    fn look(&mut self) -> Result<(), Error> {
        let present = self.cgroup.cpu_limits()?;
        for (level, limit) in present.into_iter().enumerate() {
            let is_ours = self.ours.iter().any(|limits| limits.get(level) == Some(&limit));
            match self.original.get_mut(level) {
                Some(_) if is_ours => {}
                Some(original) => *original = limit,
                None => self.original.push(limit),
            }
        }
        Ok(())
    }

    fn lifted(&self) -> Vec<CpuLimit> {
        self.original.iter().map(|limit| limit.lifted()).collect()
    }

    fn note(&mut self, journal: &mut Journal, limits: Vec<CpuLimit>) -> Result<(), Cause> {
        let texts = |limits: &[CpuLimit]| limits.iter().map(CpuLimit::to_string).collect();
        journal
            .append(&Record::CpuLimit { original: texts(&self.original), set: texts(&limits) })?;
        self.ours.push(limits);
        Ok(())
    }
}
