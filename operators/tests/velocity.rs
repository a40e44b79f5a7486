//! `velocity` as a whole: against a naive computation, on several workers, over checkpoints, with bad input.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};

use harness::{BASE_EPOCH, Epochs, Event, Outcome, Rng, Run, at, cut_into_epochs};

const SECOND: i64 = 1_000_000;

/// What the naive computation is told.
#[derive(Clone, Copy, Debug)]
struct Naive {
    measure: &'static str,
    window: i64,
    threshold: f64,
    cooldown: i64,
}

impl Naive {
    fn yaml(&self) -> String {
        let measure = match self.measure {
            "count" => String::new(),
            other => format!(", {other}: amount"),
        };
        let Self { window, threshold, cooldown, .. } = self;
        format!("{{by: [card], window: {window}us, threshold: {threshold}, cooldown: {cooldown}us{measure}}}")
    }

    /// The first violation in each sixteenth of the cool-down, among all rows of a key.
    fn violations(&self, rows: &BTreeSet<(i64, u64, u64)>, amounts: &BTreeMap<u64, i64>) -> Vec<(i64, u64)> {
        let rows: Vec<_> = rows.iter().collect();
        let mut found: Vec<(i64, u64)> = Vec::new();
        for (idx, (time, _, id)) in rows.iter().enumerate() {
            let amounts =
                rows[..=idx].iter().filter(|(t, ..)| *t > time - self.window).map(|(_, _, id)| amounts[id]);
            let value = match self.measure {
                "count" => amounts.count() as i64,
                "sum" => amounts.sum(),
                _ => amounts.collect::<BTreeSet<_>>().len() as i64,
            };
            let step = |time: i64| time.div_euclid((self.cooldown / 16).max(1));
            let is_first = found.last().is_none_or(|(last, _)| step(*last) != step(*time));
            if value as f64 >= self.threshold && is_first {
                found.push((*time, *id));
            }
        }
        found
    }

    /// Key and end of the window of each finding: all violations anew after each epoch, over all rows so far.
    fn findings(&self, epochs: &Epochs) -> BTreeSet<(String, i64)> {
        let mut rows: BTreeMap<String, BTreeSet<(i64, u64, u64)>> = BTreeMap::new();
        let mut amounts = BTreeMap::new();
        let mut known: BTreeMap<String, BTreeSet<(i64, u64)>> = BTreeMap::new();
        let mut told: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let mut findings = BTreeSet::new();
        for events in epochs.values() {
            let mut touched = BTreeSet::new();
            for event in events {
                let amount = event.amount.or((self.measure == "count").then_some(0));
                let (Some(card), Some(amount)) = (&event.card, amount) else { continue };
                let id = event.partition << 32 | event.offset;
                amounts.insert(id, amount);
                rows.entry(card.clone()).or_default().insert((event.at, event.partition, id));
                touched.insert(card.clone());
            }
            for card in touched {
                let all = self.violations(&rows[&card], &amounts);
                let known = known.entry(card.clone()).or_default();
                let new: Vec<_> = all.iter().filter(|violation| !known.contains(violation)).collect();
                let told = told.entry(card.clone()).or_default();
                for (end, _) in new {
                    if told.iter().all(|other| (other - end).abs() >= self.cooldown) {
                        told.push(*end);
                        findings.insert((card.clone(), *end));
                    }
                }
                *known = all.into_iter().collect();
            }
        }
        findings
    }
}

fn found(outcome: &Outcome) -> BTreeSet<(String, i64)> {
    let set: BTreeSet<_> = outcome.findings.iter().map(|f| (f.entity.clone(), f.window_end)).collect();
    assert_eq!(set.len(), outcome.findings.len(), "nothing is said twice");
    set
}

