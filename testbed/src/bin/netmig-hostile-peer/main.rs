//! A paired host that violates the protocol. It authenticates with this host's identity, as an agent does, and sends
//! any messages in any order. Tests describe them as JSON on standard input:
//!
//! ```json
//! {"to": "192.0.2.2:7472", "patience_ms": 3000, "conversations": [
//!     [{"send": "Resume", "body": [0, 0]}, {"send": "Commit", "body": [0, 0]}],
//!     [{"greet": false}, {"offer": "evil", "anchors": [[0, 0]]}]
//! ]}
//! ```
//!
//! It prints the answer to each message of each conversation as JSON.
//!
//! It can also take the place of an agent-server that answers so:
//!
//! ```json
//! {"port": 7472, "role": "Refuse", "text": "no\u001b[2J"}
//! ```

mod offer;

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use migration::convert::Wire;
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use protocol::expect;
use protocol::message::{Blocker, Failure, FailureCode, Hello, Introduction, Message, Verdict};
use protocol::trust::{Servers, Trust};
use protocol::wire::{self, Connection};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use state::cause::{Cause, chain};
use state::directories::{Directories, STATE};
use state::host;
use state::id::{HostId, MigrationId};
use state::peer_address::Destination;
use state::peer_text::PeerText;
use steering::tunnels::{self, SteeringLock, Transport, TunnelEnd};

/// A paired host that violates the protocol
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print this host's identity as JSON
    Whoami,
    /// Hold the conversations that are described on standard input
    Say,
    /// Answer as a destination, as this JSON describes, until it is killed
    Answer { script: String },
}

/// The answer of a destination to every offer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    /// The TCP port.
    port: u16,
    /// The kind of the answer.
    role: Role,
    /// The text of the answer.
    text: String,
}

/// How a destination refuses an offer.
#[derive(Clone, Copy, Deserialize)]
enum Role {
    /// With a verdict.
    Refuse,
    /// By a failure.
    Fail,
}

/// The conversations and their receiver.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    /// The agent-server.
    to: Destination,
    /// The time limit for each answer, in milliseconds.
    patience_ms: u64,
    /// The conversations, each over its own connection.
    conversations: Vec<Vec<Line>>,
}

/// One step of a conversation.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    /// A message by its name, and its body.
    Message {
        send: String,
        #[serde(default)]
        body: Value,
        /// Whether to go on without waiting for an answer.
        #[serde(default)]
        at_once: bool,
    },
    /// The offer of a container of this host, as the client would make it, with third hosts for anchors.
    Offer {
        offer: String,
        migration: MigrationId,
        #[serde(default)]
        anchors: Vec<HostId>,
    },
    /// After an offer: a working tunnel, as the client would set it up.
    Tunnel { tunnel: bool },
    /// A tunnel end that does not work, whose kind is this text.
    RawKind { tunnel_of_kind: String },
    /// As a first line: whether to send a hello.
    Greeting { greet: bool },
    /// Waits before the next line.
    Pause { pause_ms: u64 },
}

/// The answer to one message.
#[derive(Serialize)]
struct Answer {
    /// The name of the message.
    sent: String,
    /// The name of the answer; `closed` for a closed connection, `silence` if no answer came in time.
    answer: String,
    /// The text of the answer.
    text: String,
}

/// A name that no message has.
#[derive(Debug, thiserror::Error)]
#[error("no message is called {0:?}")]
struct NoMessage(String);

/// Builds a message from its name and its body in JSON.
macro_rules! named {
    ($name:expr, $body:expr, [$($known:ident)*]) => {
        match $name {
            $(stringify!($known) => Message::$known(serde_json::from_value($body)?),)*
            other => return Err(NoMessage(other.to_owned()).into()),
        }
    };
}

fn message(name: &str, body: Value) -> Result<Message, Cause> {
    Ok(named!(
        name,
        body,
        [Hello Failure Offer Verdict TunnelOffer TunnelAnswer ImageBegin ImageData ImageEnd ImageStored
         Stage Staged TreeChange TreeEnd TreeApplied Chunks Flows Restore Prepared Commit Committed
         Finish Finished Abort Aborted Resume Resumed LogData Anchor AnchorOffer AnchorReady Rehome
         Rehomed AskTurn TurnAnswer ForwardEnd ForwardEnded LedPast Expect
         Settings Facts EndFlows FlowsEnded NetworkState AskSilent Silent TryPaths PathsReady AskPaths
         PathsTried EndPaths CountFlows AskCounts FlowCounts Volumes VolumeChange VolumeEnd
         CountPackets AskPassage Passage]
    ))
}

