//! Threads that were dumped in a system call, set back to its beginning (see [`crate::syscall_restart`]).
//!
//! Each thread has an image of its own, `core-ID.img`, with its registers. The pending signals of a whole process are in
//! the image of its first thread, and `pstree.img` lists the threads of each process. Images of processors other than
//! x86-64, and of 32-bit programs, are left as they are.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::Error;
use super::tmpfs::io_error;
use crate::protobuf::{MAGIC, Value, put_field, take, take_field, take_varint, take_word};
use crate::syscall_restart::{EINTR, Registers, signal_set, takes_any};

/// The image that tells the threads of each process.
pub(super) const PROCESSES: &str = "pstree.img";
/// Numbers of fields (CRIU's `pstree.proto`).
const PROCESS: u64 = 1;
const THREADS: u64 = 5;
/// Numbers of fields (CRIU's `core.proto`) and the value for x86-64.
const MACHINE: u64 = 1;
const X86_64: u64 = 1;
const THREAD_INFO: u64 = 2;
const PROCESS_CORE: u64 = 3;
const SHARED_SIGNALS: u64 = 10;
const THREAD_CORE: u64 = 5;
const BLOCKED: u64 = 6;
const OWN_SIGNALS: u64 = 9;
/// Numbers of fields (CRIU's `core-x86.proto`) and the value for 32-bit programs.
const REGISTERS: u64 = 2;
const AX: u64 = 11;
const DX: u64 = 13;
const SI: u64 = 14;
const DI: u64 = 15;
const ORIG_AX: u64 = 16;
const IP: u64 = 17;
const MODE: u64 = 28;
const COMPAT: u64 = 2;
/// Numbers of fields (CRIU's `siginfo.proto`).
const SIGNAL: u64 = 1;
const SIGNAL_INFO: u64 = 1;

/// Sets the calls back in which threads were dumped; returns how many there were. The directory holds whole
/// images.
///
/// # Errors
/// [`Error::Io`], or [`Error::Differs`] for an image that is none.
pub fn rewind_calls(directory: &Path) -> Result<usize, Error> {
    let differs = |name: &str| Error::Differs { name: name.to_owned(), problem: "format" };
    let path = directory.join(PROCESSES);
    let tree = fs::read(&path).map_err(io_error("read", &path))?;
    let tree = processes(&tree).ok_or_else(|| differs(PROCESSES))?;
    let mut changed = 0;
    for (process, threads) in tree {
        let mut shared = 0;
        // The first thread comes first: what waits for the process is known by then.
        let others = threads.into_iter().filter(|thread| *thread != process);
        for thread in std::iter::once(process).chain(others) {
            let name = format!("core-{thread}.img");
            let path = directory.join(&name);
            let image = match fs::read(&path) {
                // A process that had ended has no image of its threads.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                image => image.map_err(io_error("read", &path))?,
            };
            let core = Core::of(&image).ok_or_else(|| differs(&name))?;
            shared |= core.shared_signals;
            if let Some(image) = core.rewound(shared).ok_or_else(|| differs(&name))? {
                fs::write(&path, image).map_err(io_error("write", &path))?;
                changed += 1;
            }
        }
    }
    Ok(changed)
}

/// Returns the processes and their threads.
pub(super) fn processes(mut image: &[u8]) -> Option<HashMap<u64, Vec<u64>>> {
    take_head(&mut image)?;
    let mut tree = HashMap::new();
    while !image.is_empty() {
        let length = take_word(&mut image)?;
        let mut entry = take(&mut image, length.into())?;
        let (mut process, mut threads) = (None, Vec::new());
        while !entry.is_empty() {
            match take_field(&mut entry)? {
                (PROCESS, Value::Varint(number)) => process = Some(number),
                (THREADS, Value::Varint(number)) => threads.push(number),
                (THREADS, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        threads.push(take_varint(&mut packed)?);
                    }
                }
                _ => {}
            }
        }
        tree.insert(process?, threads);
    }
    Some(tree)
}

/// What a thread's image has of its call.
struct Core<'a> {
    image: &'a [u8],
    entry: &'a [u8],
    is_native: bool,
    registers: Registers,
    blocked: u64,
    own_signals: u64,
    shared_signals: u64,
}

