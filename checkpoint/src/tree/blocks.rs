//! The content of a file, block by block: which blocks to send, and the hashes to keep.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use twox_hash::XxHash3_128;

use super::changed_blocks;
use super::transfer_record::{BLOCK, CHUNK};

/// The hash of a block of zeros, and of a hole.
pub(super) const ZERO: u128 = 0;

/// Hashes of a file's blocks, 16 bytes for each 64 KiB; zeros at the end are left out.
pub(super) type Blocks = Vec<u128>;

/// Reads `length` bytes of `file` and hands on what differs from `old`; without `old`, all that
/// is not zero. Returns the hashes. A file that turns out shorter ends early: the writer that shortened
/// it changed its times too.
pub(super) fn send<E>(
    file: &File,
    length: u64,
    old: Option<&[u128]>,
    buffer: &mut BytesMut,
    sink: &mut dyn FnMut(u64, Bytes) -> Result<(), E>,
) -> Result<Blocks, Failed<E>> {
    let count = usize::try_from(length.div_ceil(BLOCK as u64))
        .map_err(|_| Failed::Read(io::ErrorKind::FileTooLarge.into()))?;
    if let Some(old) = old
        && length >= changed_blocks::LARGE
    {
        return changed_blocks::send(file, length, old, count, buffer, sink).map(without_end);
    }
    let mut blocks = Blocks::new();
    while blocks.len() < count {
        let offset = (blocks.len() * BLOCK) as u64;
        let data = next_data(file, offset).map_err(Failed::Read)?;
        let skip = usize::try_from((data.min(length) - offset) / BLOCK as u64).unwrap_or(count);
        let holes = skip.min(count - blocks.len());
        if holes > 0 {
            // Holes: to be written as zeros where the destination has something else.
            let until = blocks.len() + holes;
            for (index, before) in old.unwrap_or_default().iter().enumerate().take(until) {
                if index >= blocks.len() && *before != ZERO {
                    let start = index * BLOCK;
                    let size = BLOCK.min((length - start as u64) as usize);
                    let zeros = Bytes::from(vec![0; size]);
                    sink(start as u64, zeros).map_err(Failed::Sink)?;
                }
            }
            blocks.resize(until, ZERO);
            continue;
        }
        let piece = read_at(file, offset, length, buffer).map_err(Failed::Read)?;
        if piece.is_empty() {
            break;
        }
        differing(&piece, offset, old, &mut blocks, sink).map_err(Failed::Sink)?;
    }
    Ok(without_end(blocks))
}

/// Leaves out zeros at the end.
fn without_end(mut blocks: Blocks) -> Blocks {
    while blocks.last() == Some(&ZERO) {
        blocks.pop();
    }
    blocks.shrink_to_fit();
    blocks
}

/// Why [`send`] ended early.
pub(super) enum Failed<E> {
    /// The file could not be read.
    Read(io::Error),
    /// The receiver refused.
    Sink(E),
}

/// Hashes the blocks of `piece` and hands on its runs of differing blocks.
fn differing<E>(
    piece: &Bytes,
    offset: u64,
    old: Option<&[u128]>,
    blocks: &mut Blocks,
    sink: &mut dyn FnMut(u64, Bytes) -> Result<(), E>,
) -> Result<(), E> {
    let mut run = 0..0;
    for (i, block) in piece.chunks(BLOCK).enumerate() {
        let hash = hash(block);
        // Beyond the end of the earlier state the destination has zeros.
        let before = old.and_then(|old| old.get(blocks.len())).copied().unwrap_or(ZERO);
        blocks.push(hash);
        if hash == before {
            continue;
        }
        let start = i * BLOCK;
        if run.end != start {
            if !run.is_empty() {
                sink(offset + run.start as u64, piece.slice(run.clone()))?;
            }
            run.start = start;
        }
        run.end = start + block.len();
    }
    if !run.is_empty() {
        sink(offset + run.start as u64, piece.slice(run))?;
    }
    Ok(())
}

