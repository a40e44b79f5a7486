//! State over restarts: on other numbers of workers, with what can still be read, and at a cost of what changed.

use super::*;

/// Rows in epochs of their own, two seconds apart, so that there are cuts between them.
fn spaced(rows: &[Vec<Row>], first_epoch: u64, first_offset: u64) -> Epochs {
    let mut epochs = Epochs::new();
    let mut offset = first_offset;
    for (n, rows) in rows.iter().enumerate() {
        let epoch = first_epoch + 2_000 * n as u64;
        epochs.insert(epoch, vec![batch(0, offset, rows)]);
        offset += rows.len() as u64;
    }
    // Cuts behind the last rows, of which some are skipped.
    let last = first_epoch + 2_000 * rows.len() as u64;
    epochs.extend((0..12).map(|n| (last + n * CUT_EVERY, Vec::new())));
    epochs
}

fn run<'a>(view: &'a Arc<dyn View>, workers: usize, restored: Option<(&'a Outcome, u64)>) -> Run<'a> {
    Run { view, workers, crashes: true, restored, read_at: None }
}

#[test]
fn state_of_one_worker_goes_to_three_and_then_to_two() {
    let per_minute = "SELECT tenant, n, count(*) AS c, sum(amount) AS total FROM events \
                      GROUP BY tenant, n, tumble(\"@timestamp\", INTERVAL '1 minute')";
    let sessions = "SELECT n, session_start(\"@timestamp\", INTERVAL '30 seconds') AS s, count(*) AS c \
                    FROM events GROUP BY n, session(\"@timestamp\", INTERVAL '30 seconds')";
    let totals = "SELECT tenant, n, count(*) AS c, max(amount) AS most FROM events GROUP BY tenant, n";
    let cases = [
        (per_minute, Emit::Final),
        (per_minute, Emit::Changes),
        (sessions, Emit::Final),
        (sessions, Emit::Changes),
        (totals, Emit::Changes),
    ];
    // Three lives of a hundred keys each, of which most come again.
    let rows: Vec<Vec<Row>> = (0..9)
        .map(|n| (0..60).map(|key| row(n * 4, ["a", "b"][key as usize % 2], key * (1 + n % 3))).collect())
        .collect();
    let all: Vec<Row> = rows.concat();
    for (sql, emit) in cases {
        let view = view(sql, emit).unwrap();
        let whole = Run { crashes: false, ..run(&view, 2, None) }.go(&spaced(&rows, START + 10, 0));
        let mut told = Vec::new();
        let (mut before, mut epoch, mut offset): (Option<(Outcome, u64)>, _, _) = (None, START + 10, 0);
        for (life, workers) in [1, 3, 2].into_iter().enumerate() {
            let of_life = &rows[life * 3..life * 3 + 3];
            let epochs = spaced(of_life, epoch, offset);
            let restored = before.as_ref().map(|(outcome, cut)| (outcome, *cut));
            let outcome = Run { crashes: life < 2, ..run(&view, workers, restored) }.go(&epochs);
            assert_eq!(outcome.stopped, None);
            epoch = epochs.keys().last().copied().unwrap();
            offset += of_life.iter().map(Vec::len).sum::<usize>() as u64;
            let cut = outcome.cut_before(epoch, view.operators().len() * workers).unwrap();
            assert!(cut > epoch - 12 * CUT_EVERY, "all rows of this life are in the state");
            told.extend(outcome.rows.clone());
            before = Some((outcome, cut));
        }
        assert_eq!(settled(&told, emit), settled(&whole.rows, emit), "{emit:?} {sql}");
        if sql == totals {
            assert_eq!(settled(&told, emit), batch_answer(sql, &all, None));
        }
    }
}

#[test]
fn windows_that_have_closed_can_be_read_after_a_restart() {
    for emit in [Emit::Final, Emit::Changes] {
        let options = ViewOptions { retain: Duration::from_secs(100), ..options(emit) };
        let view = plan(PER_TEN_SECONDS, &[events()], options).unwrap();
        // The watermark comes to 130 s, so windows that end by then are closed; those before 20 s are forgotten.
        let rows: Vec<Vec<Row>> =
            [0, 10, 50, 100, 150].map(|at| vec![row(at, "a", 1), row(at + 1, "b", 1)]).into();
        let epochs = spaced(&rows, START + 10, 0);
        let end = epochs.keys().last().copied().unwrap();
        let read = |workers, restored, epochs: &Epochs, at| {
            let outcome = Run { read_at: Some(at), ..run(&view, workers, restored) }.go(epochs);
            let mut rows: Vec<String> = outcome.snapshot.values().flatten().flat_map(formatted).collect();
            rows.sort_unstable();
            rows
        };
        let before = read(2, None, &epochs, end);
        assert_eq!(before.len(), 3, "{before:?}");
        let first = run(&view, 2, None).go(&epochs);
        let cut = first.cut_before(end, 4).unwrap();
        assert!(cut > end - 12 * CUT_EVERY, "all rows are in the state");
        for workers in [1, 2, 3] {
            let nothing = Epochs::from([(end + 1_000, Vec::new())]);
            assert_eq!(read(workers, Some((&first, cut)), &nothing, cut + 1), before, "{workers} workers");
        }
    }
}

/// How many rows were handed in at cuts behind `after`.
fn handed_in(outcome: &Outcome, after: u64) -> usize {
    let later = outcome.changes.range(after..).flat_map(|(_, changes)| changes);
    let tables = later.flat_map(|(_, changes)| &changes.tables);
    tables.flat_map(|table| table.rows.iter().chain(&table.removed)).map(RecordBatch::num_rows).sum()
}

#[test]
fn what_is_handed_in_is_in_proportion_to_what_changed() {
    let windows = "SELECT n, count(*) AS c FROM events GROUP BY n, tumble(\"@timestamp\", INTERVAL '1 day')";
    let sessions =
        "SELECT n, count(*) AS c FROM events GROUP BY n, session(\"@timestamp\", INTERVAL '1 hour')";
    let endless = "SELECT n, count(*) AS c FROM events GROUP BY n";
    let cases = [
        (windows, Emit::Final),
        (windows, Emit::Changes),
        (sessions, Emit::Final),
        (sessions, Emit::Changes),
        (endless, Emit::Changes),
    ];
    let mut rows: Vec<Vec<Row>> = vec![(0..5_000).map(|key| row(0, "a", key)).collect()];
    rows.extend((1..40).map(|n| (0..10).map(|key| row(n, "a", key * 100)).collect()));
    for (sql, emit) in cases {
        let view = view(sql, emit).unwrap();
        let outcome = run(&view, 2, None).go(&spaced(&rows, START + 10, 0));
        let (all, later) = (handed_in(&outcome, 0), handed_in(&outcome, START + 6_000));
        assert!(all >= 5_000 && later > 0, "{all} rows, {later} of them later: {emit:?} {sql}");
        // Sessions are removed and added again.
        assert!(later <= 39 * 10 * 2, "{later} rows for 39 times ten changes: {emit:?} {sql}");
    }
}
