//! The server's own memory.

/// Gives what a conversation needed back to the kernel. The C library keeps it otherwise, for a next time
/// that may be days away, and in as many heaps as there were threads: megabytes of images.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: malloc_trim(3) touches nothing but what the allocator holds for free, under its own locks.
    // Whether there was anything to give back does not matter.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
