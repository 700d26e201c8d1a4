mod bulk;

use tokio::net::TcpListener;

use super::*;
use crate::message::{FRAME_LIMIT, Failure, Introduction, MigrationId};
use crate::trust::{Purpose, Servers, Token, Trust, invitation};
use state::peer_address::Destination;
use state::private_file;

const SECOND: Duration = Duration::from_secs(1);

/// A host with a state directory of its own.
struct Host {
    trust: Trust,
    state: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { trust: Trust::open(state.path()).unwrap(), state }
    }

    fn lets_in(&self, other: &Self) {
        let lock = private_file::lock(self.state.path()).unwrap();
        self.trust.peers.add_source(&lock, other.trust.identity.fingerprint(), "a").unwrap();
    }

    fn may_move_to(&self, other: &Self, address: &Destination) {
        let lock = private_file::lock(self.state.path()).unwrap();
        let print = other.trust.identity.fingerprint();
        self.trust.peers.add_destination(&lock, print, "b", address.clone()).unwrap();
    }
}

async fn listen() -> (TcpListener, Destination) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, address)
}

type Accepted = Result<(Purpose, Connection), Error>;

async fn accept(listener: &TcpListener, host: &Host) -> Accepted {
    let stream = listener.accept().await.unwrap().0;
    Connection::accept(&Servers::new(&host.trust).unwrap(), stream).await
}

/// What becomes of a connection between two hosts that were prepared by `pair`.
async fn meet(pair: impl Fn(&Host, &Host, &Destination)) -> (Result<Connection, Error>, Accepted) {
    let (a, b) = (Host::new(), Host::new());
    let (listener, address) = listen().await;
    pair(&a, &b, &address);
    tokio::join!(Connection::dial(&a.trust, &address), accept(&listener, &b))
}

/// Two paired hosts, connected: the source and the destination.
async fn talking() -> (Connection, Connection) {
    let (a, b) = meet(|a, b, address| {
        a.may_move_to(b, address);
        b.lets_in(a);
    })
    .await;
    (a.unwrap(), b.unwrap().1)
}

/// What a client makes of a server that sends these bytes and closes.
async fn dial_to(answer: &'static [u8]) -> Error {
    let a = Host::new();
    let (listener, address) = listen().await;
    let server = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(answer).await.unwrap();
    };
    tokio::join!(Connection::dial(&a.trust, &address), server).0.unwrap_err()
}

/// What a server makes of a client that sends these bytes and waits.
async fn knock_with(bytes: &'static [u8]) -> (Error, Vec<u8>) {
    let b = Host::new();
    let (listener, address) = listen().await;
    let client = async {
        let mut stream = TcpStream::connect(address.to_string()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // The server may close while there is something that it has not read.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let (accepted, answer) = tokio::join!(accept(&listener, &b), client);
    (accepted.unwrap_err(), answer)
}

#[tokio::test]
async fn two_agents_talk() {
    let (mut a, mut b) = talking().await;
    a.send(&Message::Commit(MigrationId([1; 16]))).await.unwrap();
    let got = expect!(b, SECOND, Commit).unwrap();
    assert_eq!(got, MigrationId([1; 16]));
    assert_ne!(a.fingerprint(), b.fingerprint());
    assert_eq!(a.host(), a.fingerprint().host());
}

#[tokio::test]
async fn a_client_that_is_not_paired_refuses_and_says_what_to_do() {
    let (client, server) = meet(|_, _, _| {}).await;
    let error = client.unwrap_err();
    assert!(matches!(error, Error::NotPaired { .. }), "{error}");
    assert!(error.to_string().contains("agent-client join TOKEN"), "{error}");
    assert!(matches!(server.unwrap_err(), Error::Rejected { .. }));
}

#[tokio::test]
async fn a_server_that_is_not_paired_refuses_and_names_the_stranger() {
    let (client, server) = meet(|a, b, address| a.may_move_to(b, address)).await;
    let Error::NotKnown { ours, .. } = client.unwrap_err() else { panic!() };
    let Error::Stranger { shown, .. } = server.unwrap_err() else { panic!() };
    assert_eq!(ours, shown);
    // A destination may be spoken to; what it may do is told by its messages.
    let (_, server) = meet(|a, b, address| {
        a.may_move_to(b, address);
        b.may_move_to(a, address);
    })
    .await;
    assert_eq!(server.unwrap().0, Purpose::Migrate);
}

#[tokio::test]
async fn a_host_is_found_by_its_identity_in_either_role() {
    let (a, b) = (Host::new(), Host::new());
    let (listener, address) = listen().await;
    a.lets_in(&b);
    b.may_move_to(&a, &address);
    let host = b.trust.identity.fingerprint().host();
    let dial = Connection::dial_host(&a.trust, &address, host);
    let (client, server) = tokio::join!(dial, accept(&listener, &b));
    assert_eq!(client.unwrap().host(), host);
    assert!(server.is_ok());

    let other = Host::new().trust.identity.fingerprint().host();
    let dial = Connection::dial_host(&a.trust, &address, other);
    let (client, _) = tokio::join!(dial, accept(&listener, &b));
    assert!(matches!(client.unwrap_err(), Error::NotPaired { .. }));
}

#[tokio::test]
async fn another_host_at_the_address_of_a_peer_is_refused_loudly() {
    let other = Host::new();
    let (client, server) = meet(|a, b, address| {
        a.may_move_to(&other, address);
        b.lets_in(a);
    })
    .await;
    let error = client.unwrap_err();
    let Error::OtherHost { expected, shown, .. } = &error else { panic!("{error}") };
    assert_eq!(*expected, other.trust.identity.fingerprint());
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&shown.to_string()), "{text}");
    assert!(matches!(server.unwrap_err(), Error::Rejected { .. }));
}

