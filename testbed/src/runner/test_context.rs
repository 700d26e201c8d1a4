//! The context of a test: its labs, which end with it, and its remarks.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::Result;
use crate::lab::{Lab, LabBuilder, Runtime};

/// A test's access to the testbed.
#[derive(Debug, Default)]
pub struct Context {
    labs: Mutex<Vec<Arc<Lab>>>,
    remarks: Mutex<Vec<String>>,
}

impl Context {
    /// Starts a lab with these hosts. It ends with the test.
    ///
    /// # Errors
    /// See [`LabBuilder::start`].
    pub fn lab(&self, hosts: &[&str]) -> Result<Arc<Lab>> {
        self.start(&LabBuilder::new(hosts))
    }

    /// Starts a lab with these hosts and this runtime. It ends with the test.
    ///
    /// # Errors
    /// See [`LabBuilder::start`].
    pub fn lab_with(&self, hosts: &[&str], runtime: Runtime) -> Result<Arc<Lab>> {
        self.start(&LabBuilder::new(hosts).runtime(runtime))
    }

    /// Starts a lab with any settings. It ends with the test.
    ///
    /// # Errors
    /// See [`LabBuilder::start`].
    pub fn start(&self, builder: &LabBuilder) -> Result<Arc<Lab>> {
        let lab = Arc::new(builder.start()?);
        lock(&self.labs).push(Arc::clone(&lab));
        Ok(lab)
    }

    /// Adds text, such as a figure, to the line that is printed when the test passes.
    pub fn remark(&self, text: impl Into<String>) {
        lock(&self.remarks).push(text.into());
    }

    pub(super) fn remarks(&self) -> String {
        let all = lock(&self.remarks);
        if all.is_empty() { String::new() } else { format!(" {}", all.join(", ")) }
    }

    pub(super) fn diagnosis(&self) -> String {
        let labs = lock(&self.labs).clone();
        labs.iter().map(|lab| lab.diagnosis()).collect()
    }

    /// Removes the labs, although a thread of the test may still refer to them.
    pub(super) fn clear(&self) -> Result<()> {
        let labs = std::mem::take(&mut *lock(&self.labs));
        labs.iter().map(|lab| lab.clear()).fold(Ok(()), Result::and)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
