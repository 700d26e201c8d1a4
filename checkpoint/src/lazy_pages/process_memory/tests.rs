//! What a successor knows, and what is given back.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

use super::*;

fn descriptor() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Writes into the log what the kernel would.
fn event(memories: &mut Memories, process: u64, kind: u8, arguments: [u64; 3]) {
    let place = memories.log.place(process).unwrap();
    (place.kind, place.arguments) = (kind, arguments);
    memories.log.keep();
}

#[test]
fn a_successor_knows_what_the_server_knew() {
    const FORK: u8 = 0x13;
    const REMAP: u8 = 0x14;
    const REMOVE: u8 = 0x15;
    let range = LazyRange { start: 16 * PAGE, end: 32 * PAGE, offset: 0 };
    let mut memories = Memories::new().unwrap();
    let pages = Rc::new(tempfile::tempfile().unwrap());
    memories.add(Userfault::new(descriptor()), PageRanges::new(&[range]), pages);
    memories.all[0].faults.push(17 * PAGE);
    memories.log.put(0, 16 * PAGE, 18 * PAGE);
    event(&mut memories, 0, REMOVE, [20 * PAGE, 21 * PAGE, 0]);
    let (first, second) = (descriptor().into_raw_fd(), descriptor().into_raw_fd());
    let number = |fd: i32| u64::from(fd.cast_unsigned());
    event(&mut memories, 0, FORK, [number(first), 0, 0]);
    event(&mut memories, 0, FORK, [number(second), 0, 0]);
    event(&mut memories, 0, REMAP, [24 * PAGE, 64 * PAGE, 2 * PAGE]);
    assert!(memories.log.gone(2));
    event(&mut memories, 1, REMOVE, [0, 30 * PAGE, 0]);
    memories.take_over().unwrap();
    let [parent, child] = &memories.all[..] else { panic!("{:?}", memories.all) };
    let has = |of: &ProcessMemory, page: u64| of.pending.at(page * PAGE, PAGE).is_some();
    assert!([18, 19, 21, 23, 26, 31, 64, 65].into_iter().all(|page| has(parent, page)));
    assert!(![16, 17, 20, 24, 25, 66].into_iter().any(|page| has(parent, page)));
    assert!(has(child, 30) && !has(child, 29) && !has(child, 64));
    assert_eq!((child.number, child.userfault.as_fd().as_raw_fd()), (1, first));
    assert_eq!(memories.next_number, 3);
    assert!(!memories.is_refused(), "what waits asks again");
    // SAFETY: fcntl(2) with numbers alone; nothing has closed the descriptor of the process that is gone.
    assert!(unsafe { libc::fcntl(second, libc::F_GETFD) } >= 0);
}

#[test]
fn pages_that_a_child_lacks_are_kept() {
    use std::os::unix::fs::MetadataExt;
    let mut memories = Memories::new().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![7; 4 * PAGE as usize], 0).unwrap();
    let pages = Rc::new(file.try_clone().unwrap());
    let whole = LazyRange { start: 0, end: 4 * PAGE, offset: 0 };
    let other = LazyRange { start: 64 * PAGE, end: 65 * PAGE, offset: PAGE };
    for pending in [whole, other] {
        let pages = Rc::clone(&pages);
        memories.add(Userfault::new(descriptor()), PageRanges::new(&[pending]), pages);
    }
    let byte = |offset: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    };
    let before = file.metadata().unwrap().blocks();
    memories.all[0].pending.forget(0, 2 * PAGE);
    memories.release(0, &[(0, 2 * PAGE)]).unwrap();
    memories.release_all().unwrap();
    assert_eq!([0, 1, 2].map(|page| byte(page * PAGE)), [0, 7, 7]);
    memories.all[1].is_gone = true;
    memories.forget_gone().unwrap();
    assert_eq!([0, 1, 2].map(|page| byte(page * PAGE)), [0, 0, 7]);
    assert!(file.metadata().unwrap().blocks() < before);
}
