//! The beginning of a connection: TCP, TLS, preamble.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use rustls::{AlertDescription, CertificateError, OtherError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use super::bulk::Bulk;
use super::version::{SHORT_PREAMBLE, Versions};
use super::{Connection, Error, PIECE, VERSION};
use crate::message::FRAME_LIMIT;
use crate::trust::{self, Expected, Fingerprint, Purpose, Refused, Servers, Token, Trust};
use state::deadline;
use state::id::HostId;
use state::peer_address::{DEFAULT_PORT, Destination};

/// Number of bytes that are read from the kernel at once. A client that is not authenticated costs this host
/// little more memory.
const READ: usize = 32 * 1024;
/// Number of bytes that TLS may buffer for sending: a frame with a piece of a stream is one write.
const WRITE: usize = 2 * PIECE;
/// Maximum size of a frame during pairing, in bytes: such frames hold a secret, a name, a sentence.
const JOIN_FRAME_LIMIT: usize = 1024;
/// The server name that rustls wants. It is not sent, and certificates have no names.
const NAME: &str = "netmig";

impl Connection {
    /// Connects to a paired host.
    ///
    /// If the destination is the name of a peer, or the address with which a peer was paired, the host there has to
    /// be that peer. Otherwise it may be any host to which containers may be moved.
    ///
    /// # Errors
    /// [`Error`], if no agent answers there, it is that of another host, it does not accept this host, or it speaks
    /// no version that this agent speaks.
    pub async fn dial(trust: &Trust, destination: &Destination) -> Result<Self, Error> {
        let (address, expected) = whom(trust, destination)?;
        let mut connection =
            Self::dial_expected(trust, &address, Purpose::Migrate, expected).await?;
        connection.called.clone_from(&destination.host);
        Ok(connection)
    }

    /// Connects to a known host, paired in either role, at a given address.
    ///
    /// # Errors
    /// [`Error::NotPaired`], if another host answers there or this host is not paired with it; otherwise as
    /// [`Connection::dial`].
    pub async fn dial_host(
        trust: &Trust,
        address: &Destination,
        host: HostId,
    ) -> Result<Self, Error> {
        let peers = trust.peers.all().map_err(|e| Error::Trust(e.into()))?;
        let known = peers.iter().map(|peer| peer.fingerprint).find(|print| print.host() == host);
        let expected =
            known.map_or_else(|| Expected::AnyDestination(trust.peers.clone()), Expected::Exactly);
        let connection = Self::dial_expected(trust, address, Purpose::Migrate, expected).await?;
        let (peer, shown) = (connection.peer, connection.fingerprint);
        if connection.host() == host {
            Ok(connection)
        } else {
            Err(Error::NotPaired { peer, shown })
        }
    }

    /// Connects to the host that has issued a token, to be paired with it.
    ///
    /// # Errors
    /// [`Error::OtherHost`], if another host answers there; otherwise as [`Connection::dial`].
    pub async fn dial_to_join(trust: &Trust, token: &Token) -> Result<Self, Error> {
        let expected = Expected::Exactly(token.fingerprint);
        Self::dial_expected(trust, &token.address, Purpose::Join, expected).await
    }

    async fn dial_expected(
        trust: &Trust,
        destination: &Destination,
        purpose: Purpose,
        expected: Expected,
    ) -> Result<Self, Error> {
        let config = trust::client(trust, purpose, expected).map_err(|e| Error::Trust(e.into()))?;
        let stream = connect(destination).await?;
        let (peer, local) = prepare(&stream)?;
        let ours = trust.identity.fingerprint();
        let begin = async {
            let name = ServerName::try_from(NAME).map_err(|e| Error::Trust(e.into()))?;
            let stream = TlsConnector::from(config)
                .connect_with(name, BufReader::with_capacity(READ, stream), |session| {
                    session.set_buffer_limit(Some(WRITE));
                })
                .await
                .map_err(|e| client_error(peer, ours, e))?;
            let mut connection = Self::over(stream.into(), peer, local, purpose)?;
            let heard = connection.hear_preamble().await;
            match heard {
                // So that a server of another version can name this one's in its refusal.
                Ok(()) | Err(Error::Version { .. }) => connection.say_preamble().await?,
                Err(_) => {}
            }
            match heard {
                Ok(()) => Ok(connection),
                Err(Error::Io { source, .. }) => Err(client_error(peer, ours, source)),
                Err(other) => Err(other),
            }
        };
        let limit = deadline::CONNECT;
        let late = Error::Deadline { peer, what: "introduce itself", limit };
        timeout(limit, begin).await.unwrap_or(Err(late))
    }

