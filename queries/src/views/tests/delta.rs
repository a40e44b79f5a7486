//! Joins, first rows, recursion: what differential dataflow computes, beside DataFusion's batch answer.

use super::*;

/// Queries whose rows may be taken back.
pub(super) const QUERIES: &[&str] = &[
    // Joins of a stream with itself, with conditions beside the key, with keys that may be NULL.
    "SELECT a.tenant, a.n AS n, b.amount AS amount FROM events a JOIN events b ON a.tenant = b.tenant AND a.n = b.n + 1",
    "SELECT a.n AS n, a.tenant AS t, b.tenant AS u FROM events a, events b WHERE a.n = b.n AND a.amount < b.amount",
    "SELECT a.tenant, a.n, b.amount FROM events a LEFT JOIN (SELECT n, amount FROM events WHERE amount > 10) b ON a.n = b.n",
    "SELECT a.tenant, a.n, b.amount FROM events a LEFT JOIN events b ON a.n = b.n AND a.amount > b.amount + 30",
    "SELECT a.n AS x, b.n AS y FROM (SELECT n FROM events WHERE n < 2) a RIGHT JOIN (SELECT n FROM events WHERE n > 0) b ON a.n = b.n",
    "SELECT a.n AS x, b.n AS y, a.tenant FROM (SELECT n, tenant FROM events WHERE n < 2) a \
     FULL JOIN (SELECT n, tenant FROM events WHERE amount > 0) b ON a.n = b.n AND a.tenant = b.tenant",
    "SELECT a.n AS x, b.n AS y FROM (SELECT n FROM events WHERE n < 2 AND amount > 0) a \
     FULL JOIN (SELECT n FROM events WHERE n > 0) b ON a.n > b.n",
    // Subqueries.
    "SELECT tenant, n FROM events WHERE n IN (SELECT n + 1 FROM events WHERE amount > 20)",
    "SELECT tenant, n FROM events e WHERE EXISTS (SELECT 1 FROM events f WHERE f.n = e.n AND f.amount > e.amount + 5)",
    "SELECT tenant, n FROM events e WHERE NOT EXISTS (SELECT 1 FROM events f WHERE f.n = e.n AND f.tenant = 'b')",
    "SELECT tenant, n FROM events WHERE n = 1 OR tenant IN (SELECT tenant FROM events WHERE n = 5)",
    "SELECT tenant, n FROM events WHERE n > (SELECT min(n) + 1 FROM events)",
    "SELECT tenant, n, (SELECT max(f.amount) FROM events f WHERE f.n = e.n) AS most FROM events e",
    // Sets.
    "SELECT n FROM events WHERE amount > 0 UNION ALL SELECT n + 1 FROM events",
    "SELECT tenant, n FROM events WHERE amount > 0 UNION SELECT tenant, n + 1 FROM events",
    "SELECT tenant, n FROM events EXCEPT SELECT tenant, n FROM events WHERE amount < 0",
    "SELECT n FROM events WHERE tenant = 'a' INTERSECT SELECT n FROM events WHERE tenant = 'b'",
    // First rows.
    "SELECT n, amount FROM events ORDER BY amount DESC NULLS LAST, n, \"@timestamp\" LIMIT 5",
    "SELECT n, amount FROM events ORDER BY amount, n, \"@timestamp\" LIMIT 3 OFFSET 4",
    "SELECT tenant, n, k FROM (SELECT tenant, n, row_number() OVER (PARTITION BY tenant ORDER BY n DESC, amount, \"@timestamp\") AS k \
     FROM events) WHERE k <= 2",
    // Window functions.
    "SELECT tenant, n, rank() OVER (PARTITION BY tenant ORDER BY n) AS r, dense_rank() OVER (PARTITION BY tenant ORDER BY n) AS d FROM events",
    "SELECT tenant, n, lag(n) OVER (PARTITION BY tenant ORDER BY \"@timestamp\", n, amount) AS before, \
     sum(n) OVER (PARTITION BY tenant ORDER BY \"@timestamp\", n, amount ROWS 2 PRECEDING) AS three FROM events",
    "SELECT tenant, count(*) OVER (PARTITION BY tenant) AS c, max(amount) OVER () AS most FROM events WHERE n > 1",
    // Aggregates over what is taken back.
    "SELECT max(c) AS most, min(c) AS least, count(*) AS groups FROM (SELECT tenant, n, count(*) AS c FROM events GROUP BY tenant, n)",
    "SELECT c, count(*) AS times, sum(total) AS total FROM (SELECT tenant, count(*) AS c, sum(n) AS total FROM events GROUP BY tenant) GROUP BY c",
    "SELECT a.tenant, count(*) AS c, sum(b.n) AS total, avg(b.amount) AS mean, min(a.n) AS least, max(b.amount) AS most, \
     count(DISTINCT b.n) AS kinds, count(*) FILTER (WHERE a.n > b.n) AS more, stddev(b.n) AS deviation \
     FROM events a JOIN events b ON a.n = b.n GROUP BY a.tenant HAVING count(*) > 2",
    "SELECT count(*) AS c, sum(a.n) AS total FROM events a JOIN events b ON a.n = b.n AND a.n = 4",
    "SELECT DISTINCT a.tenant, b.n FROM events a JOIN events b ON a.n = b.n",
    // Aggregates of each kind over rows that leave: the last five of each tenant.
    "SELECT tenant, count(*) AS c, count(amount) AS some, count(*) FILTER (WHERE n > 1) AS large, sum(n) AS total, \
     sum(amount) AS amounts, avg(amount) AS mean, avg(n) AS mean_n, sum(amount) FILTER (WHERE n > 0) AS positive \
     FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT tenant, round(stddev(amount), 6) AS d, round(var_pop(amount), 6) AS v, round(covar(amount, n), 6) + 0.0 AS c, \
     round(corr(amount, n), 6) + 0.0 AS r, round(regr_slope(amount, n), 6) + 0.0 AS s, regr_count(amount, n) AS k, \
     round(regr_intercept(amount, n), 6) + 0.0 AS i, round(regr_sxy(amount, n), 6) + 0.0 AS p, regr_avgx(amount, n) AS x \
     FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT tenant, bool_and(n > 0) AS every, bool_or(n > 3) AS some, bit_and(n) AS a, bit_or(n) AS o, bit_xor(n) AS x \
     FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT tenant, min(n) AS least, max(n) AS most, max(amount) AS dearest, min(tenant) AS t, max(\"@timestamp\") AS last, \
     first_value(amount ORDER BY n DESC NULLS LAST, amount) AS f, last_value(n ORDER BY \"@timestamp\", n, amount) AS l \
     FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT tenant, count(DISTINCT n) AS kinds, sum(DISTINCT n) AS total, avg(DISTINCT amount) AS mean, max(DISTINCT n) AS most, \
     count(DISTINCT n) FILTER (WHERE amount > 0) AS some FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT tenant, median(n) AS middle, array_agg(n ORDER BY \"@timestamp\", n, amount) AS all, count(*) AS c \
     FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5) GROUP BY tenant",
    "SELECT count(*) AS c, sum(n) AS total, min(n) AS least, sum(CAST(amount AS DECIMAL(10, 2))) AS d, \
     avg(CAST(amount AS DECIMAL(10, 2))) AS m FROM (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
     FROM events) WHERE k <= 5)",
    // Windows below.
    "SELECT s, tenant, c FROM (SELECT s, tenant, c, row_number() OVER (PARTITION BY s ORDER BY c DESC, tenant) AS k FROM \
     (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, count(*) AS c FROM events \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds'))) WHERE k = 1",
    "SELECT w.s, w.c, t.c AS of_all FROM \
     (SELECT tumble_start(\"@timestamp\", INTERVAL '30 seconds') AS s, tenant, count(*) AS c FROM events \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '30 seconds')) w \
     JOIN (SELECT tenant, count(*) AS c FROM events GROUP BY tenant) t ON w.tenant = t.tenant",
    "SELECT max(c) AS most FROM (SELECT count(*) AS c FROM events GROUP BY tumble(\"@timestamp\", INTERVAL '10 seconds'))",
    // Joins that say how far apart times are.
    "SELECT a.tenant, a.n, b.amount FROM events a JOIN events b ON a.tenant = b.tenant \
     AND b.\"@timestamp\" BETWEEN a.\"@timestamp\" AND a.\"@timestamp\" + INTERVAL '10 seconds'",
    "SELECT a.n AS n, b.n AS m FROM (SELECT n, \"@timestamp\" AS at FROM events WHERE n > 1) a LEFT JOIN events b \
     ON a.n = b.n AND b.\"@timestamp\" < a.at AND a.at - INTERVAL '5 seconds' <= b.\"@timestamp\"",
    "SELECT a.n AS n, b.n AS m FROM events a RIGHT JOIN events b ON a.n = b.n + 1 AND a.\"@timestamp\" = b.\"@timestamp\"",
    "SELECT tenant, count(*) AS c FROM events a WHERE NOT EXISTS (SELECT 1 FROM events b WHERE a.tenant = b.tenant \
     AND b.\"@timestamp\" > a.\"@timestamp\" AND b.\"@timestamp\" < a.\"@timestamp\" + INTERVAL '7 seconds') GROUP BY tenant",
    // Until nothing new comes.
    "WITH RECURSIVE reached AS (SELECT n FROM events WHERE amount > 30 \
     UNION SELECT e.n + 1 FROM reached JOIN events e ON e.n = reached.n) SELECT n FROM reached",
    "WITH RECURSIVE reached AS (SELECT n FROM events WHERE amount > 30 UNION SELECT m.next FROM reached JOIN \
     (SELECT a.n, max(b.n) + 1 AS next, count(DISTINCT b.amount) AS c, sum(b.amount) AS total FROM events a \
      JOIN events b ON a.n = b.n GROUP BY a.n) m ON m.n = reached.n AND m.c < m.total + 1000) SELECT n FROM reached",
];

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_view_whose_rows_are_taken_back_equals_the_batch_answer(
        partitions in arb_partitions(),
        cuts in prop::collection::vec(0..20u8, 1..12),
        more_cuts in prop::collection::vec(0..20u8, 1..12),
        workers in (1..4usize, 1..4usize),
        crash in any::<prop::sample::Index>(),
        which in 0..QUERIES.len(),
    ) {
        let sql = QUERIES[which];
        let view = view(sql, Emit::Changes).unwrap();
        let rows: Vec<Row> = partitions.concat();
        let expected = batch_answer(sql, &rows, None);

        let all = epochs(&partitions, &cuts);
        let outcome = Run { view: &view, workers: workers.0, crashes: false, restored: None, read_at: None }.go(&all);
        prop_assert_eq!(&outcome.stopped, &None);
        prop_assert_eq!(outcome.n_rejects, 0);
        prop_assert_eq!(settled(&outcome.rows, Emit::Changes), &expected[..], "{}", sql);
        let count = |name| outcome.counts.get(name).copied().unwrap_or(0);
        prop_assert_eq!(count("in"), count("filtered") + count("late") + count("failed") + count("used"));

        let read_at = all.keys().nth(crash.index(all.len())).copied();
        let until: Epochs = all.range(..read_at.unwrap()).map(|(e, b)| (*e, b.clone())).collect();
        let seen: Vec<Row> = until
            .values()
            .flatten()
            .flat_map(|batch| {
                let (partition, first) = (batch.origin().partition.0 as usize, batch.offsets().value(0) as usize);
                partitions[partition][first..first + batch.num_rows()].to_vec()
            })
            .collect();
        let read = Run { view: &view, workers: workers.1, crashes: false, restored: None, read_at }.go(&all);
        let mut rows: Vec<String> = read.snapshot.values().flatten().flat_map(formatted).collect();
        rows.sort_unstable();
        // An aggregate without groups right above a stream has no row before the first row has come.
        if !seen.is_empty() {
            prop_assert_eq!(rows, batch_answer(sql, &seen, None), "read at an epoch: {}", sql);
        }

        let crashed = with_crash(&view, &partitions, (&cuts, &more_cuts), workers, crash.index(1000));
        prop_assert_eq!(crashed.stopped, None);
        prop_assert_eq!(settled(&crashed.rows, Emit::Changes), expected, "after a crash: {}", sql);
    }
}

