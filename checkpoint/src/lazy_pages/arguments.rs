//! Arguments of processes, which others read: `/proc/PID/cmdline` is empty while its page is missing, since the kernel
//! does not wait for it there (`get_user_page_vma_remote` in `include/linux/mm.h`). It does in process_vm_readv(2).

use std::io::{self, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::images::PAGE;
use crate::procfs;

/// The most bytes of arguments and environment that a program can be started with: three quarters of `_STK_LIM`
/// (`bprm_stack_limits` in `fs/exec.c`). A process may name any addresses as theirs later (`PR_SET_MM`, prctl(2)).
const MOST: u64 = 6 << 20;

/// Waits until the arguments and environments of processes are in place.
///
/// # Errors
/// That of process_vm_readv(2), unless a process has ended.
pub fn fetch_arguments(pids: &[i32]) -> io::Result<()> {
    for &pid in pids {
        let Some((start, end)) = procfs::arguments(pid) else { continue };
        let end = end.min(start.saturating_add(MOST));
        for page in (start & !(PAGE - 1)..end).step_by(PAGE as usize) {
            let base = usize::try_from(page.max(start)).map_err(io::Error::other)?;
            let mut byte = [0; 1];
            let mut local = [IoSliceMut::new(&mut byte)];
            match process_vm_readv(Pid::from_raw(pid), &mut local, &[RemoteIoVec { base, len: 1 }])
            {
                Ok(_) | Err(Errno::ESRCH | Errno::EFAULT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}
