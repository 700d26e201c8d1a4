//! Systemd units. What their commands are is compared by the destination's admission.

use protocol::message as wire;

use super::{Refused, Wire, plain_fields};
use crate::offered_service::{OfferedService, OfferedUnitFile};

/// Most command lines of a unit, most words of one, and the most bytes of a word.
const MOST_COMMANDS: usize = 16;
const MOST_WORDS: usize = 4096;
const LONGEST_WORD: usize = 128 << 10;
/// Most files of a unit, and the most bytes of one.
const MOST_FILES: usize = 64;
const LARGEST_FILE: usize = 256 << 10;
/// The longest name of a file.
const LONGEST_NAME: usize = 128;

plain_fields! {
    OfferedUnitFile => wire::UnitFile { path, content }
}

impl Wire for OfferedService {
    type Form = wire::Service;

    fn into_wire(self) -> wire::Service {
        let Self { unit, start, files } = self;
        wire::Service { unit: unit.as_str().to_owned(), start, files: files.into_wire() }
    }

    fn from_wire(form: wire::Service) -> Result<Self, Refused> {
        let wire::Service { unit, start, files } = form;
        if start.len() > MOST_COMMANDS || start.iter().any(|words| words.len() > MOST_WORDS) {
            return Err(Refused::TooMany { what: "commands of a unit", limit: MOST_COMMANDS });
        }
        if files.len() > MOST_FILES {
            return Err(Refused::TooMany { what: "files of a unit", limit: MOST_FILES });
        }
        let are_short = start.iter().flatten().all(|word| word.len() <= LONGEST_WORD)
            && files.iter().all(|file| file.content.len() <= LARGEST_FILE);
        let files: Vec<OfferedUnitFile> = Vec::from_wire(files)?;
        let unit = unit.parse().map_err(|_| Refused::Impossible("a name of a unit"))?;
        if start.is_empty() || !are_short || !files.iter().all(|file| is_path(&file.path)) {
            return Err(Refused::Impossible("a unit"));
        }
        Ok(Self { unit, start, files })
    }
}

/// Returns whether a text is the name of a file, or of one in a directory that is a name as well.
fn is_path(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= LONGEST_NAME
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
    };
    text.split('/').count() <= 2 && text.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn service(path: &str) -> OfferedService {
        OfferedService {
            unit: "web.service".parse().unwrap(),
            start: vec![vec!["podman".to_owned(), "run".to_owned()]],
            files: vec![OfferedUnitFile {
                path: path.to_owned(),
                content: "[Container]".to_owned(),
            }],
        }
    }

    #[test]
    fn a_unit_comes_back() {
        comes_back(&service("web.container"));
        comes_back(&service("web.container.d/10-memory.conf"));
    }

    #[test]
    fn what_no_agent_sends_is_refused() {
        let refused = |form: wire::Service| OfferedService::from_wire(form).unwrap_err();
        for path in ["", "/etc/x", "../x", "a/../x", "a/b/c", "a//b", ".x", "a/.x", "a b", "a\n"] {
            refused(service(path).into_wire());
        }
        let good = || service("web.container").into_wire();
        for unit in ["web", "../web.service", "web.timer"] {
            refused(wire::Service { unit: unit.to_owned(), ..good() });
        }
        refused(wire::Service { start: vec![], ..good() });
        refused(wire::Service { start: vec![vec![]; MOST_COMMANDS + 1], ..good() });
        refused(wire::Service { start: vec![vec!["x".repeat(LONGEST_WORD + 1)]], ..good() });
        let file = || good().files.remove(0);
        refused(wire::Service { files: (0..=MOST_FILES).map(|_| file()).collect(), ..good() });
        let large = wire::UnitFile { content: "x".repeat(LARGEST_FILE + 1), ..file() };
        refused(wire::Service { files: vec![large], ..good() });
    }
}