/// ASOF JOINs, and how a query without them says the same: every row beside all that could be its partner, of which the
/// nearest is the first.
pub(super) const AS_OF: &[(&str, &str)] = &[
    (
        "SELECT a.tenant, a.n, b.amount FROM events a ASOF JOIN (SELECT * FROM events WHERE n > 1) b \
         MATCH_CONDITION (a.\"@timestamp\" >= b.\"@timestamp\") ON a.tenant = b.tenant",
        "SELECT tenant, n, amount FROM (SELECT a.tenant, a.n, b.amount, \
         row_number() OVER (PARTITION BY a.id ORDER BY b.at DESC, b.amount DESC NULLS LAST) AS k FROM \
         (SELECT *, row_number() OVER () AS id FROM events) a LEFT JOIN \
         (SELECT \"@timestamp\" AS at, tenant, amount FROM events WHERE n > 1) b ON a.tenant = b.tenant AND a.\"@timestamp\" >= b.at) \
         WHERE k = 1",
    ),
    (
        "SELECT a.n AS n, b.n AS m FROM events a ASOF JOIN events b MATCH_CONDITION (b.\"@timestamp\" > a.\"@timestamp\")",
        "SELECT n, m FROM (SELECT a.n, b.n AS m, row_number() OVER (PARTITION BY a.id ORDER BY b.at, b.n DESC NULLS LAST) AS k FROM \
         (SELECT *, row_number() OVER () AS id FROM events) a LEFT JOIN (SELECT \"@timestamp\" AS at, n FROM events) b \
         ON b.at > a.\"@timestamp\") WHERE k = 1",
    ),
    // Over rows that leave, and with a sum of what it gives.
    (
        "SELECT b.k AS k, count(*) AS c, sum(a.n) AS total FROM events a ASOF JOIN \
         (SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
          FROM events) WHERE k <= 5) b MATCH_CONDITION (a.\"@timestamp\" > b.\"@timestamp\") ON a.tenant = b.tenant GROUP BY b.k",
        "SELECT k, count(*) AS c, sum(n) AS total FROM (SELECT a.n, b.k, row_number() OVER (PARTITION BY a.id ORDER BY b.at DESC, b.k DESC) AS j FROM \
         (SELECT *, row_number() OVER () AS id FROM events) a LEFT JOIN (SELECT tenant, at, k FROM \
         (SELECT tenant, \"@timestamp\" AS at, row_number() OVER (PARTITION BY tenant ORDER BY \"@timestamp\" DESC, n, amount) AS k \
          FROM events) WHERE k <= 5) b ON a.tenant = b.tenant AND a.\"@timestamp\" > b.at) WHERE j = 1 GROUP BY k",
    ),
];

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_row_meets_the_one_that_was_the_latest(
        partitions in arb_partitions(),
        cuts in prop::collection::vec(0..20u8, 1..12),
        more_cuts in prop::collection::vec(0..20u8, 1..12),
        workers in (1..4usize, 1..4usize),
        crash in any::<prop::sample::Index>(),
        which in 0..AS_OF.len(),
    ) {
        let (sql, naive) = AS_OF[which];
        let view = view(sql, Emit::Changes).unwrap();
        let expected = batch_answer(naive, &partitions.concat(), None);
        let all = epochs(&partitions, &cuts);
        let outcome = Run { view: &view, workers: workers.0, crashes: false, restored: None, read_at: None }.go(&all);
        prop_assert_eq!(&outcome.stopped, &None);
        prop_assert_eq!(settled(&outcome.rows, Emit::Changes), &expected[..], "{}", sql);
        let crashed = with_crash(&view, &partitions, (&cuts, &more_cuts), workers, crash.index(1000));
        prop_assert_eq!(crashed.stopped, None);
        prop_assert_eq!(settled(&crashed.rows, Emit::Changes), expected, "after a crash: {}", sql);
    }
}