#[tokio::test]
async fn a_host_does_not_talk_to_itself() {
    let a = Host::new();
    let (listener, address) = listen().await;
    a.may_move_to(&a, &address);
    let other: Destination = format!("localhost:{}", address.port).parse().unwrap();
    let (client, _) = tokio::join!(Connection::dial(&a.trust, &other), accept(&listener, &a));
    assert!(matches!(client.unwrap_err(), Error::SameHost { .. }));
}

#[tokio::test]
async fn a_peer_is_found_by_its_name() {
    let (a, b) = (Host::new(), Host::new());
    let (listener, address) = listen().await;
    a.may_move_to(&b, &address);
    b.lets_in(&a);
    let named: Destination = "b".parse().unwrap();
    let (client, server) = tokio::join!(Connection::dial(&a.trust, &named), accept(&listener, &b));
    assert_eq!(client.unwrap().peer().to_string(), address.to_string());
    assert_eq!(server.unwrap().0, Purpose::Migrate);
}

#[tokio::test]
async fn whoever_has_a_token_can_be_heard_but_not_say_much() {
    let (a, b) = (Host::new(), Host::new());
    let (listener, address) = listen().await;
    let expires = crate::trust::Timestamp::now().after(SECOND);
    let secret = invitation::invite(b.state.path(), expires, 1).unwrap();
    let fingerprint = b.trust.identity.fingerprint();
    let token = Token { address, fingerprint, secret };
    let (client, server) =
        tokio::join!(Connection::dial_to_join(&a.trust, &token), accept(&listener, &b));
    let (mut client, (purpose, mut server)) = (client.unwrap(), server.unwrap());
    assert_eq!(purpose, Purpose::Join);
    assert_eq!(server.fingerprint(), a.trust.identity.fingerprint());
    client.stream.write_all(&2000u32.to_be_bytes()).await.unwrap();
    client.stream.flush().await.unwrap();
    let refused = server.receive(SECOND).await;
    assert!(matches!(refused, Err(Error::FrameLength { length: 2000, .. })));
}

#[tokio::test]
async fn other_protocols_and_versions_are_named() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"NETMIG\x00\x06\x00\x06", b""] {
        let error = dial_to(answer).await;
        assert!(matches!(error, Error::NotAnAgent { .. }), "{error:?}");
    }

    let ours = *b"NETMIG\x00\x06\x00\x06";
    let (client, heard) = dial_to_version(b"NETMIG\x00\x05").await;
    let refused = client.unwrap_err();
    assert!(matches!(refused, Error::Version { oldest: 5, newest: 5, .. }), "{refused}");
    assert!(refused.to_string().contains("speaks version 5 of the protocol"), "{refused}");
    assert_eq!(heard, ours, "the other one is told as well");
    let (client, heard) = dial_to_version(b"NETMIG\x00\x09\x00\x08").await;
    let refused = client.unwrap_err();
    assert!(matches!(refused, Error::Version { oldest: 8, newest: 9, .. }), "{refused}");
    assert!(refused.to_string().contains("speaks versions 8 to 9"), "{refused}");
    assert_eq!(heard, ours);
}