    /// Accepts a client's connection. Until the client is authenticated, it costs this host a few kilobytes for at
    /// most [`deadline::CONNECT`].
    ///
    /// # Errors
    /// [`Error`], if the client is not the agent of a paired host and does not ask for pairing, or it speaks no version
    /// that this agent speaks.
    pub async fn accept(servers: &Servers, stream: TcpStream) -> Result<(Purpose, Self), Error> {
        let (peer, local) = prepare(&stream)?;
        let begin = async {
            let stream = BufReader::with_capacity(READ, stream);
            let failed = |source| server_error(peer, source);
            let start =
                LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(failed)?;
            let purpose = Purpose::of(&start.client_hello());
            let mut stream = start.into_stream(servers.get(purpose)).await.map_err(failed)?;
            stream.get_mut().1.set_buffer_limit(Some(WRITE));
            let mut connection = Self::over(stream.into(), peer, local, purpose)?;
            connection.say_preamble().await?;
            connection.hear_preamble().await?;
            Ok((purpose, connection))
        };
        let limit = deadline::CONNECT;
        let late = Error::Deadline { peer, what: "show who it is", limit };
        timeout(limit, begin).await.unwrap_or(Err(late))
    }

    fn over(
        stream: TlsStream<BufReader<TcpStream>>,
        peer: SocketAddr,
        local: SocketAddr,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        // Both sides require a certificate, so there is one.
        let fingerprint = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[CertificateDer<'_>]>::first)
            .map(Fingerprint::of)
            .ok_or(Error::NotAnAgent { peer })?;
        let frame_limit = match purpose {
            Purpose::Migrate => FRAME_LIMIT,
            Purpose::Join => JOIN_FRAME_LIMIT,
        };
        let scratch = Vec::new();
        let (version, capabilities) = (VERSION, BTreeSet::new());
        Ok(Self {
            stream,
            peer,
            called: peer.ip().to_string(),
            local,
            fingerprint,
            version,
            capabilities,
            frame_limit,
            scratch,
            torn: false,
            bulk: Bulk::default(),
            outgoing: None,
            incoming: None,
        })
    }

    async fn say_preamble(&mut self) -> Result<(), Error> {
        let ours = Versions::OURS.preamble();
        let write = async {
            self.stream.write_all(&ours).await?;
            self.stream.flush().await
        };
        write.await.map_err(|e| self.broken(e))
    }

    async fn hear_preamble(&mut self) -> Result<(), Error> {
        let peer = self.peer;
        let failed = |source| Error::Io { peer, source };
        let mut short = [0; SHORT_PREAMBLE];
        self.stream.read_exact(&mut short).await.map_err(failed)?;
        let mut theirs = Versions::of_short(short).ok_or(Error::NotAnAgent { peer })?;
        if theirs.has_oldest() {
            let mut oldest = [0; 2];
            self.stream.read_exact(&mut oldest).await.map_err(failed)?;
            theirs.oldest = u16::from_be_bytes(oldest);
        }
        let Versions { oldest, newest } = theirs;
        self.version =
            Versions::OURS.agree(theirs).ok_or(Error::Version { peer, oldest, newest })?;
        Ok(())
    }
}

/// Returns the address to dial and the host to expect there.
fn whom(trust: &Trust, destination: &Destination) -> Result<(Destination, Expected), Error> {
    let peers = trust.peers.all().map_err(|e| Error::Trust(e.into()))?;
    let known = |matches: &dyn Fn(&str, &Destination) -> bool| {
        peers.iter().find_map(|peer| {
            let address = peer.destination.as_ref()?;
            matches(peer.name.as_str(), address)
                .then(|| (address.clone(), Expected::Exactly(peer.fingerprint)))
        })
    };
    let by_name = known(&|name, _| name == destination.host);
    if let Some((mut address, expected)) = by_name {
        if destination.port != DEFAULT_PORT {
            address.port = destination.port;
        }
        return Ok((address, expected));
    }
    Ok(known(&|_, address| address == destination)
        .unwrap_or_else(|| (destination.clone(), Expected::AnyDestination(trust.peers.clone()))))
}

/// Resolves a destination's name and connects to it.
async fn connect(destination: &Destination) -> Result<TcpStream, Error> {
    let Destination { host, port } = destination;
    let lookup = tokio::net::lookup_host((host.as_str(), *port));
    let addresses: Vec<SocketAddr> = match timeout(deadline::CONNECT, lookup).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(source)) => return Err(Error::Resolve { host: host.clone(), source }),
        Err(_) => {
            let source = io::ErrorKind::TimedOut.into();
            return Err(Error::Resolve { host: host.clone(), source });
        }
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match timeout(deadline::CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => last = e,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Error::Connect { address: destination.to_string(), source: last })
}

