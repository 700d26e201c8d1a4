//! A shared object that `netmig-shim` has the dynamic linker load into CRIU for a dump (`LD_PRELOAD`, ld.so(8)). It saves
//! CRIU two walks over the kernel's whole table of connections, and the start of three programs (module `tmpfs_archive`), and
//! keeps it from dumping shared memory that goes another way (module `shared_memory`).
//!
//! In a dump CRIU lists the connections that the kernel tracks in the container's network namespace, and then their
//! expectations, for which it sends the same request once more (`dump_nf_ct` in `criu/net.c`). The kernel has one hash table
//! for all namespaces, of 262,144 buckets on a machine with 4 GiB of memory and more, and locks each of them in turn
//! (`ctnetlink_dump_table` in `net/netfilter/nf_conntrack_netlink.c`). That takes 3 to 10 ms each time, although a container
//! without rules of its own has no entry at all.
//!
//! This object takes the place of the C library's `sendmsg`. If the request is exactly that one, and the kernel counts no
//! entry in the namespace, it asks for the entries that are about to be destroyed instead: a list of the namespace's own, at
//! once empty. The answer is the kernel's, of the form that CRIU expects. Everything else goes to the kernel as it is.

mod request;
mod shared_memory;
mod tmpfs_archive;

use std::ffi::CStr;

use libc::{c_char, c_int, c_void, msghdr, ssize_t};

/// Runs when CRIU is started. The programs that CRIU runs itself, tar(1) for one, are not to load this object.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = leave_environment;

/// Longest time that the kernel may take to count, in seconds.
const PATIENCE: libc::time_t = 1;

/// Removes the variable that has loaded this object, unless it names others as well.
extern "C" fn leave_environment() {
    const VARIABLE: &CStr = c"LD_PRELOAD";
    if let Some(path) = std::env::var_os(shared_memory::VARIABLE) {
        shared_memory::read(&path);
        // SAFETY: the process has one thread still.
        unsafe { std::env::remove_var(shared_memory::VARIABLE) };
    }
    // SAFETY: the process has one thread still, and the string that getenv(3) returns is not kept.
    unsafe {
        let value = libc::getenv(VARIABLE.as_ptr());
        if !value.is_null() && !CStr::from_ptr(value).to_bytes().contains(&b':') {
            libc::unsetenv(VARIABLE.as_ptr());
        }
    }
}

/// Sends a message on a socket, as sendmsg(2) does.
///
/// # Safety
/// That of sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(socket: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller passes what sendmsg(2) takes, or a null pointer.
    if let Some(replaced) = unsafe { replaced(message) } {
        let mut part = libc::iovec {
            iov_base: replaced.as_ptr().cast::<c_void>().cast_mut(),
            iov_len: replaced.len(),
        };
        // SAFETY: the message is whole, as above; the copy differs in its one part, which outlives the call.
        let mut copy = unsafe { *message };
        copy.msg_iov = &raw mut part;
        // SAFETY: sendmsg(2) with a whole message.
        return unsafe { send(socket, &raw const copy, flags) };
    }
    // SAFETY: sendmsg(2) with what the caller passes.
    unsafe { send(socket, message, flags) }
}

/// Moves the place in a file, as lseek(2) does.
///
/// # Safety
/// That of lseek(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lseek64(file: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == libc::SEEK_DATA && shared_memory::is_left_out(file) {
        // SAFETY: the C library returns the place of this thread's error number.
        unsafe { *libc::__errno_location() = libc::ENXIO };
        return -1;
    }
    // SAFETY: the system call takes numbers alone. The C library's function of that name is this object's own.
    unsafe { libc::syscall(libc::SYS_lseek, file, offset, whence) }
}

/// Becomes another program, as execvp(3) does. In place of the one with which CRIU archives a file system, this process writes the
/// archive itself if it can, and ends.
///
/// # Safety
/// That of execvp(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: *const *const c_char) -> c_int {
    // SAFETY: the caller passes what execvp(3) takes.
    if unsafe { is_archiving(arguments) } {
        // What is written comes from memory: nothing has been written if there is no archive.
        if let Ok(archive) = tmpfs_archive::of(tmpfs_archive::passed_directory()) {
            let written = tmpfs_archive::write_to(libc::STDOUT_FILENO, &archive);
            // SAFETY: this process was forked to become another program, and has nothing to end.
            unsafe { libc::_exit(written.is_err().into()) };
        }
    }
    // SAFETY: the C library has a function of this name and type.
    let own: Option<unsafe extern "C" fn(*const c_char, *const *const c_char) -> c_int> =
        unsafe { std::mem::transmute(libc::dlsym(libc::RTLD_NEXT, c"execvp".as_ptr())) };
    match own {
        // SAFETY: that of the caller.
        Some(own) => unsafe { own(file, arguments) },
        None => -1,
    }
}