impl<'a> Core<'a> {
    fn of(image: &'a [u8]) -> Option<Self> {
        let mut rest = image;
        take_head(&mut rest)?;
        let length = take_word(&mut rest)?;
        let entry = take(&mut rest, length.into())?;
        let mut core = Self {
            image,
            entry,
            is_native: false,
            registers: Registers::default(),
            blocked: 0,
            own_signals: 0,
            shared_signals: 0,
        };
        each(entry, |number, value| match (number, value) {
            (MACHINE, Value::Varint(machine)) => {
                core.is_native = machine == X86_64;
                Some(())
            }
            (THREAD_INFO, Value::Bytes(info)) => {
                each(info, |number, value| match (number, value) {
                    (REGISTERS, Value::Bytes(registers)) => core.read_registers(registers),
                    _ => Some(()),
                })
            }
            (PROCESS_CORE, Value::Bytes(process)) => each(process, |number, value| {
                if let (SHARED_SIGNALS, Value::Bytes(queue)) = (number, value) {
                    core.shared_signals |= signals(queue)?;
                }
                Some(())
            }),
            (THREAD_CORE, Value::Bytes(thread)) => each(thread, |number, value| {
                match (number, value) {
                    (BLOCKED, Value::Varint(set)) => core.blocked = set,
                    (OWN_SIGNALS, Value::Bytes(queue)) => core.own_signals |= signals(queue)?,
                    _ => {}
                }
                Some(())
            }),
            _ => Some(()),
        })?;
        Some(core)
    }

    fn read_registers(&mut self, registers: &[u8]) -> Option<()> {
        let Registers { ax, orig_ax, ip, di, si, dx } = &mut self.registers;
        let is_native = &mut self.is_native;
        each(registers, |number, value| {
            let Value::Varint(value) = value else { return Some(()) };
            match number {
                AX => *ax = value,
                ORIG_AX => *orig_ax = value,
                IP => *ip = value,
                DI => *di = value,
                SI => *si = value,
                DX => *dx = value,
                MODE => *is_native &= value != COMPAT,
                _ => {}
            }
            Some(())
        })
    }

    /// Returns the image with the call set back, given what waits for the whole process; `Some(None)` if it
    /// stays.
    fn rewound(&self, shared: u64) -> Option<Option<Vec<u8>>> {
        let Self { image, entry, registers, .. } = self;
        if !self.is_native
            || registers.ax != EINTR
            || takes_any(self.own_signals | shared, self.blocked)
        {
            return Some(None);
        }
        let Some(after) = registers.rewound() else { return Some(None) };
        let entry_after = with(entry, THREAD_INFO, |info| {
            with(info, REGISTERS, |registers| {
                let mut all = Vec::with_capacity(registers.len());
                each(registers, |number, value| {
                    let value = match number {
                        AX => Value::Varint(after.ax),
                        IP => Value::Varint(after.ip),
                        _ => value,
                    };
                    put_field(&mut all, number, value);
                    Some(())
                })?;
                Some(all)
            })
        })?;
        let (head, tail) = (image.get(..8)?, image.get(12 + entry.len()..)?);
        let length = u32::try_from(entry_after.len()).ok()?.to_le_bytes();
        Some(Some([head, &length, &entry_after, tail].concat()))
    }
}

/// Takes the two magic numbers.
fn take_head(image: &mut &[u8]) -> Option<()> {
    let head = take(image, 8)?;
    (head[..4] == MAGIC.to_le_bytes()).then_some(())
}

/// Hands each field on.
fn each<'a>(
    mut entry: &'a [u8],
    mut field: impl FnMut(u64, Value<'a>) -> Option<()>,
) -> Option<()> {
    while !entry.is_empty() {
        let (number, value) = take_field(&mut entry)?;
        field(number, value)?;
    }
    Some(())
}

/// Returns an entry with one of the entries within it replaced.
fn with(entry: &[u8], within: u64, replace: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut all = Vec::with_capacity(entry.len());
    each(entry, |number, value| {
        match value {
            Value::Bytes(bytes) if number == within => {
                put_field(&mut all, number, Value::Bytes(&replace(bytes)?));
            }
            value => put_field(&mut all, number, value),
        }
        Some(())
    })?;
    Some(all)
}