/// Prepares a new connection and returns the addresses of its two ends.
fn prepare(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr), Error> {
    let peer = stream
        .peer_addr()
        .map_err(|source| Error::Connect { address: "a peer that has gone".to_owned(), source })?;
    let io_error = |source| Error::Io { peer, source };
    let local = stream.local_addr().map_err(io_error)?;
    // A socket for both families reports IPv4 addresses as IPv6 addresses.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (peer, local) = (plain(peer), plain(local));
    // Every message is one write; Nagle's algorithm would only add latency.
    stream.set_nodelay(true).map_err(io_error)?;
    notice_silence(stream).map_err(|errno| io_error(errno.into()))?;
    Ok((peer, local))
}

/// Returns the client's error for a failure before the server's preamble was received.
fn client_error(peer: SocketAddr, ours: Fingerprint, error: io::Error) -> Error {
    match tls_error(&error) {
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateUnknown | AlertDescription::AccessDenied,
        )) => Error::NotKnown { peer, ours },
        Some(tls) => match refused(tls) {
            Some(Refused::Stranger(shown)) => Error::NotPaired { peer, shown: *shown },
            Some(Refused::Another { expected, shown }) => {
                Error::OtherHost { peer, expected: *expected, shown: *shown }
            }
            Some(Refused::Ourselves) => Error::SameHost { peer },
            Some(Refused::Peers(_)) => Error::Trust(Box::new(error)),
            None => Error::NotAnAgent { peer },
        },
        // A server of another kind often closes at once: that is "not an agent" as well.
        None => Error::NotAnAgent { peer },
    }
}

/// Returns the server's error for a failed handshake.
fn server_error(peer: SocketAddr, error: io::Error) -> Error {
    match tls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => {
            Error::Rejected { peer, alert: format!("{alert:?}") }
        }
        Some(tls) => match refused(tls) {
            Some(Refused::Stranger(shown)) => Error::Stranger { peer, shown: *shown },
            Some(Refused::Ourselves) => Error::SameHost { peer },
            Some(Refused::Peers(_)) => Error::Trust(Box::new(error)),
            Some(Refused::Another { .. }) | None => Error::Handshake { peer, source: error },
        },
        None if error.kind() == io::ErrorKind::UnexpectedEof => Error::Closed { peer },
        None => Error::Io { peer, source: error },
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Returns the reason that this agent's verifier gave.
fn refused(error: &rustls::Error) -> Option<&Refused> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref()
        }
        _ => None,
    }
}

/// Has the kernel detect that the other host cannot be reached any more: after [`deadline::SILENCE`] the connection
/// fails (tcp(7), `TCP_KEEPIDLE`, `TCP_USER_TIMEOUT`). The kernel of a host answers even if its agent is busy or
/// stopped.
fn notice_silence(stream: &TcpStream) -> nix::Result<()> {
    let silence = deadline::SILENCE.as_secs();
    let probes = 4;
    let every = u32::try_from(silence / (u64::from(probes) + 2)).unwrap_or(5).max(1);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &(2 * every))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &every)?;
    setsockopt(stream, sockopt::TcpKeepCount, &probes)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &u32::try_from(silence * 1000).unwrap_or(u32::MAX))
}
