//! How the C library's allocator is set.
//!
//! Chunks and batches are a few hundred kilobytes to a few megabytes and live for a moment. By default glibc maps such
//! a block anew each time and gives freed memory back at once, so that every block costs page faults; these took a
//! tenth of the CPU time of an event.

#![allow(unsafe_code, reason = "the allocator's settings are a C function")]

/// Lets freed blocks stay with the process for the next ones: those up to 32 MiB, and up to 256 MiB in all.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed_blocks() {
    const SETTINGS: [(libc::c_int, libc::c_int); 3] = [
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, 256 << 20),
        (libc::M_TOP_PAD, 16 << 20),
    ];
    for (parameter, value) in SETTINGS {
        // SAFETY: `mallopt` takes two numbers, whatever they are; one that it does not like is without effect.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_blocks() {}
