//! The server's own memory.

/// Heaps of the process. The C library would make up to eight for each processor, and fill all of them in
/// time: more than a server that mostly waits has a use for.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Keeps the C library from making a heap for each thread. To be called before there are several.
#[cfg(target_env = "gnu")]
pub fn limit_heaps() {
    // SAFETY: mallopt(3) sets a parameter of the allocator. One that it does not take stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Does nothing: M_ARENA_MAX is glibc's own.
#[cfg(not(target_env = "gnu"))]
pub fn limit_heaps() {}

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

/// Does nothing: other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
