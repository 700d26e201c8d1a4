//! The agents' logs.

use std::fmt::Debug;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};

use crate::peer_text::plain;

/// Begins to write the log on standard error: what `NETMIG_LOG` asks for, or else this level and above.
///
/// What is logged may name what a peer or a container has chosen, such as the path of a file. So each event
/// is one line, without characters that a terminal executes ([`plain`]).
pub fn begin(level: &str, with_target: bool) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("NETMIG_LOG").unwrap_or_else(|_| level.into()))
        .with_writer(std::io::stderr)
        .with_target(with_target)
        .fmt_fields(fields())
        .init();
}

fn fields() -> impl for<'writer> FormatFields<'writer> {
    use tracing_subscriber::field::MakeExt;
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let value = plain(&format!("{value:?}"));
        match field.name() {
            "message" => write!(writer, "{value}"),
            name => write!(writer, "{name}={value}"),
        }
    };
    format::debug_fn(field).delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_it_names() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(fields())
            .finish();
        let hostile = "x\u{1b}[2J\u{9b}1m\nWARN all is well\u{202e}";
        tracing::subscriber::with_default(log, || {
            tracing::info!(path = hostile, shown = %hostile, "cannot open {hostile}: {}", 7);
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("cannot open x\u{fffd}[2J") && text.contains(": 7 path="),
            "{text:?}"
        );
        let line = text.strip_suffix('\n').unwrap();
        assert!(line.chars().all(crate::peer_text::is_plain), "{text:?}");
    }
}
