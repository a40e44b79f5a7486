//! Receiving many datagrams with one system call, and asking the kernel what it dropped.
#![allow(unsafe_code, reason = "recvmmsg, SO_MEMINFO and SO_RCVBUFFORCE have no safe wrapper")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams per system call.
const DATAGRAMS_MAX: usize = 64;
/// How many numbers `SO_MEMINFO` has.
const MEMINFO_LEN: usize = 9;

/// Room for the datagrams of one system call.
pub(crate) struct Batch {
    /// `DATAGRAMS_MAX` slots of `slot_bytes`.
    payloads: Vec<u8>,
    slot_bytes: usize,
    headers: Vec<Header>,
}

#[derive(Clone, Copy)]
struct Header {
    len: usize,
    truncated: bool,
    peer: Option<SocketAddr>,
}

/// One datagram.
pub(crate) struct Datagram<'a> {
    pub(crate) payload: &'a [u8],
    /// It was longer than its slot.
    pub(crate) truncated: bool,
    pub(crate) peer: Option<SocketAddr>,
}

impl Batch {
    pub(crate) fn new(datagram_bytes_max: usize) -> Self {
        Self {
            payloads: vec![0; DATAGRAMS_MAX * datagram_bytes_max],
            slot_bytes: datagram_bytes_max,
            headers: Vec::with_capacity(DATAGRAMS_MAX),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.headers.len()
    }

    pub(crate) fn datagram(&self, idx: usize) -> Datagram<'_> {
        let Header { len, truncated, peer } = self.headers[idx];
        let start = idx * self.slot_bytes;
        Datagram { payload: &self.payloads[start..start + len], truncated, peer }
    }
}

/// Replaces the contents of `batch` with what has arrived; `WouldBlock` if nothing has.
pub(crate) fn receive(socket: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<()> {
    batch.headers.clear();
    // SAFETY: all of these are plain C structs, for which all-zero bytes are a valid value.
    let (mut names, mut slots, mut messages): (
        [libc::sockaddr_storage; DATAGRAMS_MAX],
        [libc::iovec; DATAGRAMS_MAX],
        [libc::mmsghdr; DATAGRAMS_MAX],
    ) = unsafe { (zeroed(), zeroed(), zeroed()) };
    for (idx, payload) in batch.payloads.chunks_exact_mut(batch.slot_bytes).enumerate() {
        slots[idx] = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        let message = &mut messages[idx].msg_hdr;
        message.msg_name = (&raw mut names[idx]).cast();
        message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        message.msg_iov = &raw mut slots[idx];
        message.msg_iovlen = 1;
    }
    // SAFETY: each header points to one name and one slot, and each slot to its own part of `payloads`; all outlive
    // the call, and nothing else refers to them during it. The descriptor is borrowed, so it is open.
    let n = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            DATAGRAMS_MAX as libc::c_uint,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    for (message, name) in messages.iter().zip(&names).take(n) {
        batch.headers.push(Header {
            len: (message.msg_len as usize).min(batch.slot_bytes),
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            peer: address(name),
        });
    }
    Ok(())
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: `sockaddr_storage` is at least as large and as aligned as every address, and the family says
            // which one the kernel wrote.
            let v4 = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::from((ip, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}

/// How many datagrams the kernel has dropped at this socket since it was opened; wraps.
pub(crate) fn n_dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut numbers = [0u32; MEMINFO_LEN];
    let mut len = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `numbers`, which has that many, and says how many it wrote.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(numbers[libc::SK_MEMINFO_DROPS as usize])
}

/// Sets the receive buffer beyond the system's limit, which only a privileged process may.
pub(crate) fn force_receive_buffer(socket: BorrowedFd<'_>, n_bytes: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(n_bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is one `c_int`, which the kernel only reads.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