/// Returns the hash of a block; all zeros count as a hole.
pub(super) fn hash(block: &[u8]) -> u128 {
    let zero = block.first() == Some(&0) && block.iter().all(|b| *b == 0);
    if zero { ZERO } else { XxHash3_128::oneshot(block).max(1) }
}

/// Returns where the next bytes that are no hole begin, from `offset` on.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<u64> {
    let Ok(start) = i64::try_from(offset) else { return Ok(offset) };
    match lseek(file.as_fd(), start, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).unwrap_or(offset)),
        // Nothing but a hole until the end.
        Err(Errno::ENXIO) => Ok(u64::MAX),
        // Not every file system knows holes.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(offset),
        Err(e) => Err(e.into()),
    }
}

/// Returns up to a chunk of bytes from `offset`, not beyond `length`; fewer at the end of the file.
pub(super) fn read_at(
    file: &File,
    offset: u64,
    length: u64,
    buffer: &mut BytesMut,
) -> io::Result<Bytes> {
    let want = usize::try_from(length - offset).unwrap_or(CHUNK).min(CHUNK);
    buffer.resize(want, 0);
    let got = fill(file, offset, buffer)?;
    Ok(buffer.split_to(got).freeze())
}

/// Reads bytes from `offset` on until the buffer is full or the file ends; returns how many.
pub(super) fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Sent = BTreeMap<u64, Bytes>;

    fn run(file: &File, old: Option<&[u128]>) -> (Blocks, Sent) {
        let mut sent = Sent::new();
        let length = file.metadata().unwrap().len();
        let blocks = send(file, length, old, &mut BytesMut::new(), &mut |offset, bytes| {
            sent.insert(offset, bytes);
            Ok::<(), ()>(())
        });
        (blocks.ok().unwrap(), sent)
    }

    fn total(sent: &Sent) -> usize {
        sent.values().map(Bytes::len).sum()
    }

    #[test]
    fn holes_and_zeros_are_not_sent() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 36).unwrap();
        let (blocks, sent) = run(&file, None);
        assert!(blocks.is_empty());
        assert!(sent.is_empty());
        file.set_len(20 * BLOCK as u64).unwrap();
        file.write_all_at(&[0; BLOCK], 0).unwrap();
        file.write_all_at(b"x", 10 * BLOCK as u64 + 7).unwrap();
        let (_, sent) = run(&file, None);
        assert_eq!(sent.keys().copied().collect::<Vec<_>>(), [10 * BLOCK as u64]);
    }

    #[test]
    fn only_changed_blocks_are_sent_again() {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..21 * BLOCK + 5).map(|i| (i % 253) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        let (first, sent) = run(&file, None);
        assert_eq!(total(&sent), content.len());
        assert!(sent.values().all(|b| b.len() <= CHUNK));
        assert!(run(&file, Some(&first)).1.is_empty());
        // One byte in the middle, two neighbours, and growth at the end.
        file.write_all_at(b"!", 3 * BLOCK as u64).unwrap();
        file.write_all_at(b"!!", 10 * BLOCK as u64 - 1).unwrap();
        file.write_all_at(b"more", content.len() as u64).unwrap();
        let (_, sent) = run(&file, Some(&first));
        let runs: Vec<_> = sent.iter().map(|(o, b)| (*o as usize / BLOCK, b.len())).collect();
        assert_eq!(runs, [(3, BLOCK), (9, 2 * BLOCK), (21, 9)]);
        // Punched out again: zeros must be sent.
        file.set_len(2 * BLOCK as u64).unwrap();
        file.set_len(4 * BLOCK as u64).unwrap();
        let (_, sent) = run(&file, Some(&first));
        assert_eq!((sent.keys().next(), total(&sent)), (Some(&(2 * BLOCK as u64)), 2 * BLOCK));
        assert!(sent.values().all(|b| b.iter().all(|b| *b == 0)));
    }
}
