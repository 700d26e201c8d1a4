//! The service of a container.

use protocol::message::*;

use super::text;

pub(super) fn sample() -> Message {
    let file = UnitFile { path: text("web.container"), content: text("[Container]\nImage=x\n") };
    Message::Service(Service {
        unit: text("web.service"),
        start: vec![vec![text("/usr/bin/podman"), text("run"), text("x")]],
        files: vec![file],
    })
}
