//! Rules that count packets of flows, and that a dead process has left.

use netmig::table::{Purpose, RuleTag, Table};
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal;
use state::migration_lock::MigrationLock;

/// Removes the counting rules of migrations that nobody works on. Returns whether rules of others are there. Those
/// of a migration with a journal go with the journal's recovery.
///
/// # Errors
/// The table cannot be read or changed, or it is not known who works on a migration.
pub fn sweep(directories: &Directories) -> Result<bool, Cause> {
    let mut table = Table::open()?;
    let mut tags: Vec<RuleTag> = Vec::new();
    for rule in table.read()?.rules {
        match rule.purpose {
            Some(Purpose::FlowCounter(tag)) if !tags.contains(&tag) => tags.push(tag),
            _ => {}
        }
    }
    let mut is_any_in_use = false;
    for tag in tags {
        if is_in_use(directories, &tag)? {
            is_any_in_use = true;
        } else {
            table.remove_flow_counter(&tag)?;
        }
    }
    Ok(is_any_in_use)
}

fn is_in_use(directories: &Directories, tag: &RuleTag) -> Result<bool, Cause> {
    // Every agent's tag is a migration.
    let Ok(migration) = tag.as_str().parse::<MigrationId>() else { return Ok(false) };
    // In this order: the lock is kept when the journal goes.
    Ok(journal::exists(&directories.state, migration)?
        || MigrationLock::is_taken(&directories.run, migration)?)
}
