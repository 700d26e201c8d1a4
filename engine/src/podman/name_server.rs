//! Names by which containers of one network find each other: podman's name server (aardvark-dns) knows those of
//! its own host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// Where netavark writes what the name servers are to answer: a file for each network (`dns/aardvark.rs` in
/// netavark's source).
const RECORDS: &str = "/run/containers/networks/aardvark-dns";
/// What ends the name of the file for a network without a way out.
const INTERNAL: &str = "%int";
/// Largest file that is read, in bytes.
const MOST: u64 = 4 << 20;

/// Returns the first names of all containers of these networks but that with the ID `except`.
pub(super) fn names(networks: &[&str], except: &str) -> BTreeSet<String> {
    let files =
        networks.iter().flat_map(|network| [(*network).to_owned(), format!("{network}{INTERNAL}")]);
    let texts = files.filter_map(|file| read(&Path::new(RECORDS).join(file)).ok());
    texts.flat_map(|text| others(&text, except)).collect()
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
