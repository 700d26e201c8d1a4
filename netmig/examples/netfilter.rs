//! The netfilter half of netmig by hand: table, flows, hold. Needs root; changes the network
//! namespace in which it runs.
//!
//! ```text
//! netfilter install | remove | read | queueing
//! netfilter steer PEER | unsteer PEER | sweep
//! netfilter dump ADDRESS,…            the flows of a container
//! netfilter mark ADDRESS,… PEER       lead them to a peer
//! netfilter unmark ADDRESS,… PEER     keep them here again
//! netfilter place ADDRESS,… PEER      what a destination would have to create
//! netfilter hold TAG ADDRESS,… tcp:PORT,udp:PORT,… MILLISECONDS [release|drop]
//! netfilter bench COUNT ADDRESS       times for COUNT made-up flows, which are removed again
//! ```

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use netmig::flow::{
    Conntrack, Direction, Flow, Outcome, Protocol, Relocation, TcpState, Tuple, Zone,
};
use netmig::hold::{HoldRules, OnHolderLoss, Pace, PreparedHold};
use netmig::peer_number::PeerNumber;
use netmig::table::Table;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["install"] => Ok(Table::open()?.install()?),
        ["remove"] => Ok(Table::open()?.remove()?),
        ["sweep"] => Ok(Table::open()?.sweep_holds(&[])?),
        ["steer", number] => Ok(Table::open()?.steer(peer(number)?)?),
        ["unsteer", number] => Ok(Table::open()?.unsteer(peer(number)?)?),
        ["queueing"] => {
            println!("{:?}", Table::open()?.queueing()?);
            Ok(())
        }
        ["read"] => {
            for rule in Table::open()?.read()?.rules {
                println!("{rule:?}");
            }
            Ok(())
        }
        ["dump", container] => {
            for flow in Conntrack::open()?.dump(&addresses(container)?)? {
                println!("{flow} {flow:?}");
            }
            Ok(())
        }
        ["mark", container, number] => mark(&addresses(container)?, peer(number)?, true),
        ["unmark", container, number] => mark(&addresses(container)?, peer(number)?, false),
        ["place", container, number] => {
            let container = addresses(container)?;
            let (aliases, readdressed) = (&[][..], &[][..]);
            let udp_timeout = netmig::flow::udp_timeout();
            let relocation = Relocation { hop: peer(number)?, aliases, readdressed, udp_timeout };
            let flows = Conntrack::open()?.dump(&container)?;
            for there in
                flows.iter().filter_map(|flow| flow.at_destination(&container, &relocation))
            {
                println!("{there} {there:?}");
            }
            Ok(())
        }
        ["hold", tag, container, published, milliseconds] => {
            hold(tag, container, published, milliseconds, "release")
        }
        ["hold", tag, container, published, milliseconds, end] => {
            hold(tag, container, published, milliseconds, end)
        }
        ["bench", count, container] => bench(count.parse()?, container.parse()?),
        _ => Err("see the head of this example for its arguments".into()),
    }
}

fn peer(number: &str) -> Result<PeerNumber> {
    PeerNumber::new(number.parse()?).ok_or_else(|| "peers are numbered from 1".into())
}

fn addresses(list: &str) -> Result<Vec<IpAddr>> {
    list.split(',').map(|address| Ok(address.parse()?)).collect()
}

fn ports(list: &str) -> Result<Vec<(Protocol, u16)>> {
    list.split(',')
        .filter(|port| !port.is_empty())
        .map(|port| match port.split_once(':') {
            Some(("tcp", port)) => Ok((Protocol::Tcp, port.parse()?)),
            Some(("udp", port)) => Ok((Protocol::Udp, port.parse()?)),
            _ => Err("a port is tcp:NUMBER or udp:NUMBER".into()),
        })
        .collect()
}

