//! What was found in processes, each object once.

use super::Finding;
use super::process_snapshot::Process;

/// An obstacle and how many processes have it.
#[derive(Debug)]
struct Obstacle {
    code: &'static str,
    process: String,
    object: String,
    advice: String,
    processes: usize,
}

/// Obstacles in the order in which they were met.
#[derive(Debug)]
pub(super) struct Found<'a> {
    container: &'a str,
    all: Vec<Obstacle>,
}

impl<'a> Found<'a> {
    /// Nothing yet, of the container of this name.
    pub(super) fn new(container: &'a str) -> Self {
        Self { container, all: Vec::new() }
    }

    /// Adds an obstacle: what the process does, as the rest of a sentence that begins with it, and what to
    /// do about it. Names from the container are made printable.
    pub(super) fn add(
        &mut self,
        process: &Process,
        code: &'static str,
        object: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let object = printable(&object.into());
        match self.all.iter_mut().find(|known| known.code == code && known.object == object) {
            Some(known) => known.processes += 1,
            None => self.all.push(Obstacle {
                code,
                process: format!("process {} ({})", process.pid, printable(&process.name)),
                object,
                advice: advice.into(),
                processes: 1,
            }),
        }
    }

    /// Keeps what was found another time as well.
    pub(super) fn keep(&mut self, again: &Self) {
        let is =
            |one: &Obstacle, other: &Obstacle| one.code == other.code && one.object == other.object;
        self.all.retain(|obstacle| again.all.iter().any(|other| is(obstacle, other)));
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds an obstacle that no one process has.
    pub(super) fn add_general(
        &mut self,
        code: &'static str,
        object: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.all.push(Obstacle {
            code,
            process: String::new(),
            object: printable(&object.into()),
            advice: advice.into(),
            processes: 1,
        });
    }

    /// The findings, with the container's name.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        let container = self.container;
        let sentence = |found: &Obstacle| {
            let Obstacle { process, object, advice, processes, .. } = found;
            let who = match (process.as_str(), processes - 1) {
                ("", _) => container.to_owned(),
                (process, 0) => format!("{process} of {container}"),
                (process, 1) => format!("{process} of {container}, and one more like it,"),
                (process, more) => format!("{process} of {container}, and {more} more like it,"),
            };
            format!("{who} {object}; {advice}")
        };
        self.all
            .iter()
            .map(|found| Finding { code: found.code, message: sentence(found) })
            .collect()
    }
}

/// Without control characters, and bounded.
fn printable(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_once() {
        let mut found = Found::new("web");
        let process = |pid| Process { pid, name: "a\nb".into(), ..Process::default() };
        for pid in [7, 8, 9] {
            found.add(&process(pid), "c", "has x open", "close it");
        }
        found.add(&process(7), "c", "has y open", "close it");
        let all = found.into_findings();
        let messages: Vec<&str> = all.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "process 7 (a?b) of web, and 2 more like it, has x open; close it",
                "process 7 (a?b) of web has y open; close it"
            ]
        );
    }

    #[test]
    fn what_is_not_found_again_is_forgotten() {
        let process = |pid| Process { pid, name: "a".into(), ..Process::default() };
        let look = |objects: &[(i32, &str)]| {
            let mut found = Found::new("web");
            objects.iter().for_each(|(pid, object)| found.add(&process(*pid), "c", *object, "go"));
            found
        };
        let mut found = look(&[(7, "has x open"), (8, "has x open"), (7, "has y open")]);
        found.keep(&look(&[(8, "has x open"), (7, "has z open")]));
        assert_eq!(found.into_findings().len(), 1);
        assert!(look(&[]).is_empty());
    }
}