fn main() -> ExitCode {
    match act(&Cli::parse().action) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("netmig-hostile-peer: {}", chain(cause.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn act(action: &Action) -> Result<String, Cause> {
    let trust = Trust::open(STATE.as_ref())?;
    match action {
        Action::Whoami => Ok(serde_json::to_string(&trust.identity.fingerprint().host())?),
        Action::Say => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            let script = serde_json::from_str(&text)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(serde_json::to_string(&runtime.block_on(say(&trust, script))?)?)
        }
        Action::Answer { script } => {
            let answers = serde_json::from_str(script)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(answer(&trust, &answers))
        }
    }
}

/// Answers one connection after another as a destination; never returns but for an error.
async fn answer(trust: &Trust, answers: &Answers) -> Result<String, Cause> {
    let servers = Servers::new(trust)?;
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", answers.port)).await?;
    eprintln!("listening");
    loop {
        let (stream, _) = listener.accept().await?;
        let (_, mut connection) = Connection::accept(&servers, stream).await?;
        while let Ok(message) = connection.receive(Duration::from_secs(30)).await {
            let text = || PeerText::raw(answers.text.clone());
            let said = match message {
                Message::Hello(_) => {
                    let (name, software) = (text(), text());
                    let own = Introduction { name, software, ..Introduction::default() };
                    Message::Hello(Hello::from(&own))
                }
                Message::Offer(_) => match answers.role {
                    Role::Refuse => Message::Verdict(Verdict {
                        blockers: vec![Blocker { code: text(), message: text() }],
                        image_missing: false,
                        addresses: Vec::new(),
                    }),
                    Role::Fail => {
                        Message::Failure(Failure { code: FailureCode::Step, message: text() })
                    }
                },
                _ => continue,
            };
            connection.send(&said).await?;
        }
    }
}

async fn say(trust: &Trust, script: Script) -> Result<Vec<Vec<Answer>>, Cause> {
    let patience = Duration::from_millis(script.patience_ms);
    let mut all = Vec::new();
    for lines in script.conversations {
        all.push(converse(trust, &script.to, patience, lines).await?);
    }
    Ok(all)
}

/// Holds one conversation until its last line, or until the other side closes the connection.
async fn converse(
    trust: &Trust,
    to: &Destination,
    patience: Duration,
    lines: Vec<Line>,
) -> Result<Vec<Answer>, Cause> {
    let mut connection = Connection::dial(trust, to).await?;
    if !matches!(lines.first(), Some(Line::Greeting { greet: false })) {
        let own = Introduction::of_this_agent(&host::name(), "hostile");
        connection.introduce(&own, patience).await?;
    }
    let mut answers = Vec::new();
    let mut tunnel = None;
    for line in lines {
        let (message, at_once) = match line {
            Line::Greeting { .. } | Line::Tunnel { tunnel: false } => continue,
            Line::Tunnel { tunnel: true } => {
                tunnel = Some(connect(&mut connection, patience).await?);
                continue;
            }
            Line::Pause { pause_ms } => {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                continue;
            }
            Line::Message { send, body, at_once } => (message(&send, body)?, at_once),
            Line::RawKind { tunnel_of_kind } => {
                let transport = Transport::WireGuard { public_key: [9; 32], port: 40_000 };
                let end = TunnelEnd { transport, kind: PeerText::raw(tunnel_of_kind) };
                (Message::TunnelOffer(end.into_wire()), false)
            }
            Line::Offer { offer, migration, anchors } => {
                let offer = offer::describe(&offer, migration, anchors).await?;
                (Message::Offer(Box::new(offer.into_wire())), false)
            }
        };
        let sent = message.name().to_owned();
        if let Err(error) = connection.send(&message).await {
            answers.push(Answer::of(sent, Err(error)));
            break;
        }
        if at_once {
            continue;
        }
        let answer = Answer::of(sent, connection.receive(patience).await);
        let is_over = answer.answer == "closed";
        answers.push(answer);
        if is_over {
            break;
        }
    }
    if let Some(peer) = tunnel {
        tunnels::release(&Directories::default(), peer, None).await?;
    }
    Ok(answers)
}

/// Sets up both ends of a tunnel. Returns the number of the peer.
async fn connect(connection: &mut Connection, patience: Duration) -> Result<PeerNumber, Cause> {
    let directories = Directories::default();
    directories.create()?;
    let (peer, address) =
        (tunnels::allot(&directories, connection.host()).await?, connection.peer().ip());
    let _lock = SteeringLock::take(&directories.run).await?;
    let end = tunnels::prepare(peer, address, false).await?;
    connection.send(&Message::TunnelOffer(end.into_wire())).await?;
    let answer = TunnelEnd::from_wire(expect!(connection, patience, TunnelAnswer)?)?;
    tunnels::complete(peer, address, &answer).await?;
    tunnel::establish(peer).await?;
    Ok(peer)
}

impl Answer {
    fn of(sent: String, heard: Result<Message, wire::Error>) -> Self {
        let (answer, text) = match heard {
            Ok(message) => (message.name().to_owned(), format!("{message:?}")),
            Err(wire::Error::Failure { failure, .. }) => {
                ("Failure".to_owned(), format!("{:?}: {}", failure.code, failure.message))
            }
            Err(error @ wire::Error::Deadline { .. }) => ("silence".to_owned(), chain(&error)),
            Err(error) => ("closed".to_owned(), chain(&error)),
        };
        Self { sent, answer, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_messages_offers_and_pauses() {
        let script: Script = serde_json::from_str(
            r#"{"to": "b", "patience_ms": 10, "conversations": [[
                {"greet": false},
                {"send": "Commit", "body": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]},
                {"send": "Finish", "at_once": true},
                {"pause_ms": 5},
                {"offer": "evil", "migration": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}]]}"#,
        )
        .unwrap();
        let lines = &script.conversations[0];
        assert!(matches!(lines[0], Line::Greeting { greet: false }));
        assert!(
            matches!(&lines[1], Line::Message { send, at_once: false, .. } if send == "Commit")
        );
        assert!(matches!(lines[2], Line::Message { at_once: true, .. }));
        assert!(matches!(lines[3], Line::Pause { pause_ms: 5 }));
        assert!(matches!(&lines[4], Line::Offer { anchors, .. } if anchors.is_empty()));
    }

    #[test]
    fn messages_are_found_by_name_with_the_protocols_own_body() {
        let id = serde_json::json!(vec![7; 16]);
        let commit = message("Commit", id).unwrap();
        assert!(matches!(commit, Message::Commit(MigrationId(id)) if id == [7; 16]));
        let end = serde_json::json!({"kind": "wireguard",
            "transport": {"WireGuard": {"public_key": vec![1; 32], "port": 51820}}});
        assert!(matches!(message("TunnelOffer", end), Ok(Message::TunnelOffer(_))));
        assert!(message("Bribe", Value::Null).is_err());
    }
}
