//! Containers of one network that a migration separates. New connections between them fail, and a warning names them.
//! It does not name unrelated containers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::cases::flows::opener;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("siblings-of-a-network-of-their-own", &["fidelity", "flows"], together),
    Case::new("siblings-that-talk-to-each-other", &["fidelity", "flows"], talking),
];

/// The time limit for a server to start.
const STARTS: Duration = Duration::from_secs(10);

fn serve(host: &Host, name: &str, network: &str) -> Result<SocketAddr> {
    let run = ["run", "--detach", "--name", name, "--network", network];
    host.podman([&run[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
    let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
    let address = host.podman(["inspect", "--format", &format, name])?;
    let address = address.parse().map_err(|e| Error::Check(format!("{address}: {e}")))?;
    Ok(SocketAddr::new(address, 7001))
}

/// Returns whether a container can open a connection.
fn reaches(host: &Host, from: &str, server: SocketAddr) -> bool {
    host.podman(["exec", from, "netmig-probe", "stats", &server.to_string()]).is_ok()
}

/// Returns whether two containers reach each other within the time limit.
fn are_together(host: &Host, ends: [(&str, SocketAddr); 2]) -> bool {
    let [(one, own), (other, others)] = ends;
    let end = Instant::now() + slowdown::limit(STARTS);
    while !(reaches(host, one, others) && reaches(host, other, own)) {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}

/// Migrates a container. Returns the warnings about others that stay behind.
fn told(lab: &Lab, from: &str, to: &str) -> Result<Vec<String>> {
    let moved = lab.migrate("web", from, to)?;
    let of_others = |warning: &String| warning.contains("behind");
    Ok(moved.warnings.into_iter().filter(of_others).collect())
}

fn together(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for host in [a, b] {
        for (name, subnet) in [("back", "10.77.0.0/24"), ("apart", "10.78.0.0/24")] {
            host.podman(["network", "create", "--disable-dns", "--subnet", subnet, name])?;
        }
    }
    serve(a, "stranger", "apart")?;
    let [db, web] = [serve(a, "db", "back")?, serve(a, "web", "back")?];
    let ends = [("db", db), ("web", web)];
    ensure!(are_together(a, ends), "they do not reach each other");
    lab.serve("a")?;
    let said = told(&lab, "a", "b")?;
    ensure!(said.len() == 1 && said[0].contains("db") && said[0].contains("back"), "{said:?}");
    ensure!(!said[0].contains("stranger"), "{said:?}");
    // The warning is right.
    ensure!(!reaches(a, "db", web) && !reaches(b, "web", db), "they reach each other");
    let home = told(&lab, "b", "a")?;
    ensure!(home.is_empty(), "{home:?}");
    ensure!(are_together(a, ends), "they do not reach each other at home");
    context.remark(said[0].clone());
    Ok(())
}

fn talking(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    let db = serve(a, "db", "podman")?;
    serve(a, "stranger", "podman")?;
    serve(a, "web", "podman")?;
    lab.serve("a")?;
    let quiet = told(&lab, "a", "b")?;
    ensure!(quiet.is_empty(), "warnings without traffic: {quiet:?}");
    lab.migrate("web", "b", "a")?;
    a.podman(["rm", "--force", "--time", "0", "web"])?;
    opener::start(a, "web", SocketAddr::new(db.ip(), 7000), &[])?;
    std::thread::sleep(Duration::from_secs(1));
    let said = told(&lab, "a", "b")?;
    ensure!(said.len() == 1 && said[0].starts_with("db stays"), "{said:?}");
    lab.migrate("web", "b", "a")?;
    opener::stop_losing(a, "web", 40)?;
    context.remark(said[0].clone());
    Ok(())
}
