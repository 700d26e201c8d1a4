//! Containers that find the container by name, and that it finds: podman's name server of a network
//! (aardvark-dns) knows those of its own host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use checkpoint::description::Network;

/// Where netavark writes what the name servers are to answer: a file for each network (`dns/aardvark.rs` in
/// netavark's source).
const RECORDS: &str = "/run/containers/networks/aardvark-dns";
/// What ends the name of the file for a network without a way out.
const INTERNAL: &str = "%int";
/// Largest file that is read, in bytes.
const MOST: u64 = 4 << 20;
/// So many are named.
const NAMED: usize = 5;

/// What is told where a container's networks have others that it knows by name.
pub fn warning(container: &str, id: &str, networks: &[Network]) -> Option<String> {
    let files =
        networks.iter().flat_map(|network| [network.name.clone(), network.name.clone() + INTERNAL]);
    let texts = files.filter_map(|file| read(&Path::new(RECORDS).join(file)).ok());
    let others: BTreeSet<String> = texts.flat_map(|text| others(&text, id)).collect();
    let named: Vec<&str> = others.iter().map(String::as_str).take(NAMED).collect();
    let more = others.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!others.is_empty()).then(|| {
        format!(
            "names of containers are known on the same host alone: {container} and the containers of its \
             networks here do not find each other by name until they have moved, too: {}{more}",
            named.join(", ")
        )
    })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// The first name of every container but one. The first line has the addresses of the name server, each other
/// one a container's ID, its IPv4 addresses, its IPv6 addresses and its names.
fn others(text: &str, id: &str) -> Vec<String> {
    let rows = text.lines().skip(1).map(|line| line.split(' ').collect::<Vec<_>>());
    rows.filter(|row| row[0] != id)
        .filter_map(|row| row.get(3)?.split(',').next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_by_their_first_names() {
        let text = "10.89.7.1,fd00::1\n\
                    aa 10.89.7.2  web,aa0123456789\n\
                    bb 10.89.7.3 fd00::3 db,store,bb0123456789 192.0.2.53\n\
                    cc 10.89.7.4\n";
        assert_eq!(others(text, "aa"), ["db"]);
        assert_eq!(others(text, "zz"), ["web", "db"]);
        assert!(others("10.89.7.1\n", "aa").is_empty() && others("", "aa").is_empty());
    }
}
