//! How much memory the connections of a source may hold, and how many connections there may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that all connections of a source share. Nobody waits for them: who gets none must do with less, so that
/// connections which hold memory and never finish cannot stop the others.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    used: AtomicUsize,
    max: usize,
}

impl ByteBudget {
    pub(crate) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max: usize::try_from(max).unwrap_or(usize::MAX) })
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn try_take(&self, n_bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(n_bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

/// What one connection holds of a [`ByteBudget`]; given back on drop.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    budget: Arc<ByteBudget>,
    n_bytes: usize,
}

impl HeldBytes {
    pub(crate) fn none(budget: &Arc<ByteBudget>) -> Self {
        Self { budget: Arc::clone(budget), n_bytes: 0 }
    }

    /// Holds `n_bytes` from now on; false, and no change, if there is not that much left.
    pub(crate) fn resize(&mut self, n_bytes: usize) -> bool {
        if n_bytes > self.n_bytes && !self.budget.try_take(n_bytes - self.n_bytes) {
            return false;
        }
        self.shrink(n_bytes);
        self.n_bytes = n_bytes;
        true
    }

    /// Holds at most `n_bytes` from now on.
    pub(crate) fn shrink(&mut self, n_bytes: usize) {
        if n_bytes < self.n_bytes {
            self.budget.used.fetch_sub(self.n_bytes - n_bytes, Ordering::Relaxed);
            self.n_bytes = n_bytes;
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    PerIp,
    Total,
}

impl Full {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::PerIp => "max_connections_per_ip",
            Self::Total => "max_connections",
        }
    }
}

/// Counts connections, in total and per address.
#[derive(Debug)]
pub(crate) struct Gate {
    max: usize,
    per_ip_max: usize,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Gate {
    pub(crate) fn new(max: usize, per_ip_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_ip_max, open: Mutex::default() })
    }

    /// A place for a connection from `ip`, given back on drop.
    pub(crate) fn enter(self: &Arc<Self>, ip: Option<IpAddr>) -> Result<Slot, Full> {
        let ip = ip.map(network_of);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, per_ip) = &mut *open;
        if *total >= self.max {
            return Err(Full::Total);
        }
        if let Some(ip) = ip {
            let n = per_ip.entry(ip).or_default();
            if *n >= self.per_ip_max {
                return Err(Full::PerIp);
            }
            *n += 1;
        }
        *total += 1;
        Ok(Slot { gate: Arc::clone(self), ip })
    }
}

/// What counts as one address: an IPv6 host commands its whole /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<Gate>,
    ip: Option<IpAddr>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, per_ip) = &mut *open;
        *total -= 1;
        if let Some(ip) = self.ip
            && let Some(n) = per_ip.get_mut(&ip)
        {
            *n -= 1;
            if *n == 0 {
                per_ip.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_on_drop_and_never_exceed_the_budget() {
        let budget = ByteBudget::new(100);
        let mut a = HeldBytes::none(&budget);
        let mut b = HeldBytes::none(&budget);
        assert!(a.resize(60) && b.resize(40) && !b.resize(41));
        a.shrink(10);
        assert!(b.resize(90) && !a.resize(11));
        drop(b);
        assert_eq!(budget.used(), 10);
        assert!(a.resize(100));
        drop(a);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn connections_are_counted_per_address_and_in_total() {
        let gate = Gate::new(3, 2);
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let first = gate.enter(ip("10.0.0.1")).expect("room");
        let _second = gate.enter(ip("::ffff:10.0.0.1")).expect("room");
        assert_eq!(gate.enter(ip("10.0.0.1")).err(), Some(Full::PerIp));
        let _third = gate.enter(ip("2001:db8::1")).expect("room");
        assert_eq!(gate.enter(None).err(), Some(Full::Total));
        drop(first);
        let _fourth = gate.enter(ip("2001:db8::ffff")).expect("room");
        assert_eq!(gate.open.lock().unwrap().1.len(), 2);
    }
}
