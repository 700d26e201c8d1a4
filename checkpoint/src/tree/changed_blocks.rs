//! The blocks of a large file that have changed, found by several threads at once.
//!
//! Which blocks of a file were written, no kernel tells afterwards. So a file whose times have changed is read again. While a
//! container is frozen that must not take long: a GiB that is in the page cache takes one thread some 0.2 s.

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::thread;

use bytes::{Bytes, BytesMut};

use super::blocks::{Blocks, Failed, ZERO, fill, hash, next_data, read_at};
use super::transfer_record::{BLOCK, CHUNK};

/// Bytes from which on several threads are worth while.
pub(super) const LARGE: u64 = 8 << 20;
/// Blocks that a thread takes at once, and those that it reads at once: the latter stay in its processor's cache.
const PORTION: usize = 64;
const PIECE: usize = 4 * BLOCK;
/// Most threads.
const MOST_THREADS: usize = 8;

/// Does what [`send`](super::blocks::send) does for a file of which an earlier state is known.
pub(super) fn send<E>(
    file: &File,
    length: u64,
    old: &[u128],
    count: usize,
    buffer: &mut BytesMut,
    sink: &mut dyn FnMut(u64, Bytes) -> Result<(), E>,
) -> Result<Blocks, Failed<E>> {
    let mut blocks = hashes(file, length, count).map_err(Failed::Read)?;
    let before = |index: usize| old.get(index).copied().unwrap_or(ZERO);
    let mut index = 0;
    while index < count {
        if blocks.get(index).copied() == Some(before(index)) {
            index += 1;
            continue;
        }
        let differs = |at: &usize| blocks.get(*at).is_some_and(|hash| *hash != before(*at));
        let end = (index..count).take(CHUNK / BLOCK).take_while(differs).last();
        let end = end.map_or(index + 1, |last| last + 1);
        let offset = (index * BLOCK) as u64;
        let until = length.min((end * BLOCK) as u64);
        let piece = read_at(file, offset, until, buffer).map_err(Failed::Read)?;
        if piece.is_empty() {
            // It is shorter by now, which its times tell.
            blocks.truncate(index);
            break;
        }
        // It may have changed again: what is kept is the hash of what is sent.
        for (slot, block) in blocks[index..end].iter_mut().zip(piece.chunks(BLOCK)) {
            *slot = hash(block);
        }
        sink(offset, piece).map_err(Failed::Sink)?;
        index = end;
    }
    Ok(blocks)
}

/// Returns the hashes of all blocks.
fn hashes(file: &File, length: u64, count: usize) -> io::Result<Blocks> {
    let mut blocks = vec![ZERO; count];
    hash_all(file, length, &mut blocks)?;
    Ok(blocks)
}

/// Hashes all blocks by several threads.
fn hash_all(file: &File, length: u64, blocks: &mut [u128]) -> io::Result<()> {
    let failed = || io::Error::other("a thread that reads a file failed");
    let portions = Mutex::new(blocks.chunks_mut(PORTION).enumerate());
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
    let work = || {
        let mut buffer = vec![0; PIECE];
        loop {
            let portion = portions.lock().map_err(|_| failed())?.next();
            let Some((number, portion)) = portion else { return Ok(()) };
            hash_portion(file, length, number * PORTION, portion, &mut buffer)?;
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let of_others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|_| Err(failed())));
        of_others.chain([own]).collect()
    })
}

/// Hashes the blocks from the number `first` on. Holes stay as they are.
fn hash_portion(
    file: &File,
    length: u64,
    first: usize,
    portion: &mut [u128],
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut index = 0;
    while index < portion.len() {
        let offset = ((first + index) * BLOCK) as u64;
        let data = next_data(file, offset)?.min(length);
        let skip = usize::try_from((data - offset) / BLOCK as u64).unwrap_or(usize::MAX);
        if skip > 0 {
            index = index.saturating_add(skip);
            continue;
        }
        let end = ((first + portion.len()) * BLOCK) as u64;
        let want = usize::try_from(length.min(end) - offset).unwrap_or(PIECE).min(PIECE);
        let got = fill(file, offset, &mut buffer[..want])?;
        if got == 0 {
            return Ok(());
        }
        for block in buffer[..got].chunks(BLOCK) {
            if let Some(slot) = portion.get_mut(index) {
                *slot = hash(block);
            }
            index += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::tree::blocks;

    fn changes(file: &File, old: &[u128]) -> (Blocks, BTreeMap<u64, Bytes>) {
        let mut sent = BTreeMap::new();
        let length = file.metadata().unwrap().len();
        let done = blocks::send(file, length, Some(old), &mut BytesMut::new(), &mut |at, bytes| {
            sent.insert(at, bytes);
            Ok::<(), ()>(())
        });
        (done.ok().unwrap(), sent)
    }

    #[test]
    fn the_changed_blocks_of_a_large_file_are_found_and_no_others() {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..LARGE as usize + 5).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        file.set_len(3 * LARGE).unwrap();
        file.write_all_at(b"behind a hole", 3 * LARGE - 13).unwrap();
        let (first, _) = changes(&file, &[]);
        assert!(changes(&file, &first).1.is_empty(), "nothing has changed");
        let at = |block: usize| (block * BLOCK) as u64;
        for block in [0, 5, 6, 63, 64, 300] {
            file.write_all_at(b"!", at(block) + 9).unwrap();
        }
        let (second, sent) = changes(&file, &first);
        let runs: Vec<_> = sent.iter().map(|(o, b)| (*o / BLOCK as u64, b.len() / BLOCK)).collect();
        assert_eq!(runs, [(0, 1), (5, 2), (63, 2), (300, 1)]);
        assert!(changes(&file, &second).1.is_empty());
        // Shorter, longer again, and a hole where data was.
        file.set_len(at(140)).unwrap();
        file.set_len(3 * LARGE).unwrap();
        let (third, sent) = changes(&file, &second);
        assert!(sent.values().all(|bytes| bytes.iter().all(|b| *b == 0)));
        assert!(sent.contains_key(&at(300)));
        assert!(changes(&file, &third).1.is_empty());
    }
}
