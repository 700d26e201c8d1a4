//! Whether this host's systemd can run an offered container by its unit.

use std::path::Path;

use protocol::permissions::Permissions;
use services::{Manager, Unit};
use state::cause::chain;

use crate::destination::server_context::ServerContext;
use crate::offered_service::OfferedService;
use crate::source::service::QUADLET;

/// Names everything that is in the way of the unit.
pub(super) async fn check(
    host: &ServerContext,
    permissions: &Permissions,
    (container, service): (&str, Option<&OfferedService>),
    block: &mut impl FnMut(&str, String),
) {
    let Some(service) = service else { return };
    let (here, name) = (&host.name, &service.unit);
    // What a peer may move here goes by the names of containers, so a unit of another one is not taken.
    if !starts(&service.start, container) {
        block("unit-differs", format!("{name} does not start a container named {container}"));
    }
    let unit = match Manager::connect().await {
        Ok(manager) => manager.unit(name).await,
        Err(e) => Err(e),
    };
    let unit = match unit {
        Ok(unit) => unit,
        Err(e) => return block("unit-systemd", format!("{here}: {}", chain(&e))),
    };
    if unit.load == "not-found" && !service.files.is_empty() {
        return check_files(here, permissions, service, block);
    }
    if unit.load == "not-found" {
        return block(
            "unit-missing",
            format!(
                "{here} has no {name}; make it there (for a unit of Quadlet copy its file to {QUADLET}, and run \
                 systemctl daemon-reload), or move with --unit carry"
            ),
        );
    }
    check_found(here, &unit, service, block);
}

/// Returns whether command lines name the container (podman-run(1), `--name`).
fn starts(commands: &[Vec<String>], container: &str) -> bool {
    let is_named = |words: &[String]| matches!(words, [option, name] if option == "--name" && name == container);
    let whole = format!("--name={container}");
    commands.iter().any(|words| words.contains(&whole) || words.windows(2).any(is_named))
}

fn check_found(
    here: &str,
    unit: &Unit,
    service: &OfferedService,
    block: &mut impl FnMut(&str, String),
) {
    let name = &service.unit;
    if let Err(e) = unit.check_settings() {
        block("unit-unsuitable", format!("{name} of {here} cannot run the container: {e}"));
    } else if unit.start != service.start {
        let there: Vec<String> = unit.start.iter().map(|words| words.join(" ")).collect();
        block(
            "unit-differs",
            format!(
                "{name} of {here} starts another container than that of the source: {}; make both alike",
                there.join("; ")
            ),
        );
    }
    if !unit.is_down() {
        block("unit-active", format!("{name} of {here} is {} already; stop it there", unit.state));
    }
}

fn check_files(
    here: &str,
    permissions: &Permissions,
    service: &OfferedService,
    block: &mut impl FnMut(&str, String),
) {
    let name = &service.unit;
    if !permissions.units {
        block(
            "not-allowed-units",
            format!(
                "{here} takes no files of {name} from this host; `agent-server peers allow` on {here} can permit it \
                 (--units)"
            ),
        );
    }
    for file in &service.files {
        let path = Path::new(QUADLET).join(&file.path);
        if path.symlink_metadata().is_ok() {
            block(
                "unit-file-exists",
                format!("{here} has {} already, which would be one of {name}", path.display()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_unit_names_its_container() {
        let starts = |line: &str| {
            let words = line.split(' ').map(str::to_owned).collect();
            super::starts(&[words], "web")
        };
        assert!(starts("podman run --name web --rm x"));
        assert!(starts("podman run --name=web x"));
        for other in ["podman run --name db web", "podman run web", "podman run --name=web2 x"] {
            assert!(!starts(other), "{other}");
        }
    }
}
