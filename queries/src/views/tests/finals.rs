//! Views that tell each row once, when it can no longer change.

use super::*;

pub(super) const FINAL: &[&str] = &[
    // First rows of each window.
    "SELECT s, tenant, c FROM (SELECT s, tenant, c, row_number() OVER (PARTITION BY s ORDER BY c DESC, tenant) AS k FROM \
     (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, count(*) AS c FROM events \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds'))) WHERE k <= 2",
    // Joins of windows.
    "SELECT a.s AS s, a.tenant, a.c, b.total FROM \
     (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, count(*) AS c FROM events \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')) a \
     JOIN (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, sum(n) AS total FROM events WHERE n > 2 \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')) b ON a.s = b.s AND a.tenant = b.tenant",
    "SELECT a.s AS s, a.tenant, a.c, b.total FROM \
     (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, count(*) AS c FROM events \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')) a \
     LEFT JOIN (SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, sum(n) AS total FROM events WHERE n > 2 \
      GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')) b ON a.s = b.s AND a.tenant = b.tenant",
    // Windows of windows.
    "SELECT e, max(c) AS most, count(*) AS tenants FROM (SELECT tumble_end(\"@timestamp\", INTERVAL '10 seconds') AS e, tenant, \
     count(*) AS c FROM events GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '10 seconds')) GROUP BY e",
    "SELECT tumble_start(s, INTERVAL '30 seconds') AS t, sum(c) AS c FROM (SELECT tumble_start(\"@timestamp\", INTERVAL '10 seconds') AS s, \
     tenant, count(*) AS c FROM events GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '10 seconds')) \
     GROUP BY tumble(s, INTERVAL '30 seconds')",
    // Joins of streams, and windows over them.
    "SELECT a.\"@timestamp\" AS at, a.n AS n, b.n AS m, b.\"@timestamp\" AS bt FROM events a JOIN events b ON a.tenant = b.tenant \
     AND b.\"@timestamp\" BETWEEN a.\"@timestamp\" AND a.\"@timestamp\" + INTERVAL '10 seconds'",
    "SELECT a.\"@timestamp\" AS at, a.n AS n, b.n AS m FROM events a LEFT JOIN events b ON a.n = b.n \
     AND b.\"@timestamp\" > a.\"@timestamp\" AND b.\"@timestamp\" < a.\"@timestamp\" + INTERVAL '10 seconds'",
    "SELECT a.tenant, tumble_start(a.\"@timestamp\", INTERVAL '10 seconds') AS s, count(*) AS c, sum(b.n) AS total FROM events a \
     JOIN events b ON a.tenant = b.tenant AND b.\"@timestamp\" BETWEEN a.\"@timestamp\" AND a.\"@timestamp\" + INTERVAL '10 seconds' \
     GROUP BY a.tenant, tumble(a.\"@timestamp\", INTERVAL '10 seconds')",
    "SELECT \"@timestamp\" AS at, n FROM events a WHERE NOT EXISTS (SELECT 1 FROM events b WHERE a.tenant = b.tenant \
     AND b.\"@timestamp\" > a.\"@timestamp\" AND b.\"@timestamp\" < a.\"@timestamp\" + INTERVAL '7 seconds')",
];

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn each_row_is_told_once(
        partitions in arb_partitions(),
        cuts in prop::collection::vec(0..20u8, 1..12),
        more_cuts in prop::collection::vec(0..20u8, 1..12),
        workers in (1..4usize, 1..4usize),
        crash in any::<prop::sample::Index>(),
        which in 0..FINAL.len(),
        is_forgetful in any::<bool>(),
    ) {
        let sql = FINAL[which];
        let retain = if is_forgetful { Duration::ZERO } else { Duration::from_secs(100_000) };
        let options = ViewOptions { unbounded: false, retain, ..options(Emit::Final) };
        let view = plan(sql, &[events()], options).unwrap();
        let expected = batch_answer(sql, &partitions.concat(), None);
        let all = epochs(&partitions, &cuts);
        let outcome = Run { view: &view, workers: workers.0, crashes: false, restored: None, read_at: None }.go(&all);
        prop_assert_eq!(&outcome.stopped, &None);
        prop_assert_eq!(settled(&outcome.rows, Emit::Final), &expected[..], "{}", sql);
        let mut ids = outcome.ids.clone();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), outcome.ids.len(), "rows are told apart");
        let crashed = with_crash(&view, &partitions, (&cuts, &more_cuts), workers, crash.index(1000));
        prop_assert_eq!(crashed.stopped, None);
        prop_assert_eq!(settled(&crashed.rows, Emit::Final), expected, "after a crash: {}", sql);
    }
}

#[test]
fn a_row_is_told_when_the_watermark_passes_its_times_and_not_before() {
    let sql = "SELECT a.\"@timestamp\" AS at, b.\"@timestamp\" AS bt FROM events a JOIN events b ON a.tenant = b.tenant \
               AND b.\"@timestamp\" >= a.\"@timestamp\" AND b.\"@timestamp\" <= a.\"@timestamp\" + INTERVAL '5 seconds'";
    let view = view(sql, Emit::Final).unwrap();
    let told = |last: i64| {
        let rows = [row(0, "a", 1), row(5, "a", 1), row(6, "a", 1), row(last, "b", 1)];
        let epochs = at_epochs(vec![(10, batch(0, 0, &rows))]);
        Run { view: &view, workers: 2, crashes: true, restored: None, read_at: None }.go(&epochs).ids.len()
    };
    // Each row with itself, and 0 with 5, 5 with 6; the watermark is twenty seconds behind.
    assert_eq!([20, 21, 25, 26, 27].map(told), [0, 1, 1, 3, 5]);
}

#[test]
fn a_view_without_times_that_end_is_never_final() {
    let windows = "SELECT tumble_start(\"@timestamp\", INTERVAL '20 seconds') AS s, tenant, count(*) AS c FROM events \
                   GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')";
    for sql in [
        // No column says when; the rows are not only of one window; a window's rows meet rows of others.
        format!(
            "SELECT tenant, c FROM (SELECT *, row_number() OVER (PARTITION BY s ORDER BY c) AS k FROM ({windows})) WHERE k = 1"
        ),
        format!(
            "SELECT s, tenant FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY c) AS k FROM ({windows})) WHERE k = 1"
        ),
        format!("SELECT tenant, max(c) AS most FROM ({windows}) GROUP BY tenant"),
        format!(
            "SELECT a.s AS s, b.c AS c FROM ({windows}) a LEFT JOIN ({windows}) b ON a.tenant = b.tenant"
        ),
        format!("SELECT a.s AS s, b.s AS t FROM ({windows}) a JOIN ({windows}) b ON a.tenant = b.tenant"),
        format!("SELECT s, c FROM ({windows}) ORDER BY c LIMIT 3"),
        "SELECT a.\"@timestamp\" AS at FROM events a JOIN events b ON a.n = b.n".into(),
    ] {
        let error = view(&sql, Emit::Final).unwrap_err();
        assert_eq!(error.message, "no row of this query is ever final", "{sql}");
    }
}
