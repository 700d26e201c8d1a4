//! What is asked of a source.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

/// Pages of a process that are all missing, and the connection of an agent.
struct Asked {
    _dir: tempfile::TempDir,
    at_source: AtSource,
    agent: UnixStream,
}

impl Asked {
    fn new(bytes: u64, patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pages = dir.path().join("memory");
        File::create(&pages).unwrap().set_len(bytes).unwrap();
        let at = LazyRange { start: PAGE, end: PAGE + bytes, offset: 0 };
        let list = serde_json::json!({
            "pages": pages, "ranges": [MissingRange { process: 7, at }],
        });
        fs::write(dir.path().join("missing-pages.json"), list.to_string()).unwrap();
        let socket = dir.path().join("socket");
        let mut at_source = AtSource::open(dir.path(), &socket, patience).unwrap().unwrap();
        let mut agent = UnixStream::connect(&socket).unwrap();
        at_source.follow(&[true]).unwrap();
        agent.write_all(&[2, 0, 0, 0, LANE, Lane::Urgent.byte()]).unwrap();
        at_source.follow(&[false, true]).unwrap();
        Self { _dir: dir, at_source, agent }
    }

    /// Returns what is asked for because processes wait for the pages at some places.
    fn asks(&mut self, places: impl Iterator<Item = u64>) -> Vec<MissingRange> {
        places.for_each(|place| self.at_source.want(place));
        self.at_source.ask(false);
        let mut length = [0; 4];
        self.agent.read_exact(&mut length).unwrap();
        let mut question = vec![0; u32::from_ne_bytes(length) as usize];
        self.agent.read_exact(&mut question).unwrap();
        serde_json::from_slice(&question[1..]).unwrap()
    }

    /// Sends pages, and the word that these were all.
    fn send(&mut self, wanted: &[MissingRange]) {
        for range in wanted {
            for start in (range.at.start..range.at.end).step_by(PAGE as usize) {
                let head = [&[PAGES][..], &7_i32.to_ne_bytes(), &start.to_ne_bytes()].concat();
                let length = (head.len() as u32 + PAGE as u32).to_ne_bytes();
                self.agent.write_all(&[&length[..], &head, &[1; PAGE as usize]].concat()).unwrap();
                self.at_source.follow(&[false, true]).unwrap();
            }
        }
        self.agent.write_all(&[1, 0, 0, 0, SENT]).unwrap();
        self.at_source.follow(&[false, true]).unwrap();
    }
}

#[test]
fn no_question_is_about_more_than_a_source_answers() {
    const FAR: u64 = 1 << 20;
    let mut asked = Asked::new(256 * FAR, Duration::MAX);
    let mut place = 0;
    // One page after the other, so that more and more is asked for.
    for _ in 0..6 {
        let wanted = asked.asks([place].into_iter());
        place = wanted[0].at.offset + (wanted[0].at.end - wanted[0].at.start);
        asked.send(&wanted);
    }
    // Many wait for others at the same time.
    let wanted = asked.asks([place].into_iter().chain((20..200).map(|place| place * FAR)));
    let bytes: u64 = wanted.iter().map(|of| of.at.end - of.at.start).sum();
    assert!(wanted.len() > 30 && wanted.len() <= QUESTION_RANGES, "{} ranges", wanted.len());
    assert!(bytes <= QUESTION_BYTES, "{bytes} bytes");
}

#[test]
fn a_source_that_is_reached_and_sends_nothing_is_given_up() {
    let patience = Duration::from_millis(200);
    let mut asked = Asked::new(4 * PAGE, patience);
    asked.at_source.check_patience(true).unwrap();
    std::thread::sleep(patience);
    asked.at_source.check_patience(false).unwrap();
    asked.at_source.check_patience(true).unwrap();
    std::thread::sleep(patience);
    let error = asked.at_source.check_patience(true).unwrap_err();
    assert!(error.to_string().contains("16 KiB of the memory are missing"), "{error}");
}