/// Returns the signals of a queue. Each is a `siginfo_t`, which begins with the signal's number.
fn signals(queue: &[u8]) -> Option<u64> {
    let mut set = 0;
    each(queue, |number, value| match (number, value) {
        (SIGNAL, Value::Bytes(signal)) => each(signal, |number, value| {
            if let (SIGNAL_INFO, Value::Bytes(mut info)) = (number, value) {
                set |= signal_set(take_word(&mut info)? as i32);
            }
            Some(())
        }),
        _ => Some(()),
    })?;
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOSLEEP: u64 = 35;

    fn entry(fields: &[(u64, Value<'_>)]) -> Vec<u8> {
        let mut entry = Vec::new();
        fields.iter().for_each(|(number, value)| put_field(&mut entry, *number, *value));
        entry
    }

    fn image(entry: &[u8]) -> Vec<u8> {
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        image.extend((entry.len() as u32).to_le_bytes());
        image.extend(entry);
        image
    }

    fn queue(signal: i32) -> Vec<u8> {
        let info = [&signal.to_le_bytes()[..], &[0; 124]].concat();
        let one = entry(&[(SIGNAL_INFO, Value::Bytes(&info))]);
        entry(&[(SIGNAL, Value::Bytes(&one))])
    }

    struct Thread {
        ax: u64,
        orig_ax: u64,
        ip: u64,
        mode: u64,
        blocked: u64,
        own: Option<i32>,
        shared: Option<i32>,
    }

    const SLEEPER: Thread = Thread {
        ax: EINTR,
        orig_ax: NANOSLEEP,
        ip: 0x40_1002,
        mode: 1,
        blocked: 0,
        own: None,
        shared: None,
    };

    impl Thread {
        fn image(&self) -> Vec<u8> {
            let registers = entry(&[
                (1, Value::Varint(7)),
                (AX, Value::Varint(self.ax)),
                (DI, Value::Varint(0x7fff_0000_0000)),
                (ORIG_AX, Value::Varint(self.orig_ax)),
                (IP, Value::Varint(self.ip)),
                (MODE, Value::Varint(self.mode)),
            ]);
            let info = entry(&[
                (1, Value::Varint(9)),
                (REGISTERS, Value::Bytes(&registers)),
                (3, Value::Bytes(b"\x08\x01")),
            ]);
            let own = self.own.map(queue).unwrap_or_default();
            let shared = self.shared.map(queue).unwrap_or_default();
            image(&entry(&[
                (MACHINE, Value::Varint(X86_64)),
                (THREAD_INFO, Value::Bytes(&info)),
                (PROCESS_CORE, Value::Bytes(&entry(&[(SHARED_SIGNALS, Value::Bytes(&shared))]))),
                (
                    THREAD_CORE,
                    Value::Bytes(&entry(&[
                        (BLOCKED, Value::Varint(self.blocked)),
                        (OWN_SIGNALS, Value::Bytes(&own)),
                    ])),
                ),
            ]))
        }
    }

    /// Images of a process with these threads, after all; and how many have changed.
    fn rewound(threads: &[Thread]) -> (Vec<Vec<u8>>, usize) {
        let directory = tempfile::tempdir().unwrap();
        let numbers: Vec<u64> = (1..=threads.len() as u64).collect();
        let mut tree = vec![(PROCESS, Value::Varint(1))];
        tree.extend(numbers.iter().map(|number| (THREADS, Value::Varint(*number))));
        fs::write(directory.path().join(PROCESSES), image(&entry(&tree))).unwrap();
        let path = |number: &u64| directory.path().join(format!("core-{number}.img"));
        for (number, thread) in numbers.iter().zip(threads) {
            fs::write(path(number), thread.image()).unwrap();
        }
        let changed = rewind_calls(directory.path()).unwrap();
        (numbers.iter().map(|number| fs::read(path(number)).unwrap()).collect(), changed)
    }

    #[test]
    fn a_sleeper_sleeps_again_and_nothing_else_of_it_changes() {
        let awake = Thread { ax: 0, ..SLEEPER };
        let (images, changed) = rewound(&[SLEEPER, awake]);
        assert_eq!(changed, 1);
        assert_eq!(images[0], Thread { ax: NANOSLEEP, ip: 0x40_1000, ..SLEEPER }.image());
        assert_eq!(images[1], Thread { ax: 0, ..SLEEPER }.image());
    }

    #[test]
    fn one_whom_a_signal_has_woken_stays_awake() {
        let signal = 15;
        let blocked = signal_set(signal);
        for (thread, stays) in [
            (Thread { own: Some(signal), ..SLEEPER }, true),
            (Thread { shared: Some(signal), ..SLEEPER }, true),
            (Thread { own: Some(signal), blocked, ..SLEEPER }, false),
            (Thread { orig_ax: u64::MAX, ..SLEEPER }, true),
            (Thread { mode: COMPAT, ..SLEEPER }, true),
        ] {
            let before = thread.image();
            let (images, changed) = rewound(&[thread]);
            assert_eq!(images[0] == before, stays);
            assert_eq!(changed, usize::from(!stays));
        }
        let woken = rewound(&[Thread { shared: Some(signal), blocked, ..SLEEPER }, SLEEPER]);
        assert_eq!(woken.1, 1, "the first blocks the signal, and the second gets it");
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let whole = SLEEPER.image();
        for end in 0..whole.len() {
            assert!(Core::of(&whole[..end]).is_none(), "cut at {end}");
        }
    }
}
