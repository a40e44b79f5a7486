//! How many bytes of a connection the far end's kernel has not confirmed.
#![allow(unsafe_code, reason = "the kernel's answer is only to be had by ioctl")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Bytes written to the socket that the far end has not confirmed, those included that are not yet sent.
///
/// # Errors
/// If `fd` is no TCP socket.
pub(super) fn unconfirmed_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut n_bytes: libc::c_int = 0;
    // SAFETY: `fd` is open for as long as it is borrowed, and the kernel writes one int to a place that holds one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut n_bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(n_bytes).unwrap_or(0))
}