/// What a client makes of a server that sends this preamble, and the preamble that the server receives.
async fn dial_to_version(preamble: &'static [u8]) -> (Result<Connection, Error>, [u8; 10]) {
    let (a, b) = (Host::new(), Host::new());
    let (listener, address) = listen().await;
    a.may_move_to(&b, &address);
    b.lets_in(&a);
    let server = async {
        let stream = listener.accept().await.unwrap().0;
        let config = Servers::new(&b.trust).unwrap().get(Purpose::Migrate);
        let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
        stream.write_all(preamble).await.unwrap();
        stream.flush().await.unwrap();
        let mut theirs = [0; 10];
        stream.read_exact(&mut theirs).await.unwrap();
        theirs
    };
    tokio::join!(Connection::dial(&a.trust, &address), server)
}

#[tokio::test]
async fn a_later_version_is_spoken_to_in_ours() {
    let (client, _) = dial_to_version(b"NETMIG\x00\x07\x00\x06").await;
    assert_eq!(client.unwrap().version(), VERSION);
}

#[tokio::test]
async fn capabilities_are_those_that_the_peer_has_named() {
    let (mut a, mut b) = talking().await;
    let own = Introduction::of_this_agent("a", "1");
    let later = Introduction {
        capabilities: ["unheard-of".to_owned()].into(),
        ..Introduction::of_this_agent("b", "2")
    };
    let (there, here) =
        tokio::join!(a.introduce(&own, SECOND), b.answer_introduction(&later, SECOND));
    assert_eq!((there.unwrap(), here.unwrap()), (later, own));
    assert!(a.has("unheard-of") && !b.has("unheard-of"));
}

#[tokio::test]
async fn plain_text_gets_an_alert_and_nothing_else() {
    for bytes in [&b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"[..], b"NETMIG\x00\x01", &[0; 64]] {
        let (error, answer) = knock_with(bytes).await;
        assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
        // Content type 21: an alert (RFC 8446, 5.1).
        assert_eq!((answer.first(), answer.len()), (Some(&21), 7), "{answer:?}");
    }
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
    let (mut a, mut b) = talking().await;
    b.stream.write_all(b"\xff\xff\xff\xff").await.unwrap();
    b.stream.flush().await.unwrap();
    let refused = a.receive(SECOND).await;
    assert!(matches!(refused, Err(Error::FrameLength { length: 0xffff_ffff, .. })));
}

#[tokio::test]
async fn a_silent_peer_runs_into_the_deadline() {
    let (mut a, _b) = talking().await;
    let late = a.receive(Duration::from_millis(20)).await;
    assert!(matches!(late, Err(Error::Deadline { .. })));
}

#[tokio::test]
async fn nothing_follows_a_frame_that_was_not_finished() {
    let (mut a, mut b) = talking().await;
    let large = Message::ImageData(crate::message::Data(vec![0; FRAME_LIMIT - 16]));
    // Nobody reads, so it is given up half-way, as by a cancellation.
    while timeout(Duration::from_millis(50), a.send(&large)).await.is_ok() {}
    let abort = Message::Abort(MigrationId([1; 16]));
    assert!(matches!(a.send(&abort).await, Err(Error::Closed { .. })));
    drop(a);
    while let Ok(message) = b.receive(Duration::from_secs(1)).await {
        assert_eq!(message.name(), "ImageData");
    }
}

#[tokio::test]
async fn a_closed_connection_tells_why_if_the_far_end_did() {
    let (mut a, mut b) = talking().await;
    let failure =
        Failure { code: crate::message::FailureCode::Step, message: "the disk is full".into() };
    b.send(&Message::Failure(failure)).await.unwrap();
    drop(b);
    let error = loop {
        if let Err(e) = a.send(&Message::Commit(MigrationId([1; 16]))).await {
            break e;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(error.to_string(), "127.0.0.1 says: the disk is full");
}

#[tokio::test]
async fn failures_arrive_with_their_reason() {
    let (mut a, mut b) = talking().await;
    let failure =
        Failure { code: crate::message::FailureCode::Conflict, message: "port 80 is taken".into() };
    a.send(&Message::Failure(failure)).await.unwrap();
    let error = expect!(b, Duration::from_secs(1), Verdict).unwrap_err();
    assert_eq!(error.to_string(), "127.0.0.1 says: port 80 is taken");
}