/// Events of a few keys, one of them hot, in order of time.
fn traffic(rng: &mut Rng, n: usize, negative: bool) -> Vec<Event> {
    let mut time = at(0);
    let mut next_offset = [0u64; 3];
    (0..n)
        .map(|_| {
            time += rng.below(3) as i64 * SECOND;
            let card = match rng.below(10) {
                0..4 => Some("hot".to_owned()),
                4 => None,
                n => Some(format!("card{n}")),
            };
            let partition = rng.below(3);
            next_offset[partition as usize] += 1 + rng.below(5);
            let amount = rng.below(9) as i64 - if negative { 3 } else { 0 };
            let amount = (rng.below(20) > 0).then_some(amount);
            Event { at: time, card, amount, partition, offset: next_offset[partition as usize] }
        })
        .collect()
}

/// Arrival order: each event up to `lateness` after its time, but in order within its partition's offsets.
fn shuffle(rng: &mut Rng, events: &mut [Event], lateness: i64) {
    // Often as late as may be: there the state must be just enough.
    let mut delay = |e: &Event| match rng.below(3) {
        0 => 0,
        1 => lateness,
        _ => rng.below(lateness as u64 + 1) as i64,
    } + e.at;
    let mut delayed: Vec<(i64, Event)> = events.iter().map(|e| (delay(e), e.clone())).collect();
    delayed.sort_by_key(|(arrival, _)| *arrival);
    let mut next_offset = [0u64; 3];
    for (place, (_, mut event)) in events.iter_mut().zip(delayed) {
        next_offset[event.partition as usize] += 1;
        event.offset = next_offset[event.partition as usize];
        *place = event;
    }
}

fn cases() -> impl Iterator<Item = (u64, Naive)> {
    (0..24).map(|seed| {
        let mut rng = Rng::new(seed);
        let measure = ["count", "sum", "distinct"][seed as usize % 3];
        let threshold = 2.0 + rng.below(8) as f64;
        let window = (1 + rng.below(60) as i64) * SECOND;
        let cooldown = match rng.below(3) {
            0 => window,
            1 => (1 + rng.below(120) as i64) * SECOND,
            _ => (1 + rng.below(4) as i64) * SECOND,
        };
        (seed, Naive { measure, window, threshold, cooldown })
    })
}

#[test]
fn findings_are_those_of_a_naive_computation_on_any_number_of_workers() {
    let mut n_findings = 0;
    for (seed, naive) in cases() {
        let mut rng = Rng::new(seed + 1000);
        let mut events = traffic(&mut rng, 300, seed % 2 == 1);
        let lateness = rng.below(15) as i64 * SECOND;
        shuffle(&mut rng, &mut events, lateness);
        let epochs = cut_into_epochs(&mut rng, &events, 12);
        let expected = naive.findings(&epochs);
        n_findings += expected.len();
        for workers in [1, 2 + seed as usize % 2] {
            let outcome = Run::new(&naive.yaml()).lateness(lateness).workers(workers).go(&epochs);
            assert_eq!(found(&outcome), expected, "seed {seed}, {workers} workers, {naive:?}");
            assert_eq!(outcome.late, 0);
        }
    }
    assert!(n_findings > 200, "{n_findings} findings only: the test tests nothing");
}

#[test]
fn for_rows_in_order_epochs_do_not_matter() {
    for (seed, naive) in cases() {
        let mut rng = Rng::new(seed + 2000);
        let events = traffic(&mut rng, 300, false);
        let one_by_one = cut_into_epochs(&mut rng, &events, 1);
        let expected = naive.findings(&one_by_one);
        let epochs = cut_into_epochs(&mut rng, &events, 100);
        let outcome = Run::new(&naive.yaml()).lateness(0).workers(2).go(&epochs);
        assert_eq!(found(&outcome), expected, "seed {seed}, {naive:?}");
    }
}

