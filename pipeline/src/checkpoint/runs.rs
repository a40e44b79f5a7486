//! Which runs of a table are merged when, and which need not be kept.
//!
//! A run is merged with those behind it when together they have as many rows as it has, and there are at least four:
//! a row is then written again about as often as the table has doubled, and there are about as many runs.

use std::ops::Range;

use logdrive_operators::flow::SHARDS;

use super::manifest::{Dropped, Run, Span};

/// Fewer runs are not worth a merge.
const FAN_IN: usize = 4;
/// So many rows that nobody needs may lie in a table of any size.
const DEAD_ROWS: u64 = 65_536;

/// How many entries a run has.
fn weight(run: &Run) -> u64 {
    run.rows + run.removed
}

/// The runs that are to become one, if any. The first `n_busy` are being merged already.
pub(super) fn due(runs: &[Run], n_busy: usize) -> Option<Range<usize>> {
    let dead: u64 = (0..runs.len()).map(|idx| n_dead(runs, idx)).sum();
    let all: u64 = runs.iter().map(weight).sum();
    if n_busy == 0 && dead > DEAD_ROWS.max(all / 2) {
        return Some(0..runs.len());
    }
    let mut newer = 0;
    let mut first = runs.len();
    while first > n_busy && (first == runs.len() || weight(&runs[first - 1]) <= newer) {
        first -= 1;
        newer += weight(&runs[first]);
    }
    (runs.len() - first >= FAN_IN).then_some(first..runs.len())
}

/// How many rows of a run later ones have dropped, as far as that is known.
fn n_dead(runs: &[Run], idx: usize) -> u64 {
    let later = &runs[idx + 1..];
    if later.iter().any(|run| run.cleared.contains(&EVERYWHERE)) {
        return runs[idx].rows;
    }
    let Some(partitions) = &runs[idx].partitions else { return 0 };
    let is_dropped = |partition: i64| {
        later.iter().any(|run| run.dropped.binary_search(&Dropped(partition, EVERYWHERE)).is_ok())
    };
    partitions.iter().filter(|(partition, _)| is_dropped(**partition)).map(|(_, n_rows)| n_rows).sum()
}

const EVERYWHERE: Span = Span(0, SHARDS);

/// Takes away runs that say nothing any more. The first `n_busy` stay.
pub(super) fn prune(runs: &mut Vec<Run>, n_busy: usize) {
    let mut idx = n_busy;
    while idx < runs.len() {
        // A key that was removed may be in an older run.
        let is_first = idx == 0;
        let says_nothing = n_dead(runs, idx) == runs[idx].rows && (is_first || runs[idx].removed == 0);
        let is_last = idx + 1 == runs.len();
        if says_nothing && (is_first || !is_last || is_silent(&runs[idx])) {
            let run = runs.remove(idx);
            // What it dropped of older runs the next one drops: its own rows are none of those.
            if let Some(next) = runs.get_mut(idx).filter(|_| !is_first) {
                (next.cleared, next.dropped) = joined(
                    next.cleared.iter().chain(&run.cleared).copied().collect(),
                    next.dropped.iter().chain(&run.dropped).copied().collect(),
                );
            }
        } else {
            idx += 1;
        }
    }
    if let Some(first) = runs.first_mut().filter(|_| n_busy == 0) {
        first.cleared.clear();
        first.dropped.clear();
    }
}

fn is_silent(run: &Run) -> bool {
    run.rows + run.removed == 0 && run.cleared.is_empty() && run.dropped.is_empty()
}

/// What is cleared and dropped, with shards that lie side by side as one span.
pub(super) fn joined(mut cleared: Vec<Span>, mut dropped: Vec<Dropped>) -> (Vec<Span>, Vec<Dropped>) {
    cleared.sort_unstable();
    cleared.dedup_by(|next, span| grow(span, *next));
    dropped.sort_unstable();
    dropped.dedup_by(|next, kept| next.0 == kept.0 && grow(&mut kept.1, next.1));
    (cleared, dropped)
}

fn grow(span: &mut Span, next: Span) -> bool {
    let touches = next.0 <= span.1;
    if touches {
        span.1 = span.1.max(next.1);
    }
    touches
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn run(n_rows: u64) -> Run {
        Run { rows: n_rows, ..Run::default() }
    }

    #[test]
    fn runs_stay_few_and_rows_are_seldom_written_again() {
        let (mut runs, mut n_written) = (Vec::new(), 0);
        for n in 1..=10_000 {
            runs.push(run(10));
            n_written += 10;
            if let Some(range) = due(&runs, 0) {
                let rows = runs[range.clone()].iter().map(|run| run.rows).sum();
                n_written += rows;
                runs.splice(range, [run(rows)]);
            }
            assert!(runs.len() <= 20, "{} runs after {n} cuts", runs.len());
        }
        assert!(n_written <= 12 * 100_000, "{n_written} rows written for 100000");
    }

    #[test]
    fn windows_that_have_passed_cost_nothing() {
        let mut runs = Vec::new();
        for window in 0..1_000i64 {
            let partitions = Some(BTreeMap::from([(window, 5), (window - 1, 5)]));
            let dropped = vec![Dropped(window - 2, EVERYWHERE)];
            runs.push(Run { rows: 10, partitions, dropped, ..Run::default() });
            prune(&mut runs, 0);
            assert!(runs.len() <= 3, "{runs:?}");
            assert!(runs[0].dropped.is_empty());
        }
    }

    #[test]
    fn what_is_being_merged_stays() {
        let mut runs: Vec<Run> = (0..6).map(|_| run(10)).collect();
        assert_eq!(due(&runs, 0), Some(0..6));
        assert_eq!(due(&runs, 3), None);
        runs.push(run(10));
        assert_eq!(due(&runs, 3), Some(3..7));
        runs.push(Run { cleared: vec![EVERYWHERE], ..Run::default() });
        prune(&mut runs, 3);
        assert_eq!(runs.len(), 4);
        prune(&mut runs, 0);
        assert_eq!(runs.len(), 0);
    }

    #[test]
    fn shards_of_all_workers_make_a_whole() {
        let spans = vec![Span(600, 1024), Span(0, 300), Span(300, 600)];
        let dropped = spans.iter().map(|span| Dropped(7, *span)).chain([Dropped(8, Span(0, 10))]).collect();
        let expected = (vec![EVERYWHERE], vec![Dropped(7, EVERYWHERE), Dropped(8, Span(0, 10))]);
        assert_eq!(joined(spans, dropped), expected);
    }
}
