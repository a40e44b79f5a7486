//! What the harness asks of the operating system beyond the standard library.

#![allow(unsafe_code, reason = "five system calls that the standard library does not have")]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The kernel kills the child when the thread that starts it ends, so that an interrupted harness leaves nothing behind.
pub fn dies_with_us(command: &mut Command) {
    let ask = || {
        // SAFETY: `prctl` with these arguments reads and writes no memory of ours; it may be called after `fork`.
        let answer = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure only makes a system call: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(ask) };
}

/// The child, and what it starts, runs on one core alone.
pub fn runs_on(command: &mut Command, core: usize) {
    // SAFETY: the closure only makes a system call: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || run_on(core)) };
}

/// The thread that calls this, and those that it starts, run on one core alone.
///
/// # Errors
/// If the system refuses, as for a core that is not there.
pub fn run_on(core: usize) -> std::io::Result<()> {
    // SAFETY: a set of cores is plain bits, for which all zero means none.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `CPU_SET` writes within the set, and panics for a core beyond it.
    unsafe { libc::CPU_SET(core, &mut cores) };
    // SAFETY: the set is valid, and as large as is said, for the time of the call.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Asks a process that this harness started to end.
pub fn terminate(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: `kill` takes two numbers. The process is a child that was not waited for, so its number is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Raises the number of files this process, and what it starts, may have open; returns the limit that now holds.
pub fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid `rlimit` for the time of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    if limit.rlim_cur < wanted {
        let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max.max(wanted) };
        // SAFETY: as above. Raising the hard limit needs a right that is not everyone's: then what is there must do.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            return wanted;
        }
        limit.rlim_cur = limit.rlim_max.min(wanted);
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    limit.rlim_cur
}

/// Clock ticks a second, in which `/proc` counts CPU time.
pub fn ticks_per_second() -> f64 {
    // SAFETY: `sysconf` takes a number and returns one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}
