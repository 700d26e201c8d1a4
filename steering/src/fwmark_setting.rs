//! Which bits of packets' marks netmig uses on this host: a setting in the state directory.
//!
//! Every process reads it when it starts, and again whenever it takes the [`SteeringLock`], under which alone
//! anything with such marks is made. It is changed under that lock, too, and only while nothing with a mark of
//! netmig's is there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use netmig::fwmark::MarkBits;
use netmig::routing::{self, MarkRule};
use netmig::tunnel;
use serde::{Deserialize, Serialize};

use crate::steering_lock::SteeringLock;
use state::blocker::Blocker;
use state::cause::Cause;
use state::directories::Directories;
use state::host;
use state::json_files;

/// Version of the setting's form.
const VERSION: u32 = 1;
/// Code of the reason against a migration.
const CODE: &str = "fwmark-clash";

/// The state directory of this process.
static STATE: OnceLock<PathBuf> = OnceLock::new();

/// The setting.
#[derive(Debug, Serialize, Deserialize)]
struct Setting {
    bits: MarkBits,
}

/// The setting cannot be changed now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Packets are marked already.
    #[error(
        "this host leads flows with marks in bits {bits}: {what} is there; the bits can be changed when these \
         flows have ended (agent-client flows shows them)"
    )]
    InUse {
        /// The bits in use.
        bits: MarkBits,
        /// A tunnel or a rule.
        what: String,
    },
    /// The bits are somebody else's.
    #[error("{rule} uses some of the bits {bits}; choose others")]
    Taken {
        /// The bits that were chosen.
        bits: MarkBits,
        /// The rule.
        rule: MarkRule,
    },
}

/// Has this process use the bits that are set for this host, from its start on.
///
/// # Errors
/// The setting cannot be read.
pub fn begin(state: &Path) -> Result<(), json_files::Error> {
    read(state)?.use_here();
    // A process has one state directory.
    let _ = STATE.set(state.to_owned());
    Ok(())
}

/// Has it use those that are set by now.
///
/// # Errors
/// The setting cannot be read.
pub(crate) fn refresh() -> Result<(), json_files::Error> {
    STATE.get().map_or(Ok(()), |state| read(state).map(MarkBits::use_here))
}

/// Returns the bits that are set for this host.
///
/// # Errors
/// The setting cannot be read.
pub fn read(state: &Path) -> Result<MarkBits, json_files::Error> {
    let setting: Option<Setting> = json_files::read(&path(state), VERSION)?;
    Ok(setting.map_or(MarkBits::DEFAULT, |setting| setting.bits))
}

/// Sets the bits for this host.
///
/// # Errors
/// [`Error`], or the setting cannot be written.
pub async fn set(directories: &Directories, bits: MarkBits) -> Result<(), Cause> {
    let _lock = SteeringLock::take(&directories.run).await?;
    let present = read(&directories.state)?;
    if present == bits {
        return Ok(());
    }
    let in_use = |what| Err(Error::InUse { bits: present, what }.into());
    if let Some(peer) = tunnel::list().await?.first() {
        return in_use(format!("the tunnel {}", peer.interface()));
    }
    let rules = routing::mark_rules().await?;
    if let Some(rule) = rules.iter().find(|rule| rule.ours) {
        return in_use(rule.to_string());
    }
    if let Some(rule) = rules.into_iter().find(|rule| rule.clashes_with(bits)) {
        return Err(Error::Taken { bits, rule }.into());
    }
    json_files::write(&path(&directories.state), VERSION, &Setting { bits })?;
    bits.use_here();
    Ok(())
}

/// Returns what of this host's routing rules is in the way of a migration: those that use netmig's bits of
/// packets' marks. One that only brings a container home, by a tunnel that is there, adds nothing to what is.
///
/// # Errors
/// The setting or the rules cannot be read.
pub async fn blockers(state: &Path, comes_home: bool) -> Result<Vec<Blocker>, Cause> {
    if comes_home {
        return Ok(Vec::new());
    }
    let bits = read(state)?;
    Ok(explain(&host::name(), bits, &routing::mark_rules().await?))
}

fn explain(host: &str, bits: MarkBits, rules: &[MarkRule]) -> Vec<Blocker> {
    let suits = |bits: MarkBits| rules.iter().all(|rule| !rule.clashes_with(bits));
    let remedy = match MarkBits::find(suits) {
        Some(free) => format!("run `agent-server marks --bits {free}` on {host}"),
        None => format!(
            "no eight bits of it are free, so give rules such as this one smaller masks, and then run \
             `agent-server marks` on {host}"
        ),
    };
    let clashing = rules.iter().filter(|rule| rule.clashes_with(bits));
    let blocker = |rule: &MarkRule| {
        let message = format!(
            "{rule} of {host} uses bits of packets' marks that netmig uses there ({bits}); {remedy}"
        );
        Blocker::new(CODE, message)
    };
    clashing.map(blocker).collect()
}

fn path(state: &Path) -> PathBuf {
    state.join("marks.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mark: u32, mask: u32) -> MarkRule {
        MarkRule { v6: true, preference: 5210, mark, mask, inverted: false, ours: false }
    }

    #[test]
    fn a_clash_is_told_with_the_rule_and_a_remedy() {
        let tailscale = rule(0x80000, 0x00ff_0000);
        let told = explain("a", MarkBits::DEFAULT, &[tailscale, rule(0x4000, 0xf000)]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].code, "fwmark-clash");
        for word in ["preference 5210", "0x80000/0xff0000", "marks --bits 24-31", "on a"] {
            assert!(told[0].message.contains(word), "{}", told[0].message);
        }
        assert_eq!(explain("a", "24-31".parse().unwrap(), &[tailscale]), []);
        let all = explain("a", MarkBits::DEFAULT, &[rule(0x1000_0000, 0xfff0_0fff), tailscale]);
        assert!(all[0].message.contains("smaller masks"), "{}", all[0].message);
    }

    #[test]
    fn bits_are_the_usual_ones_unless_they_are_set() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), MarkBits::DEFAULT);
        let bits = "8-15".parse().unwrap();
        json_files::write(&path(dir.path()), VERSION, &Setting { bits }).unwrap();
        assert_eq!(read(dir.path()).unwrap(), bits);
        json_files::write(&path(dir.path()), VERSION + 1, &Setting { bits }).unwrap();
        assert!(matches!(read(dir.path()), Err(json_files::Error::Later { .. })));
    }
}
