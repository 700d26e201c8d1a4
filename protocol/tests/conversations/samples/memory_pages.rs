//! Samples of the messages about memory.

use super::*;

pub(super) fn all() -> Vec<Message> {
    vec![
        Message::MemoryPages(MemoryPages {
            process: 300,
            runs: vec![MemoryRun { start: 0x7000, bytes: Bytes::from_static(&[9; 4]) }],
        }),
        Message::EmptyPages(EmptyPages {
            process: 300,
            runs: vec![EmptyRun { start: 0x9000, length: 0x2000 }],
        }),
        Message::MemoryLater(LaterPages {
            process: 300,
            ranges: vec![(0x7000, 0x9000), (0x7fff_0000_0000, 0x7fff_0000_1000)],
        }),
        Message::ServeMemory(ServeMemory { migration: MIGRATION, is_urgent: true }),
        Message::MemoryWanted(vec![WantedPages { process: 300, start: 0x7000, end: 0x9000 }]),
        Message::MemorySent(()),
        Message::MemoryGone(()),
        Message::MemoryWhole(true),
        Message::MemoryWhole(false),
        Message::ServingMemory(()),
        Message::SharedPages(SharedPages {
            segment: 70_000,
            runs: vec![MemoryRun { start: 0x3000, bytes: Bytes::from_static(&[8; 4]) }],
        }),
        Message::SharedEmpty(SharedEmpty {
            segment: 70_000,
            runs: vec![EmptyRun { start: 0x5000, length: 0x2000 }],
        }),
        Message::SharedEnd(vec![SharedSegment { segment: 70_000, pages: 12, is_mapped: true }]),
    ]
}
