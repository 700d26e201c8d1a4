//! Obstacles to a move, and what will differ afterwards.
//!
//! This module judges the engine's description of a container. [`checkpoint::blockers`] judges its processes.

mod container_settings;

use std::time::Duration;

use checkpoint::blockers::{Finding, Findings, Subject};
use checkpoint::cgroup::Cgroup;
use checkpoint::entered_processes;

use crate::Engine;
use crate::inspect::{Container, State};

/// How long a process that has entered a container may take to end by itself.
const BRIEF: Duration = Duration::from_millis(200);

/// Looks at a container of this host. Blocks the calling thread.
#[must_use]
pub fn look(engine: &dyn Engine, container: &Container) -> Findings {
    let mut findings = Findings {
        blockers: container_settings::findings(container),
        warnings: container_settings::warnings(container),
        watched: Vec::new(),
    };
    if container.state == State::Running {
        look_at_processes(engine, container, &mut findings);
    }
    findings
}

fn look_at_processes(engine: &dyn Engine, container: &Container, findings: &mut Findings) {
    let cgroup = match Cgroup::of_pid(container.pid, &container.id) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            findings.blockers.push(Finding { code: "cgroup", message: error.to_string() });
            return;
        }
    };
    if let Some(unit) = engine.service_unit(container) {
        let (name, engine) = (&container.name, engine.kind());
        findings.blockers.push(Finding {
            code: "service-unit",
            message: format!(
                "{name} is run by {unit}, which would start another {name} here after the move; stop the \
                 unit, start {name} by {engine} without it ({engine} run --detach), and move it then"
            ),
        });
    }
    let entered = entered_processes::find(&cgroup, container.pid).and_then(|_| {
        // A health check, which is an exec session of the engine's own, is over by now.
        std::thread::sleep(BRIEF);
        entered_processes::find(&cgroup, container.pid)
    });
    if let Some(by) = entered {
        let message = format!("{} is entered by {by}; end that first", container.name);
        findings.blockers.push(Finding { code: "exec-session", message });
    }
    let subject = Subject { name: &container.name, pid: container.pid };
    let Findings { blockers, warnings, watched } = checkpoint::blockers::look(&subject, &cgroup);
    findings.blockers.extend(blockers);
    findings.warnings.extend(warnings);
    findings.watched.extend(watched);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_container_without_cgroup_is_an_obstacle() {
        let container = Container {
            id: "a7".repeat(32),
            state: State::Running,
            network_mode: "bridge".into(),
            ..Container::default()
        };
        let found = look(&*crate::detect(None), &container).blockers;
        assert_eq!(found.last().map(|finding| finding.code), Some("cgroup"));
    }
}
