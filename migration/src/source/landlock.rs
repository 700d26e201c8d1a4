//! What is told of a container whose processes may have restricted themselves by Landlock without a sign of it.
//!
//! A process without privileges has to give up gaining any before (no_new_privs), which can be seen
//! ([`blockers`]). That tells nothing where the engine has set it for all processes of the container, and a
//! process with CAP_SYS_ADMIN need not do so (landlock_restrict_self(2)).

use checkpoint::blockers;
use engine::description::Description;

/// The code of the warning.
const UNSEEN: &str = "landlock-unseen";
/// Processes with this capability need not give up gaining privileges.
const CAP_SYS_ADMIN: &str = "CAP_SYS_ADMIN";

/// Returns what is told of a container where this kernel has Landlock and nothing would show its use.
pub fn warning(description: &Description) -> Option<String> {
    blockers::has_landlock().then(|| unseen(description)).flatten()
}

fn unseen(description: &Description) -> Option<String> {
    let container = &description.name;
    let capabilities = &description.process.capabilities;
    let why = if description.confinement.no_new_privileges {
        "was created with no-new-privileges"
    } else if capabilities.bounding.iter().any(|one| one == CAP_SYS_ADMIN) {
        "has CAP_SYS_ADMIN"
    } else {
        return None;
    };
    Some(format!(
        "{container} {why}, so nobody can tell whether its processes have restricted themselves by Landlock: such \
         restrictions are gone after the move; if its programs use Landlock, start them anew there, and if they \
         do not, or may do without, --accept-loss landlock says so ({UNSEEN})"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_that_may_hide_a_restriction() {
        let plain = Description { name: "web".to_owned(), ..Description::default() };
        assert_eq!(unseen(&plain), None);
        let mut bit = plain.clone();
        bit.confinement.no_new_privileges = true;
        let mut administrator = plain.clone();
        administrator.process.capabilities.bounding =
            vec!["CAP_KILL".to_owned(), CAP_SYS_ADMIN.to_owned()];
        for (description, why) in [(bit, "no-new-privileges"), (administrator, "CAP_SYS_ADMIN")] {
            let told = unseen(&description).unwrap();
            for word in ["web ", why, "--accept-loss landlock", "(landlock-unseen)"] {
                assert!(told.contains(word), "{told}");
            }
        }
    }
}
