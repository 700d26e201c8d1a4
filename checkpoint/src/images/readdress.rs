//! Sockets of a container that gets another address.
//!
//! CRIU binds a restored socket to the address that it had, and connects it to the same far end. Both addresses are in
//! `files.img`, and nowhere else in the images. A far end has the container's own address when both ends of a connection
//! are in the container.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::Error;
use super::tmpfs::io_error;
use crate::protobuf::{MAGIC, Value, put_field, take, take_field, take_word};

/// The image that has all descriptors' entries.
pub(super) const FILES: &str = "files.img";
/// Number of the field that has an internet socket (CRIU's `fdinfo.proto`).
pub(super) const INTERNET_SOCKET: u64 = 4;
/// Numbers of the fields that have its two addresses, word by word (CRIU's `sk-inet.proto`).
const ADDRESSES: [u64; 2] = [11, 12];

/// Replaces addresses of sockets, each first one by the second of its pair; tells in how many sockets.
/// The directory holds whole images.
///
/// # Errors
/// [`Error::Io`], or [`Error::Differs`] for an image that is none.
pub fn readdress(directory: &Path, pairs: &[(IpAddr, IpAddr)]) -> Result<usize, Error> {
    let path = directory.join(FILES);
    let image = fs::read(&path).map_err(io_error("read", &path))?;
    let unknown = || Error::Differs { name: FILES.to_owned(), problem: "format" };
    let (image, changed) = image_with(&image, pairs).ok_or_else(unknown)?;
    if changed > 0 {
        fs::write(&path, image).map_err(io_error("write", &path))?;
    }
    Ok(changed)
}

fn image_with(mut image: &[u8], pairs: &[(IpAddr, IpAddr)]) -> Option<(Vec<u8>, usize)> {
    let mut all = take(&mut image, 8)?.to_vec();
    if all[..4] != MAGIC.to_le_bytes() {
        return None;
    }
    let mut changed = 0;
    while !image.is_empty() {
        let length = take_word(&mut image)?;
        let entry = take(&mut image, length.into())?;
        let replaced = entry_with(entry, pairs)?;
        changed += usize::from(replaced.is_some());
        let entry = replaced.as_deref().unwrap_or(entry);
        all.extend(u32::try_from(entry.len()).ok()?.to_le_bytes());
        all.extend(entry);
    }
    Some((all, changed))
}

/// Returns a descriptor's entry; `Some(None)` if nothing of it changes.
fn entry_with(mut entry: &[u8], pairs: &[(IpAddr, IpAddr)]) -> Option<Option<Vec<u8>>> {
    let (mut all, mut changed) = (Vec::new(), false);
    while !entry.is_empty() {
        let (number, value) = take_field(&mut entry)?;
        match value {
            Value::Bytes(socket) if number == INTERNET_SOCKET => {
                let replaced = socket_with(socket, pairs)?;
                changed |= replaced.is_some();
                let socket = replaced.as_deref().unwrap_or(socket);
                put_field(&mut all, number, Value::Bytes(socket));
            }
            value => put_field(&mut all, number, value),
        }
    }
    Some(changed.then_some(all))
}

/// Returns a socket's entry; `Some(None)` if it has other addresses.
fn socket_with(mut socket: &[u8], pairs: &[(IpAddr, IpAddr)]) -> Option<Option<Vec<u8>>> {
    let (mut all, mut words) = (Vec::new(), [const { Vec::new() }; 2]);
    while !socket.is_empty() {
        let (number, value) = take_field(&mut socket)?;
        match ADDRESSES.iter().position(|field| *field == number) {
            None => put_field(&mut all, number, value),
            Some(which) => match value {
                Value::Varint(word) => words[which].push(u32::try_from(word).ok()?),
                // Several numbers may stand in one field (Protocol Buffers, packed).
                Value::Bytes(mut packed) => {
                    while !packed.is_empty() {
                        let word = crate::protobuf::take_varint(&mut packed)?;
                        words[which].push(u32::try_from(word).ok()?);
                    }
                }
                Value::Fixed(_) => return None,
            },
        }
    }
    let mut changed = false;
    for (number, words) in ADDRESSES.into_iter().zip(&mut words) {
        if let Some(other) = address_with(words, pairs) {
            changed = true;
            *words = other;
        }
        for word in words {
            put_field(&mut all, number, Value::Varint((*word).into()));
        }
    }
    Some(changed.then_some(all))
}

