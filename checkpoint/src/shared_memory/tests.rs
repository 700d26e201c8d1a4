use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::*;

/// A segment of this process, unmapped in the end.
struct Mapping {
    file: File,
    at: std::ptr::NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    fn new(length: u64) -> Self {
        let descriptor: OwnedFd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(descriptor);
        file.set_len(length).unwrap();
        let whole = std::num::NonZeroUsize::new(length as usize).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let at = unsafe { mmap(None, whole, protection, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        Self { file, at, length: length as usize }
    }

    fn write(&self, place: usize, byte: u8) {
        // SAFETY: the place is within the mapping, or in the page in which it ends.
        unsafe { self.at.as_ptr().cast::<u8>().add(place).write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing uses the mapping any more.
        unsafe { munmap(self.at, self.length) }.unwrap();
    }
}

/// Runs of pages with their content, runs without, and the number of pages that the segment has.
type Seen = (Vec<(u64, Vec<u8>)>, Vec<(u64, u64)>, u64);

/// Looks at the segments of this process, and returns what has changed in one, sorted.
fn look(memory: &mut SharedMemory, segment: u32) -> Seen {
    memory.find(&[std::process::id() as i32], true).unwrap();
    let all = Mutex::new((Vec::new(), Vec::new()));
    let take = |changed: Changed| {
        if changed.segment == segment {
            let mut all = all.lock().unwrap();
            all.0.extend(changed.pages);
            all.1.extend(changed.empty);
        }
        Ok::<_, io::Error>(())
    };
    let contents = memory.changed(2, take).unwrap();
    let content = contents.iter().find(|content| content.segment == segment).unwrap();
    assert!(content.is_mapped);
    let (mut pages, empty) = all.into_inner().unwrap();
    pages.sort();
    (pages, empty, content.pages)
}

/// Needs CAP_SYS_ADMIN for the files of mappings; says so where it has none.
#[test]
fn every_way_to_write_is_seen() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    // Its last page is not whole.
    let mapping = Mapping::new((4 << 20) + 100);
    let segment = std::os::unix::fs::MetadataExt::ino(&mapping.file.metadata().unwrap()) as u32;
    let mut memory = SharedMemory::new().unwrap();
    mapping.write(0, 1);
    mapping.write(3 << 20, 2);
    let (pages, empty, count) = look(&mut memory, segment);
    let places: Vec<u64> = pages.iter().map(|page| page.0).collect();
    assert_eq!((&places[..], empty.len(), count), (&[0, 3 << 20][..], 0, 2));
    assert_eq!((pages[0].1.len(), pages[1].1[0]), (PAGE as usize, 2));
    assert_eq!(look(&mut memory, segment), (Vec::new(), Vec::new(), 2), "nothing has changed");
    // By write(2), by the mapping behind the end of the file, and from a page that follows another.
    mapping.file.write_all_at(&[3], PAGE).unwrap();
    mapping.write((4 << 20) + 4000, 4);
    let (pages, empty, count) = look(&mut memory, segment);
    let places: Vec<u64> = pages.iter().map(|page| page.0).collect();
    assert_eq!((&places[..], empty.len(), count), (&[PAGE, 4 << 20][..], 0, 4));
    assert_eq!(pages[1].1[4000], 4);
    mapping.write(0, 0);
    mapping.write(3 << 20, 0);
    let (pages, empty, count) = look(&mut memory, segment);
    assert_eq!((pages.len(), count), (0, 2));
    assert_eq!(empty.len(), 2);
    mapping.file.set_len(PAGE).unwrap();
    let (pages, empty, count) = look(&mut memory, segment);
    assert_eq!((pages.len(), count), (0, 0));
    assert_eq!(empty.iter().map(|part| part.1).sum::<u64>(), 2 * PAGE);
}