/// Returns whether arguments are those by which CRIU archives a file system.
///
/// # Safety
/// They are strings, and end with a null pointer.
unsafe fn is_archiving(arguments: *const *const c_char) -> bool {
    // SAFETY: that of the caller.
    let at = |index| unsafe { *arguments.add(index) };
    let all = (0..).map(at).take_while(|argument| !argument.is_null());
    // SAFETY: that of the caller.
    tmpfs_archive::is_command(all.map(|argument| unsafe { CStr::from_ptr(argument) }))
}

/// Makes the system call. The C library's function of that name is this object's own.
unsafe fn send(socket: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: that of the caller. The number is what sendmsg(2) returns, and errno is set.
    unsafe { libc::syscall(libc::SYS_sendmsg, socket, message, flags) as ssize_t }
}

/// Returns the request to send in place of a message's, if it asks for the connections of a namespace that has none.
///
/// # Safety
/// The message is whole, or a null pointer.
unsafe fn replaced(message: *const msghdr) -> Option<[u8; request::LENGTH]> {
    // SAFETY: that of the caller.
    let message = unsafe { message.as_ref() }?;
    if message.msg_iovlen != 1 || message.msg_iov.is_null() || message.msg_controllen != 0 {
        return None;
    }
    // SAFETY: the message has one part.
    let part = unsafe { *message.msg_iov };
    if part.iov_len != request::LENGTH || part.iov_base.is_null() {
        return None;
    }
    // SAFETY: the part has as many bytes, which any bytes may be.
    let bytes = unsafe { *part.iov_base.cast::<[u8; request::LENGTH]>() };
    let replaced = request::without_entries(&bytes)?;
    (count()? == 0).then_some(replaced)
}

/// Returns how many connections the kernel tracks in this network namespace.
fn count() -> Option<u32> {
    // SAFETY: socket(2) takes numbers alone.
    let socket = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if socket < 0 {
        return None;
    }
    let counted = ask(socket);
    // SAFETY: the descriptor is this function's own.
    unsafe { libc::close(socket) };
    counted
}

fn ask(socket: c_int) -> Option<u32> {
    let limit = libc::timeval { tv_sec: PATIENCE, tv_usec: 0 };
    let question = request::count();
    let mut answer = [0_u8; 512];
    // SAFETY: setsockopt(2), send(2) and recv(2) with buffers of the lengths that are named.
    let length = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const limit).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        );
        if libc::send(socket, question.as_ptr().cast(), question.len(), 0) < 0 {
            return None;
        }
        libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    request::counted(answer.get(..usize::try_from(length).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netmig::flow::{Conntrack, Flow, Protocol, Tuple, Zone};
    use nix::sched::{CloneFlags, unshare};

    /// Asks for all entries as CRIU does. Returns the types of the messages of the answer.
    fn ask_as_criu() -> Vec<u16> {
        let mut request = [0_u8; request::LENGTH];
        request[..4].copy_from_slice(&20_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&0x101_u16.to_ne_bytes());
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        request[8..12].copy_from_slice(&24680_u32.to_ne_bytes());
        let mut part =
            libc::iovec { iov_base: request.as_mut_ptr().cast(), iov_len: request.len() };
        // SAFETY: all zero is a message without name and control data.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let mut answer = [0_u8; 4096];
        let mut kinds = Vec::new();
        // SAFETY: system calls with buffers of the lengths that are named.
        unsafe {
            let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER);
            assert_eq!(sendmsg(socket, &raw const message, 0), 20);
            while kinds.last() != Some(&(libc::NLMSG_DONE as u16)) {
                let length = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
                assert!(length >= 16, "{length}");
                assert_eq!(answer[8..12], 24680_u32.to_ne_bytes());
                kinds.push(u16::from_ne_bytes([answer[4], answer[5]]));
            }
            libc::close(socket);
        }
        assert_eq!(request[4], 1, "the caller's bytes stay");
        kinds
    }

    /// Needs CAP_NET_ADMIN and CAP_SYS_ADMIN for a network namespace of its own; says so where it has none.
    #[test]
    fn entries_are_listed_where_there_are_some() {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skipped: not root");
            return;
        }
        assert_eq!(count(), Some(0));
        assert_eq!(ask_as_criu(), [libc::NLMSG_DONE as u16]);
        let original = Tuple {
            source: [192, 0, 2, 3].into(),
            destination: [192, 0, 2, 4].into(),
            source_port: 1,
            destination_port: 2,
        };
        let flow = Flow {
            protocol: Protocol::Udp,
            original,
            reply: original.inverse(),
            status: 0x0e,
            timeout: 600,
            mark: 0,
            zone: Zone::default(),
            tcp: None,
        };
        Conntrack::open().unwrap().create(&[flow]).unwrap();
        assert_eq!(count(), Some(1));
        assert_eq!(ask_as_criu(), [0x100, libc::NLMSG_DONE as u16]);
    }
}
