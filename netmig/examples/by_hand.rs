//! Tries single parts of the crate by hand on a lab host, as root:
//!
//! ```text
//! network prepare PEER                      tunnel: make this end, print its key and port
//! network connect PEER KEY ADDRESS:PORT     tunnel: connect to the other end
//! network establish | confirm | status | remove PEER
//! network list
//! network sandbox PID                       the container's interfaces, gateways, UDP queues
//! network block PID INTERFACE MILLISECONDS  cut a container off for a while
//! network mtu PID BYTES                     set the MTU of the container's routes
//! network seed PID INTERFACE                make the container and its bridge know each other
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use netmig::bridge_port::Port;
use netmig::container_network::{ContainerNetwork, SiblingAddresses};
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::routing;
use netmig::sockets::UdpQueues;
use netmig::tunnel::{self, RemoteEnd};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begun = Instant::now();
    match arguments[..] {
        ["prepare", peer] => {
            let end = tunnel::prepare(number(peer)?).await?;
            println!("{} {} {:?} reused={}", hex(&end.public_key), end.port, end.kind, end.reused);
        }
        ["connect", peer, key, endpoint] => {
            let remote = RemoteEnd { public_key: unhex(key)?, endpoint: endpoint.parse()? };
            println!("{:?}", tunnel::connect(number(peer)?, &remote).await?);
        }
        ["establish", peer] => tunnel::establish(number(peer)?).await?,
        ["confirm", peer] => tunnel::confirm(number(peer)?).await?,
        ["remove", peer] => tunnel::remove(number(peer)?).await?,
        ["status", peer] => println!("{:#?}", tunnel::status(number(peer)?).await?),
        ["list"] => println!("{:?} {:?}", tunnel::list().await?, routing::forwarding()?),
        ["sandbox", pid] => {
            let container = Namespace::of_pid(pid.parse()?)?;
            let sandbox = ContainerNetwork::open(&container)?;
            println!("{:#?} {:#?}", sandbox.interfaces(), sandbox.gateways());
            let mut queues = UdpQueues::open(&container)?;
            for _ in 0..5 {
                let bytes = timed("pending", || queues.pending())?;
                println!("{bytes} bytes wait");
            }
        }
        ["block", pid, interface, milliseconds] => {
            let port = Port::of_container(&Namespace::of_pid(pid.parse()?)?, interface)?;
            println!("{} ({}) on {:?}", port.name(), port.index(), port.bridge());
            timed("block", || port.block())?;
            println!("blocked: {}", port.is_blocked()?);
            tokio::time::sleep(Duration::from_millis(milliseconds.parse()?)).await;
            println!("still blocked: {}", port.is_blocked()?);
            timed("unblock", || port.unblock())?;
            println!("blocked: {}", port.is_blocked()?);
        }
        ["mtu", pid, bytes] => {
            let container = Namespace::of_pid(pid.parse()?)?;
            let sandbox = timed("open", || ContainerNetwork::open(&container))?;
            let bytes = bytes.parse()?;
            timed("set_route_mtu", || sandbox.set_route_mtu(bytes))?;
        }
        ["seed", pid, interface] => {
            let container = Namespace::of_pid(pid.parse()?)?;
            let port = Port::of_container(&container, interface)?;
            let sandbox = ContainerNetwork::open(&container)?;
            timed("seed_neighbours", || {
                sandbox.seed_neighbours(&port, &SiblingAddresses::default())
            })?;
        }
        _ => return Err("unknown command; the head of this file lists them".into()),
    }
    eprintln!("{:?}", begun.elapsed());
    Ok(())
}

fn timed<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = action();
    eprintln!("{what}: {:?}", begun.elapsed());
    result
}

fn number(text: &str) -> Result<PeerNumber, Box<dyn Error>> {
    PeerNumber::new(text.parse()?).ok_or_else(|| "peers are numbered from 1".into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<[u8; 32], Box<dyn Error>> {
    let mut key = [0; 32];
    for (place, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2).ok_or("a short key")?, 16)?;
    }
    Ok(key)
}
