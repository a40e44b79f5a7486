//! What came in epochs that are not complete yet.

use std::collections::BTreeMap;

use timely::progress::frontier::MutableAntichain;

/// What came, by epoch, until everything of the epoch is there. What is kept of an epoch holds the capabilities to say
/// something at it.
#[derive(Debug)]
pub struct OpenEpochs<T>(BTreeMap<u64, T>);

impl<T> Default for OpenEpochs<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> OpenEpochs<T> {
    /// What came in an epoch; `new` makes it when the first of it comes.
    pub fn at(&mut self, epoch: u64, new: impl FnOnce() -> T) -> &mut T {
        self.0.entry(epoch).or_insert_with(new)
    }

    /// The oldest epoch.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    /// Takes out the oldest epoch, if nothing of it comes any more: the [`frontier`] is behind it.
    pub fn pop_complete(&mut self, frontier: Option<u64>) -> Option<(u64, T)> {
        let is_complete = |epoch: u64| frontier.is_none_or(|frontier| epoch < frontier);
        self.0.first_entry().filter(|entry| is_complete(*entry.key())).map(|entry| entry.remove_entry())
    }
}

/// The first epoch of which something may still come, on any of an operator's inputs; `None` if nothing comes any more.
#[must_use]
pub fn frontier<'a>(inputs: impl IntoIterator<Item = &'a MutableAntichain<u64>>) -> Option<u64> {
    inputs.into_iter().filter_map(|input| input.frontier().first().copied()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_leave_in_order_when_the_frontier_is_behind_them() {
        let mut open = OpenEpochs::default();
        for (epoch, item) in [(5, 'b'), (3, 'a'), (5, 'c')] {
            open.at(epoch, Vec::new).push(item);
        }
        assert_eq!(open.first(), Some(3));
        assert_eq!(open.pop_complete(Some(3)), None);
        assert_eq!(open.pop_complete(Some(5)), Some((3, vec!['a'])));
        assert_eq!(open.pop_complete(Some(5)), None);
        assert_eq!(open.pop_complete(None), Some((5, vec!['b', 'c'])));
        assert_eq!(open.pop_complete(None), None);
    }
}
