//! Settings that the container would lose, since the destination's engine cannot be given them.

use engine::{Described, Kind};
use state::blocker::Blocker;

/// Returns one blocker for each setting, and one for all secrets.
pub fn blockers(engine: Kind, container: &str, described: &Described) -> Vec<Blocker> {
    let mut blockers: Vec<_> =
        described.lost.iter().map(|setting| lost(container, setting)).collect();
    if described.has_secrets {
        let message = format!(
            "{container} has secrets of {engine}'s, which stay on this host; create it without (--secret), and \
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
    use engine::description::Description;

    #[test]
    fn secrets_are_named_once() {
        let described = Described {
            description: Description::default(),
            lost: ["cidfile".to_owned()].into(),
            has_secrets: true,
        };
        let found = blockers(engine::detect(None).kind(), "web", &described);
        let codes: Vec<&str> = found.iter().map(|blocker| blocker.code.as_str()).collect();
        assert_eq!(codes, ["setting", "secret"]);
        assert!(found[0].message.contains("cidfile") && found[1].message.contains("--secret"));
    }
}