/// Every query once, so that none depends on luck.
#[test]
fn all_queries_equal_the_batch_answer() {
    let row = |n: i64| Row {
        at: Some(START as i64 * 1_000 + n * SECOND),
        tenant: [Some("a"), None, Some("b")][n as usize % 3],
        n: (n % 7 != 0).then_some(n % 5),
        amount: (n % 4 != 0).then_some((n * 37 % 79 - 39) as f64),
    };
    let partitions = vec![(0..40).map(row).collect(), (0..40).step_by(3).map(row).collect::<Vec<_>>()];
    let mut wrong = Vec::new();
    for (idx, sql) in QUERIES.iter().enumerate() {
        let view = match view(sql, Emit::Changes) {
            Ok(view) => view,
            Err(error) => {
                wrong.push(format!("{sql}: {error:?}"));
                continue;
            }
        };
        let expected = batch_answer(sql, &partitions.concat(), None);
        let all = epochs(&partitions, &[3, 1, 7]);
        let workers = 1 + idx % 3;
        let outcome = Run { view: &view, workers, crashes: false, restored: None, read_at: None }.go(&all);
        let found = settled(&outcome.rows, Emit::Changes);
        if outcome.stopped.is_some() || found != expected {
            wrong.push(format!("{sql}: {:?}\n{found:?}\n{expected:?}", outcome.stopped));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

proptest! {
    #![proptest_config(cases(16))]

    /// `now()` is the time of the epoch: rows leave by themselves when it has passed them.
    #[test]
    fn rows_come_and_leave_with_the_clock(
        partitions in arb_partitions(),
        cuts in prop::collection::vec(0..20u8, 1..12),
        workers in 1..4usize,
        at in any::<prop::sample::Index>(),
    ) {
        let sql = "SELECT tenant, n FROM events WHERE n > 0 AND \"@timestamp\" > now() - INTERVAL '10 seconds' \
                   AND now() >= \"@timestamp\" - INTERVAL '5 seconds'";
        let view = view(sql, Emit::Changes).unwrap();
        let mut all = epochs(&partitions, &cuts);
        let read_at = *all.keys().nth(at.index(all.len())).unwrap();
        // The end of all input stops the clock; it comes after the time that is looked at has passed.
        let end = *all.keys().next_back().unwrap();
        all.extend((1..20).map(|n| (end + n * CUT_EVERY, Vec::new())));
        let outcome = Run { view: &view, workers, crashes: false, restored: None, read_at: Some(read_at) }.go(&all);
        let mut rows: Vec<String> = outcome.snapshot.values().flatten().flat_map(formatted).collect();
        rows.sort_unstable();
        let seen = all.range(..read_at).flat_map(|(_, batches)| batches).flat_map(|batch| {
            let (partition, first) = (batch.origin().partition.0 as usize, batch.offsets().value(0) as usize);
            partitions[partition][first..first + batch.num_rows()].to_vec()
        });
        let now = (read_at as i64 - 1) * 1_000;
        let is_in = |row: &Row| {
            let at = row.at.unwrap();
            row.n.is_some_and(|n| n > 0) && at > now - 10 * SECOND && now >= at - 5 * SECOND
        };
        let mut expected: Vec<String> = seen
            .filter(is_in)
            .map(|row| format!("{}|{}", row.tenant.unwrap_or("NULL"), row.n.unwrap()))
            .collect();
        expected.sort_unstable();
        prop_assert_eq!(rows, expected);
        settled(&outcome.rows, Emit::Changes);
    }
}

const PAIRS: &str = "SELECT a.n AS n, b.n AS m FROM events a JOIN events b ON a.tenant = b.tenant \
                     AND b.\"@timestamp\" BETWEEN a.\"@timestamp\" AND a.\"@timestamp\" + INTERVAL '3 seconds'";

/// A view whose rows leave as soon as nothing can match them.
fn forgetful(sql: &str, emit: Emit) -> Result<Arc<dyn View>, CompileError> {
    let options = ViewOptions { unbounded: false, retain: Duration::ZERO, ..options(emit) };
    plan(sql, &[events()], options)
}

/// A row in each second, some seconds in each epoch.
fn a_row_a_second(n_rows: i64, per_epoch: i64) -> Epochs {
    let starts = (0..n_rows).step_by(usize::try_from(per_epoch).unwrap());
    let epochs = starts.map(|first| {
        let rows: Vec<Row> = (first..first + per_epoch).map(|n| row(n, "a", n)).collect();
        (10 + first as u64 * 10, batch(0, first as u64, &rows))
    });
    at_epochs(epochs.collect())
}

#[test]
fn rows_that_nothing_can_match_any_more_are_let_go() {
    let view = forgetful(PAIRS, Emit::Changes).unwrap();
    for (workers, per_epoch) in [(1, 10), (2, 10), (1, 200)] {
        let all = a_row_a_second(1_000, per_epoch);
        let outcome = Run { view: &view, workers, crashes: true, restored: None, read_at: None }.go(&all);
        let mut inserts = Vec::new();
        for (_, rows) in &outcome.rows {
            let changes = formatted(&rows.project(&[2]).unwrap());
            let pairs = formatted(&rows.project(&[0, 1]).unwrap());
            inserts.extend(pairs.into_iter().zip(changes).filter(|(_, change)| change == "insert"));
        }
        assert_eq!(inserts.len(), 4 * 1_000 - 6, "every pair is told once");
        // A row of the left side leaves when the watermark is more than three seconds, and the rest of one, behind it; what
        // came in the last epochs has not made others leave yet.
        let left = settled(&outcome.rows, Emit::Changes).len();
        let behind = LATENESS / SECOND + 4 + 2 * per_epoch;
        assert!(left <= 4 * behind as usize, "{left} pairs are left");
        let n_kept: usize = outcome.n_kept.values().sum();
        assert!(n_kept <= 20 * behind as usize, "{n_kept} rows are kept");
    }
}

#[test]
fn late_rows_of_joins_are_rejected_and_counted() {
    let view = forgetful(PAIRS, Emit::Changes).unwrap();
    let all = at_epochs(vec![
        (10, batch(0, 0, &[row(0, "a", 1), row(100, "a", 2)])),
        // The watermark is at 80 s.
        (20, batch(0, 2, &[row(79, "a", 3), row(80, "a", 4), row(10_000, "a", 5)])),
        (30, batch(0, 5, &[Row { at: None, ..row(0, "a", 6) }, row(101, "a", 7)])),
    ]);
    let outcome = Run { view: &view, workers: 2, crashes: true, restored: None, read_at: None }.go(&all);
    assert_eq!(outcome.n_rejects, 3);
    let counts: Vec<_> = ["late", "failed"].map(|name| outcome.counts[name]).to_vec();
    assert_eq!(counts, [2, 1]);
    assert_eq!(settled(&outcome.rows, Emit::Changes), ["2|2", "2|7", "4|4", "7|7"]);
}

#[test]
fn only_what_bounds_both_sides_bounds_a_join() {
    let ahead = "b.\"@timestamp\" > a.\"@timestamp\"";
    let not_far = "b.\"@timestamp\" - INTERVAL '1 day' <= a.\"@timestamp\"";
    for (join, on, is_bounded) in [
        ("JOIN", format!("{ahead} AND {not_far}"), true),
        ("LEFT JOIN", format!("a.n = b.n AND {ahead} AND {not_far}"), true),
        ("RIGHT JOIN", format!("a.n = b.n AND {ahead} AND {not_far}"), true),
        ("JOIN", "a.\"@timestamp\" = b.\"@timestamp\"".into(), true),
        ("FULL JOIN", format!("{ahead} AND {not_far}"), false),
        ("JOIN", format!("a.n = b.n AND {ahead}"), false),
        ("JOIN", format!("{ahead} AND {}", not_far.replace("day", "month")), false),
    ] {
        let sql = format!("SELECT a.n AS n FROM events a {join} events b ON {on}");
        assert_eq!(forgetful(&sql, Emit::Changes).is_ok(), is_bounded, "{sql}");
    }
}
