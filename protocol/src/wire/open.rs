//! How a connection begins: TCP, TLS, preamble.

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

use super::version::{SHORT_PREAMBLE, Versions};
use super::{Connection, Error, PIECE, VERSION};
use crate::message::FRAME_LIMIT;
use crate::trust::{self, Expected, Fingerprint, Purpose, Refused, Servers, Token, Trust};
use state::deadline;
use state::id::HostId;
use state::peer_address::{DEFAULT_PORT, Destination};

/// Bytes that are taken from the kernel at once. Somebody who has not shown who he is costs this host
/// little more.
const READ: usize = 32 * 1024;
/// Bytes that TLS may keep for the kernel: one frame with a piece of a stream is one write.
const WRITE: usize = 2 * PIECE;
/// Hosts that are being paired have little to say: a secret, a name, a sentence.
const JOIN_FRAME_LIMIT: usize = 1024;
/// Certificates name nobody; the client's settings keep this one from being sent.
const NAME: &str = "netmig";

impl Connection {
    /// Connects to a paired host.
    ///
    /// A destination that is the name of a peer, or the address that it was paired with, has to be
    /// that very host; under any other name it may be any host that containers may be moved to.
    ///
    /// # Errors
    /// Nobody answers there, or not an agent of that host that accepts this one.
    pub async fn dial(trust: &Trust, destination: &Destination) -> Result<Self, Error> {
        let (address, expected) = whom(trust, destination)?;
        Self::dial_expected(trust, &address, Purpose::Migrate, expected).await
    }

    /// Connects to a paired host, in whatever role, at an address that it is known to have.
    ///
    /// # Errors
    /// Nobody answers there, or another host, or this host is not paired with it.
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

    /// Connects to the host that has given out a token, to be paired with it.
    ///
    /// # Errors
    /// Nobody answers there, or another host.
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
                // A server of another version refuses by name as well.
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

    /// Takes a connection that somebody has made to this host. Until it has shown who it is, it costs
    /// this host a few kilobytes and [`deadline::CONNECT`].
    ///
    /// # Errors
    /// It is not an agent of a paired host, and did not come to be paired.
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
        // Both sides ask for a certificate, so there is one.
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
            local,
            fingerprint,
            version,
            capabilities,
            frame_limit,
            scratch,
            torn: false,
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

/// Where to dial, and whom to expect there.
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

/// Resolves and connects.
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

/// Addresses of both ends of a fresh connection, which gets no delay.
fn prepare(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr), Error> {
    let peer = stream
        .peer_addr()
        .map_err(|source| Error::Connect { address: "a peer that has gone".to_owned(), source })?;
    let io_error = |source| Error::Io { peer, source };
    let local = stream.local_addr().map_err(io_error)?;
    // A socket for both families shows IPv4 addresses inside IPv6 ones.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (peer, local) = (plain(peer), plain(local));
    // Every message is one write; waiting for more to send would only add latency.
    stream.set_nodelay(true).map_err(io_error)?;
    notice_silence(stream).map_err(|errno| io_error(errno.into()))?;
    Ok((peer, local))
}

/// What a client makes of an error before the server's preamble was heard.
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
        // A server of another kind often closes at once: that, too, is "not an agent".
        None => Error::NotAnAgent { peer },
    }
}

/// What a server makes of an error of the handshake.
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

/// Our own verifier's reason.
fn refused(error: &rustls::Error) -> Option<&Refused> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref()
        }
        _ => None,
    }
}

/// Lets the kernel find out that a far end cannot be reached any more, whoever's turn it is: after
/// [`deadline::SILENCE`] the connection fails (tcp(7), `TCP_KEEPIDLE`, `TCP_USER_TIMEOUT`). A far end
/// that is only busy, or stopped, answers by its kernel.
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
