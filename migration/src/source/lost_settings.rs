//! Settings that the container would lose, since the destination's engine cannot be given them.

use std::collections::BTreeSet;

use agent_core::message::Blocker;

/// How podman's secrets are called among lost settings, and the mount that goes with them.
const SECRETS: [&str; 2] = ["secrets", "secret_env"];
const SECRETS_MOUNT: &str = "storage.mounts=\"/run/secrets\"";

/// Returns one blocker for each setting, and one for all that belongs to secrets.
pub fn blockers(container: &str, all: &BTreeSet<String>) -> Vec<Blocker> {
    let is_secret =
        |setting: &&String| SECRETS.contains(&setting.as_str()) || *setting == SECRETS_MOUNT;
    let (secrets, others): (Vec<_>, Vec<_>) = all.iter().partition(is_secret);
    let mut blockers: Vec<_> = others.iter().map(|setting| lost(container, setting)).collect();
    if !secrets.is_empty() {
        let message = format!(
            "{container} has secrets of podman's, which stay on this host; create it without (--secret), and \
             give it the values in another way"
        );
        blockers.push(Blocker::new("secret", message));
    }
    blockers
}

fn lost(container: &str, setting: &str) -> Blocker {
    Blocker::new(
        "setting",
        format!(
            "{container} has the setting {setting}, which would be lost or changed; create it without"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_named_once() {
        let all = ["secrets", SECRETS_MOUNT, "cidfile"].map(str::to_owned).into();
        let found = blockers("web", &all);
        let codes: Vec<&str> = found.iter().map(|blocker| blocker.code.as_str()).collect();
        assert_eq!(codes, ["setting", "secret"]);
        assert!(found[0].message.contains("cidfile") && found[1].message.contains("--secret"));
    }
}
