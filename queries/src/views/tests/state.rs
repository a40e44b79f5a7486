//! State over restarts: on other numbers of workers, with what can still be read, and at a cost of what changed.

use super::*;

/// Rows in epochs of their own, two seconds apart, so that there are cuts between them.
pub(super) fn spaced(rows: &[Vec<Row>], first_epoch: u64, first_offset: u64) -> Epochs {
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

pub(super) fn run<'a>(
    view: &'a Arc<dyn View>,
    workers: usize,
    restored: Option<(&'a Outcome, u64)>,
) -> Run<'a> {
    Run { view, workers, crashes: true, restored, read_at: None }
}

#[test]
fn state_of_one_worker_goes_to_three_and_then_to_two() {
    let per_minute = "SELECT tenant, n, count(*) AS c, sum(amount) AS total FROM events \
                      GROUP BY tenant, n, tumble(\"@timestamp\", INTERVAL '1 minute')";
    let sessions = "SELECT n, session_start(\"@timestamp\", INTERVAL '30 seconds') AS s, count(*) AS c \
                    FROM events GROUP BY n, session(\"@timestamp\", INTERVAL '30 seconds')";
    let totals = "SELECT tenant, n, count(*) AS c, max(amount) AS most FROM events GROUP BY tenant, n";
    let join = "SELECT a.tenant, a.n, b.c FROM (SELECT DISTINCT tenant, n FROM events WHERE n % 2 = 0) a \
         JOIN (SELECT n, count(*) AS c FROM events GROUP BY n) b ON a.n = b.n";
    let best = "SELECT tenant, n, k FROM (SELECT tenant, n, row_number() OVER (PARTITION BY tenant ORDER BY n DESC, \"@timestamp\") AS k \
                FROM events) WHERE k <= 7";
    let cases = [
        (per_minute, Emit::Final),
        (per_minute, Emit::Changes),
        (sessions, Emit::Final),
        (sessions, Emit::Changes),
        (totals, Emit::Changes),
        (join, Emit::Changes),
        (best, Emit::Changes),
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
        if [totals, join, best].contains(&sql) {
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

/// How many bytes were handed in at cuts behind `after`.
fn bytes_handed_in(outcome: &Outcome, after: u64) -> usize {
    outcome
        .changes
        .range(after..)
        .flat_map(|(_, changes)| changes)
        .map(|(_, changes)| changes.n_bytes())
        .sum()
}

#[test]
fn what_a_view_that_takes_rows_back_hands_in_is_in_proportion_to_what_changed() {
    // Rows that only come; that leave with the clock; that are counted, since the groups below change.
    let only_come =
        "SELECT n, amount FROM events WHERE n >= 0 UNION ALL SELECT n, amount FROM events WHERE n < 0";
    let leave = "SELECT n, tenant FROM events WHERE \"@timestamp\" > now() - INTERVAL '1 day'";
    let groups =
        "SELECT count(*) AS c, sum(c) AS total FROM (SELECT n, count(*) AS c FROM events GROUP BY n)";
    let mut rows: Vec<Vec<Row>> = vec![(0..200_000).map(|key| row(0, "a", key)).collect()];
    rows.extend((1..20).map(|n| (0..10).map(|key| row(n, "a", key * 100)).collect()));
    for sql in [only_come, leave, groups] {
        let view = view(sql, Emit::Changes).unwrap();
        let outcome = run(&view, 2, None).go(&spaced(&rows, START + 10, 0));
        assert_eq!(outcome.stopped, None);
        let (all, later) = (bytes_handed_in(&outcome, 0), bytes_handed_in(&outcome, START + 6_000));
        assert!(all > 5_000_000, "{all} bytes for 200000 rows: {sql}");
        // 19 times ten rows, and at 30 cuts what is written whole.
        let n_operators = 2 * view.operators().len();
        assert!(later < 19 * 10 * 200 + 30 * n_operators * 250, "{later} bytes for 190 changes: {sql}");
    }
}

#[test]
fn rows_that_come_in_and_leave_with_the_clock_do_so_after_a_restart() {
    let sql = "SELECT n FROM events WHERE \"@timestamp\" > now() - INTERVAL '10 seconds' \
               AND now() >= \"@timestamp\" - INTERVAL '5 seconds'";
    let view = view(sql, Emit::Changes).unwrap();
    let rows: Vec<Row> = (0..60).map(|n| row(n, "a", n)).collect();
    let clock = |from: u64, until: u64| (from..until).map(|n| (START + n * CUT_EVERY, Vec::new()));
    let mut epochs: Epochs = clock(1, 15).collect();
    epochs.insert(START + 10, vec![batch(0, 0, &rows)]);
    let first = run(&view, 1, None).go(&epochs);
    let cut = first.cut_before(START + 15 * CUT_EVERY, view.operators().len()).unwrap();
    let told: Vec<_> = first.rows.into_iter().filter(|(epoch, _)| *epoch < cut).collect();
    let first = Outcome { rows: Vec::new(), ..first };
    for workers in [1, 3] {
        let later: Epochs = clock((cut - START) / CUT_EVERY, 100).collect();
        let read_at = START + 30 * CUT_EVERY;
        let second = Run { read_at: Some(read_at), ..run(&view, workers, Some((&first, cut))) }.go(&later);
        // Those between ten seconds before the last epoch that is read, and five behind it.
        let mut read: Vec<String> = second.snapshot.values().flatten().flat_map(formatted).collect();
        read.sort_unstable();
        let expected: Vec<String> = (20..=34).map(|n| n.to_string()).collect();
        assert_eq!(read, expected, "{workers} workers");
        let all: Vec<_> = told.iter().chain(&second.rows).cloned().collect();
        assert_eq!(all.iter().map(|(_, rows)| rows.num_rows()).sum::<usize>(), 2 * 60);
        assert_eq!(settled(&all, Emit::Changes), [] as [String; 0]);
    }
}