fn mark(container: &[IpAddr], peer: PeerNumber, set: bool) -> Result<()> {
    let mut conntrack = Conntrack::open()?;
    let flows = conntrack.dump(container)?;
    for direction in [Direction::Inbound, Direction::Outbound] {
        let of_direction: Vec<Flow> = flows
            .iter()
            .filter(|flow| flow.direction(container) == Some(direction))
            .cloned()
            .collect();
        let (value, mask) = Flow::mark_at_source(direction, peer);
        let value = if set { value } else { 0 };
        println!("{direction:?} {:?}", conntrack.set_mark(&of_direction, value, mask)?);
    }
    Ok(())
}

fn hold(tag: &str, container: &str, published: &str, ms: &str, end: &str) -> Result<()> {
    let rules = HoldRules {
        addresses: addresses(container)?,
        published: ports(published)?,
        on_loss: OnHolderLoss::Accept,
    };
    let prepared = PreparedHold::new(tag.parse()?, &rules)?;
    let start = Instant::now();
    let mut hold = prepared.engage()?;
    hold.engage_all()?;
    let engaging = start.elapsed();
    std::thread::sleep(Duration::from_millis(ms.parse()?));
    let counters = hold.counters()?;
    let report = match end {
        "drop" => hold.drop_all()?,
        _ => hold.release(pace()?, None)?,
    };
    println!("engaged in {engaging:?}; before the end {counters:?}; {report:?}");
    Ok(())
}

/// Returns the default pace, or `PACKETS/MICROSECONDS` from the environment.
fn pace() -> Result<Pace> {
    let Ok(pace) = std::env::var("PACE") else { return Ok(Pace::default()) };
    let (packets, interval) = pace.split_once('/').ok_or("PACE is PACKETS/MICROSECONDS")?;
    let interval = Duration::from_micros(interval.parse()?);
    Ok(Pace { packets: packets.parse()?, interval })
}

fn bench(count: u32, container: Ipv4Addr) -> Result<()> {
    let flows: Vec<Flow> = (0..count)
        .map(|n| {
            let client = Ipv4Addr::from_bits(0xc633_6400 + n / 50_000);
            let original = Tuple {
                source: client.into(),
                destination: container.into(),
                source_port: 10_000 + (n % 50_000) as u16,
                destination_port: 7000,
            };
            Flow {
                protocol: Protocol::Tcp,
                original,
                reply: original.inverse(),
                status: 0x0e,
                timeout: 600,
                mark: 0,
                zone: Zone::default(),
                tcp: Some(TcpState { state: 3, scales: [7, 7], flags: [0x0b, 0x0b] }),
            }
        })
        .collect();
    let mut conntrack = Conntrack::open()?;
    let mut timed = |what: &str, act: &mut dyn FnMut(&mut Conntrack) -> Result<Outcome>| {
        let start = Instant::now();
        let outcome = act(&mut conntrack)?;
        let took = start.elapsed();
        let Outcome { done, gone, existing } = outcome;
        println!("{what}: {took:?}, {done} done, {} gone, {} existing", gone.len(), existing.len());
        Ok::<_, Box<dyn Error>>(())
    };
    timed("create", &mut |conntrack| Ok(conntrack.create(&flows)?))?;
    timed("create again", &mut |conntrack| Ok(conntrack.create(&flows)?))?;
    timed("dump", &mut |conntrack| {
        let done = conntrack.dump(&[container.into()])?.len();
        Ok(Outcome { done, ..Outcome::default() })
    })?;
    timed("dump of nothing", &mut |conntrack| {
        let done = conntrack.dump(&[Ipv4Addr::new(192, 0, 2, 99).into()])?.len();
        Ok(Outcome { done, ..Outcome::default() })
    })?;
    timed("mark", &mut |conntrack| Ok(conntrack.set_mark(&flows, 0x0002_0000, 0x00ff_0000)?))?;
    timed("delete", &mut |conntrack| Ok(conntrack.delete(&flows)?))?;
    timed("mark again", &mut |conntrack| Ok(conntrack.set_mark(&flows, 0, 0x00ff_0000)?))
}
