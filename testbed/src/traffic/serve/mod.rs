//! The server: TCP and UDP echo, bulk transfers, a control line, memory that can be checked, and a log file. It has
//! one thread and one epoll instance, so that tens of thousands of connections cost little.

mod checked_state;
mod connection;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::client_report::ServerStats;
use checked_state::{AppendLog, Memory};
use connection::{Connection, Service, Step};

/// The backlog of listening sockets. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
const EVENTS: usize = 256;

const ECHO: u64 = u64::MAX;
const BULK: u64 = u64::MAX - 1;
const UDP: u64 = u64::MAX - 2;
const LOG: u64 = u64::MAX - 3;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct ServePlan {
    /// TCP port of the echo service.
    pub port: u16,
    /// UDP port of the echo service.
    pub udp_port: u16,
    /// TCP port of bulk transfers and control lines.
    pub bulk_port: u16,
    /// Receive buffer to ask for on the UDP socket, in bytes; `None`: the kernel's default.
    pub udp_buffer: Option<usize>,
    /// Mebibytes of memory to fill with a pattern.
    pub memory_mib: usize,
    /// Whether each echo over TCP looks at a page of that memory, and ends the connection if it has changed.
    pub touches_memory: bool,
    /// File to which a numbered line is appended at every `log_interval`.
    pub log: Option<PathBuf>,
    /// Time between two lines of the log.
    pub log_interval: Duration,
}

struct Server {
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    stats: ServerStats,
    memory: Memory,
}

/// Serves until the process is killed. Calls `ready` when all ports are open.
///
/// # Errors
/// A port is taken, the log cannot be opened, or the kernel refused a descriptor.
pub fn serve(plan: &ServePlan, ready: impl FnOnce()) -> io::Result<()> {
    let memory = Memory::fill(plan.memory_mib, plan.touches_memory);
    let echo = listen(plan.port)?;
    let bulk = listen(plan.bulk_port)?;
    let udp = open_udp(plan.udp_port, plan.udp_buffer)?;
    let mut log = plan.log.as_deref().map(AppendLog::open).transpose()?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&echo, EpollEvent::new(EpollFlags::EPOLLIN, ECHO))?;
    epoll.add(&bulk, EpollEvent::new(EpollFlags::EPOLLIN, BULK))?;
    epoll.add(&udp, EpollEvent::new(EpollFlags::EPOLLIN, UDP))?;
    if log.is_some() {
        let interval = TimeSpec::from_duration(plan.log_interval);
        timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty())?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, LOG))?;
    }
    let mut server = Server {
        epoll,
        connections: Vec::new(),
        free: Vec::new(),
        stats: ServerStats::default(),
        memory,
    };
    ready();
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data() {
                ECHO => server.accept(&echo, Service::Echo)?,
                BULK => server.accept(&bulk, Service::Command)?,
                UDP => server.echo_datagrams(&udp)?,
                LOG => {
                    let _ = timer.wait();
                    if let Some(log) = &mut log {
                        server.stats.log_lines = log.append()?;
                    }
                }
                index => server.step(index as usize, event.events()),
            }
        }
    }
}

impl Server {
    fn accept(&mut self, listener: &TcpListener, service: Service) -> io::Result<()> {
        // A bounded number at a time, so that other connections are served meanwhile.
        for _ in 0..64 {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            self.connections[index] = Some(Connection::new(stream, service));
            self.stats.accepted += 1;
            self.stats.open += 1;
        }
        Ok(())
    }

    fn step(&mut self, index: usize, flags: EpollFlags) {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        match connection.step(flags, &mut self.stats, &self.memory) {
            Step::Keep => {}
            Step::Want(flags) => {
                let mut event = EpollEvent::new(flags, index as u64);
                if self.epoll.modify(connection.descriptor(), &mut event).is_err() {
                    self.close(index);
                }
            }
            Step::Close => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        self.connections[index] = None;
        self.free.push(index);
        self.stats.open -= 1;
    }

    fn echo_datagrams(&mut self, udp: &UdpSocket) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        for _ in 0..256 {
            match udp.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    self.stats.udp_received += 1;
                    if send_datagram(udp, &buffer[..length], from)? {
                        self.stats.udp_sent += 1;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier answer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends an answer and waits a moment for room in the send buffer. Returns false if the network refused it.
fn send_datagram(udp: &UdpSocket, bytes: &[u8], to: SocketAddr) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;
    match udp.send_to(bytes, to) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let mut polled = [PollFd::new(udp.as_fd(), PollFlags::POLLOUT)];
            nix::poll::poll(&mut polled, PollTimeout::from(20u8))?;
            Ok(udp.send_to(bytes, to).is_ok())
        }
        Err(_) => Ok(false),
    }
}

/// Opens a listening socket for both IP versions, or for IPv4 where the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let socket =
        open_any(Type::STREAM, Protocol::TCP, port, |socket| socket.set_reuse_address(true))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn open_udp(port: u16, buffer: Option<usize>) -> io::Result<UdpSocket> {
    let socket = open_any(Type::DGRAM, Protocol::UDP, port, |socket| match buffer {
        Some(bytes) => socket.set_recv_buffer_size(bytes),
        None => Ok(()),
    })?;
    Ok(socket.into())
}

fn open_any(
    kind: Type,
    protocol: Protocol,
    port: u16,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let six: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
    let four: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
    let open = |address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        prepare(&socket)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open(six) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => open(four),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => open(four),
        other => other,
    }
}