#[test]
fn after_a_crash_everything_goes_on_as_if_nothing_had_happened() {
    for (seed, naive) in cases() {
        let mut rng = Rng::new(seed + 3000);
        let mut events = traffic(&mut rng, 300, seed % 2 == 1);
        let lateness = 5 * SECOND;
        shuffle(&mut rng, &mut events, lateness);
        let epochs = cut_into_epochs(&mut rng, &events, 8);
        let run = || Run::new(&naive.yaml()).lateness(lateness).every(1 + seed % 7);
        let whole = run().workers(2).go(&epochs);

        let crash =
            *epochs.keys().nth(epochs.len() / 4 + rng.below(epochs.len() as u64 / 2) as usize).unwrap();
        let before: Epochs = epochs.range(..crash).map(|(e, rows)| (*e, rows.clone())).collect();
        let workers = 1 + rng.below(3) as usize;
        let crashed = run().workers(workers).idle_until(crash).go(&before);
        let (cut, states) = crashed.complete_cut(workers, |n| rng.below(n as u64) as usize);
        assert!(cut <= crash && cut > BASE_EPOCH, "cut {cut}, crash {crash}");

        // Everything before the cut comes again behind it, what the sources had committed is gone.
        let first = *epochs.range(cut..).next().unwrap().0;
        let committed = rng.below(3) as usize * before.range(..cut).count() / 3;
        let mut after: Epochs = epochs.range(cut..).map(|(e, rows)| (*e, rows.clone())).collect();
        let mut replayed: Vec<Event> =
            before.range(..cut).skip(committed).flat_map(|(_, rows)| rows.clone()).collect();
        replayed.append(after.get_mut(&first).unwrap());
        after.insert(first, replayed);
        let resumed = run().workers(1 + rng.below(3) as usize).restored(states).go(&after);

        assert_eq!(resumed.late, 0, "what was counted before the crash is skipped, not judged again");
        let mut ids: Vec<&str> = crashed.findings.iter().filter(|f| f.epoch < cut).map(|f| &*f.id).collect();
        ids.extend(resumed.findings.iter().map(|f| &*f.id));
        ids.sort_unstable();
        let mut expected: Vec<&str> = whole.findings.iter().map(|f| &*f.id).collect();
        expected.sort_unstable();
        assert_eq!(ids, expected, "seed {seed}, cut {cut}, crash {crash}, {naive:?}");
    }
}

fn row(seconds: i64, card: &str, offset: u64) -> Event {
    Event { at: at(seconds), card: Some(card.into()), amount: Some(1), partition: 0, offset }
}

#[test]
fn the_eighth_event_fires_and_says_why() {
    let events: Vec<Event> = (0..30).map(|n| row(n, "c", n as u64)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 1);
    let outcome = Run::new("{by: [card], window: 5m, threshold: 8, severity: P1}").go(&epochs);
    let [finding] = &outcome.findings[..] else { panic!("{:?}", outcome.findings) };
    assert_eq!((finding.entity.as_str(), finding.window_end, finding.score), ("c", at(7), 1.0));
    assert_eq!(finding.window_start, at(7) - 300 * SECOND);
    assert_eq!(finding.tenant.as_deref(), Some("acme"));
    let expected: Vec<String> = (0..8).map(|n| format!("shop-0000000000000000-{n:x}")).collect();
    assert_eq!(finding.evidence, expected);
    assert_eq!(finding.epoch, *epochs.keys().nth(7).unwrap());
}

#[test]
fn a_row_that_comes_late_completes_a_window_of_the_past() {
    let mut events: Vec<Event> = [0, 1, 30].iter().zip(0..).map(|(n, offset)| row(*n, "c", offset)).collect();
    events.push(row(2, "c", 3));
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 1);
    let outcome = Run::new("{by: [card], window: 5s, threshold: 3}").lateness(30 * SECOND).go(&epochs);
    assert_eq!(found(&outcome), [("c".to_owned(), at(2))].into());
    let outcome = Run::new("{by: [card], window: 5s, threshold: 3}").lateness(20 * SECOND).go(&epochs);
    assert_eq!((outcome.findings.len(), outcome.late), (0, 1));
}

#[test]
fn a_row_of_the_future_or_without_time_does_no_harm() {
    let mut events: Vec<Event> = (0..8).map(|n| row(n, "c", n as u64)).collect();
    events.insert(3, Event { at: i64::MAX, ..row(0, "c", 100) });
    events.insert(5, Event { at: at(100_000_000), ..row(0, "d", 101) });
    events.insert(6, Event { at: harness::NO_TIME, ..row(0, "d", 102) });
    events.insert(6, Event { at: i64::MIN + 1, ..row(0, "d", 103) });
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 1);
    let outcome = Run::new("{by: [card], window: 5m, threshold: 8}").go(&epochs);
    assert_eq!(found(&outcome), [("c".to_owned(), at(7))].into());
    assert_eq!(outcome.late, 4);
}