/// Returns the words of an address, as they are in memory; `None` for one that stays.
fn address_with(words: &[u32], pairs: &[(IpAddr, IpAddr)]) -> Option<Vec<u32>> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let new = |old: IpAddr| Some(pairs.iter().find(|(from, _)| *from == old)?.1);
    let octets = match words.len() {
        1 => match new(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())? {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(_) => return None,
        },
        4 => {
            let old = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            // A socket of both families has IPv4 addresses in this form.
            match (old.to_ipv4_mapped(), new(old.to_canonical())?) {
                (Some(_), IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets().to_vec(),
                (None, IpAddr::V6(v6)) => v6.octets().to_vec(),
                _ => return None,
            }
        }
        _ => return None,
    };
    let word = |chunk: &[u8]| chunk.try_into().map(u32::from_ne_bytes).ok();
    octets.chunks(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(address: &str) -> Vec<u32> {
        let octets = match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets.chunks(4).map(|chunk| u32::from_ne_bytes(chunk.try_into().unwrap())).collect()
    }

    /// Returns an entry of a socket between fields of other kinds.
    fn socket(own: &str, far: &str) -> Vec<u8> {
        let mut socket = Vec::new();
        put_field(&mut socket, 7, Value::Varint(7000));
        for (number, address) in [(11, own), (12, far)] {
            for word in words(address) {
                put_field(&mut socket, number, Value::Varint(word.into()));
            }
        }
        put_field(&mut socket, 17, Value::Bytes(b"eth0"));
        let mut entry = Vec::new();
        put_field(&mut entry, 1, Value::Varint(4));
        put_field(&mut entry, 99, Value::Fixed(&[1; 8]));
        put_field(&mut entry, INTERNET_SOCKET, Value::Bytes(&socket));
        entry
    }

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        for entry in entries {
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    /// Returns the fields of every socket, in any order.
    fn sockets(mut image: &[u8]) -> Vec<Vec<(u64, Vec<u8>)>> {
        let mut all = Vec::new();
        take(&mut image, 8).unwrap();
        while !image.is_empty() {
            let length = take_word(&mut image).unwrap();
            let mut entry = take(&mut image, length.into()).unwrap();
            while let Some((number, value)) = take_field(&mut entry) {
                let Value::Bytes(mut socket) = value else { continue };
                assert_eq!(number, INTERNET_SOCKET);
                let mut fields = Vec::new();
                while let Some((number, value)) = take_field(&mut socket) {
                    let mut bytes = Vec::new();
                    put_field(&mut bytes, number, value);
                    fields.push((number, bytes));
                }
                fields.sort_by_key(|(number, _)| *number);
                all.push(fields);
            }
        }
        all
    }

    #[test]
    fn a_sockets_address_is_replaced_in_every_form() {
        let before = image(&[
            socket("10.88.0.2", "192.0.2.3"),
            socket("0.0.0.0", "0.0.0.0"),
            socket("::ffff:10.88.0.2", "::ffff:192.0.2.3"),
            socket("fd77::2", "2001:db8::3"),
            socket("10.88.0.2", "10.88.0.2"),
            socket("10.88.0.20", "192.0.2.3"),
        ]);
        let after = image(&[
            socket("10.88.0.9", "192.0.2.3"),
            socket("0.0.0.0", "0.0.0.0"),
            socket("::ffff:10.88.0.9", "::ffff:192.0.2.3"),
            socket("fd77::9", "2001:db8::3"),
            socket("10.88.0.9", "10.88.0.9"),
            socket("10.88.0.20", "192.0.2.3"),
        ]);
        let pairs = [("10.88.0.2", "10.88.0.9"), ("fd77::2", "fd77::9")]
            .map(|(old, new)| (old.parse().unwrap(), new.parse().unwrap()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILES);
        fs::write(&path, &before).unwrap();
        assert_eq!(readdress(directory.path(), &pairs).unwrap(), 4);
        let changed = fs::read(&path).unwrap();
        assert_eq!(sockets(&changed), sockets(&after));
        assert_eq!(readdress(directory.path(), &pairs).unwrap(), 0, "once is enough");
        assert_eq!(fs::read(&path).unwrap(), changed);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let whole = image(&[socket("10.88.0.2", "192.0.2.3")]);
        let pairs = [("10.88.0.2".parse().unwrap(), "10.88.0.9".parse().unwrap())];
        for end in (0..8).chain(9..whole.len()) {
            assert_eq!(image_with(&whole[..end], &pairs), None, "cut at {end}");
        }
        let mut foreign = whole;
        foreign[0] ^= 1;
        assert_eq!(image_with(&foreign, &pairs), None);
    }
}
