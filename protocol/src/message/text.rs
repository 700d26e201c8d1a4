//! Texts of messages that people read.

use checkpoint::fingerprint::Difference;
use serde::{Deserialize, Deserializer};
use state::peer_text::PeerText;

/// Decodes differences of a copy; what they name can be shown to people.
pub(super) fn differences<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Difference>, D::Error> {
    let shown = |text: String| PeerText::from(text).to_string();
    let mut all = Vec::<Difference>::deserialize(deserializer)?;
    for difference in &mut all {
        difference.fact.object = shown(std::mem::take(&mut difference.fact.object));
        difference.original = difference.original.take().map(shown);
        difference.copy = difference.copy.take().map(shown);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use checkpoint::fingerprint::{Fact, Kind};

    use state::blocker::Blocker;
    use state::peer_text::{LONGEST, is_plain};

    use super::super::{Failure, FailureCode, Hello, Message, Prepared, Verdict};
    use super::*;

    /// What a terminal, a log or a reader would take for something else.
    const HOSTILE: &str =
        "no\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}1m\r\nmoved\u{202e}txt\u{2066}\u{200b}\u{2028}\0";

    fn decoded(message: &Message) -> Message {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        Message::decode(&bytes).unwrap()
    }

    /// The text as a peer would write it, without being made plain on its way out.
    fn raw() -> PeerText {
        PeerText::raw(HOSTILE.to_owned())
    }

    fn all_plain(text: &str) -> bool {
        text.chars().all(is_plain)
    }

    #[test]
    fn what_a_terminal_executes_is_not_decoded() {
        let failure = Failure { code: FailureCode::Step, message: raw() };
        let Message::Failure(failure) = decoded(&Message::Failure(failure)) else { panic!() };
        assert!(all_plain(&failure.message), "{:?}", failure.message);
        assert!(
            failure.message.starts_with("no\u{fffd}[2J") && failure.message.contains("  moved")
        );
        let hello = Hello { name: raw(), software: raw() };
        let Message::Hello(hello) = decoded(&Message::Hello(hello)) else { panic!() };
        assert!(all_plain(&hello.name) && all_plain(&hello.software));
        let blockers = vec![Blocker { code: raw(), message: raw() }];
        let verdict = Verdict { blockers, image_missing: false, addresses: Vec::new() };
        let Message::Verdict(verdict) = decoded(&Message::Verdict(verdict)) else { panic!() };
        assert!(all_plain(&verdict.blockers[0].code) && all_plain(&verdict.blockers[0].message));
        let Message::PathsReady(Some(reason)) = decoded(&Message::PathsReady(Some(raw()))) else {
            panic!()
        };
        assert!(all_plain(&reason));
    }

    #[test]
    fn differences_are_made_plain_when_they_are_decoded() {
        let text = || HOSTILE.to_owned();
        let fact = Fact { kind: Kind::Mount, object: text() };
        let difference = Difference { fact, original: Some(text()), copy: Some(text()) };
        let prepared =
            Prepared { entries_us: 0, restore_us: 0, compare_us: 0, differences: vec![difference] };
        let Message::Prepared(prepared) = decoded(&Message::Prepared(prepared)) else { panic!() };
        assert!(all_plain(&prepared.differences[0].to_string()));
    }

    #[test]
    fn texts_of_ordinary_people_stay_as_they_are() {
        for text in ["web: port 80 is taken (a; b)", "Überlänge – ñandú 容器 контейнер", "שלום", ""]
        {
            assert_eq!(PeerText::from(text), text);
        }
        assert_eq!(PeerText::from("ä".repeat(LONGEST + 9)).chars().count(), LONGEST);
    }

    /// A new message cannot forget it: fields that are strings are listed here, with the reason why each is
    /// none that people read before it has been checked.
    #[test]
    fn messages_have_no_other_texts() {
        let sources = [
            include_str!("../message.rs"),
            include_str!("offer.rs"),
            include_str!("paths.rs"),
            include_str!("ways.rs"),
        ];
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let fields = sources.iter().flat_map(|source| {
            let body = source.split("#[cfg(test)]").next().unwrap_or_default();
            body.lines().filter(is_code).filter(|line| line.contains("String"))
        });
        let fields: Vec<&str> = fields.map(str::trim).collect();
        let known = [
            // Looked up as an ID.
            "38 => ForwardEnd(String),",
            // An image: checked with the offer.
            "pub id: String,",
            "pub name: String,",
            // A network, likewise.
            "pub name: String,",
            // The offer: `admission::well_formed` checks it.
            "pub id: String,",
            "pub name: String,",
            "pub runtime: String,",
            "pub architecture: String,",
            "pub cpu_flags: Vec<String>,",
            "pub without_symlinks: Vec<String>,",
            // Orders to anchors and to end flows: looked up as IDs.
            "pub id: String,",
            "pub id: String,",
            "pub id: String,",
        ];
        assert_eq!(fields, known);
    }
}