#[test]
fn a_key_that_stays_above_is_found_again_after_the_cool_down() {
    let events: Vec<Event> = (0..1000).map(|n| row(n, "c", n as u64)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 10);
    let outcome = Run::new("{by: [card], window: 10s, threshold: 5, cooldown: 160s}").go(&epochs);
    let ends: Vec<i64> = outcome.findings.iter().map(|f| (f.window_end - at(0)) / SECOND).collect();
    assert_eq!(ends.len(), 7, "{ends:?}");
    assert!(ends.windows(2).all(|pair| (160..=170).contains(&(pair[1] - pair[0]))), "{ends:?}");
}

#[test]
fn rows_that_expire_make_no_findings() {
    let times = [5, 6, 163, 164, 168, 169, 172, 173];
    let events: Vec<Event> = times.iter().zip(0..).map(|(n, offset)| row(*n, "c", offset)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 1);
    let outcome = Run::new("{by: [card], window: 2s, threshold: 2, cooldown: 160s}").go(&epochs);
    // The violation at 164 belongs to the finding at 6, and stands for its whole step of ten seconds.
    assert_eq!(found(&outcome), [("c".to_owned(), at(6)), ("c".to_owned(), at(173))].into());
}

#[test]
fn state_is_bounded() {
    let hot: Vec<Event> = (0..5000).map(|n| row(n / 100, "c", n as u64)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(1), &hot, 500);
    let yaml = "{by: [card], window: 1h, threshold: 50, max_rows_per_key: 100}";
    let outcome = Run::new(yaml).go(&epochs);
    assert_eq!(outcome.most_rows, 100);
    assert_eq!(outcome.evicted, 4900);
    assert_eq!(found(&outcome), [("c".to_owned(), at(0))].into());

    let many: Vec<Event> = (0..5000).map(|n| row(n / 10, &format!("c{n}"), n as u64)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(2), &many, 500);
    let outcome = Run::new("{by: [card], window: 1h, threshold: 2, max_rows: 1000}").go(&epochs);
    assert_eq!((outcome.most_rows, outcome.evicted), (1000, 4000));

    let outcome = Run::new("{by: [card], window: 10s, threshold: 2}").go(&epochs);
    assert!(outcome.most_rows < 1000, "{} rows: expired rows stay", outcome.most_rows);
}

#[test]
fn rows_that_an_expression_fails_on_are_rejects() {
    let mut events: Vec<Event> = (0..8).map(|n| row(n, "c", n as u64)).collect();
    events[3].amount = Some(0);
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 8);
    let outcome = Run::new("{by: [card], window: 5m, threshold: 7, sum: 1 / amount}").go(&epochs);
    assert_eq!(found(&outcome), [("c".to_owned(), at(7))].into());
    assert_eq!(outcome.n_rejects, 1);
}

#[test]
fn state_of_another_shape_or_damaged_is_not_used() {
    let events: Vec<Event> = (0..40).map(|n| row(n, "c", n as u64)).collect();
    let epochs = cut_into_epochs(&mut Rng::new(1), &events, 4);
    let yaml = "{by: [card], window: 5m, threshold: 8}";
    let outcome = Run::new(yaml).every(1).go(&epochs);
    let (_, states) = outcome.complete_cut(1, |n| n - 1);
    let replay = |yaml: &str, states| found(&Run::new(yaml).restored(states).go(&epochs)).len();
    assert_eq!(replay(yaml, states.clone()), 0, "all rows are skipped");
    assert_eq!(replay("{by: [card, tenant], window: 5m, threshold: 8}", states.clone()), 1);
    let mut rng = Rng::new(9);
    for _ in 0..20 {
        let mut damaged = states.clone();
        for state in damaged.blobs.values_mut().flatten() {
            let len = rng.below(state.len() as u64) as usize;
            state.truncate(len);
        }
        replay(yaml, damaged);
    }
}
