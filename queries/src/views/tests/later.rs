//! Views over views that come later, or change: they begin with what is there, once.

use logdrive_operators::{ViewInput, ViewOutput, WorkerContext};
use timely::dataflow::operators::Concat;

use super::state::{run, spaced};
use super::*;

/// A view, and one over it.
#[derive(Debug)]
struct Over {
    below: Arc<dyn View>,
    above: Arc<dyn View>,
}

impl View for Over {
    fn reads(&self) -> Vec<Vec<String>> {
        self.below.reads()
    }

    fn schema(&self) -> SchemaRef {
        self.above.schema()
    }

    fn rows(&self) -> SchemaRef {
        self.above.rows()
    }

    fn table(&self) -> Option<SchemaRef> {
        self.above.table()
    }

    fn event_time(&self) -> Option<&str> {
        self.above.event_time()
    }

    fn operators(&self) -> Vec<String> {
        [self.below.operators(), self.above.operators()].concat()
    }

    fn fingerprints(&self) -> Vec<(String, u64)> {
        [self.below.fingerprints(), self.above.fingerprints()].concat()
    }

    fn explain(&self) -> String {
        self.above.explain()
    }

    fn attach<'scope>(&self, inputs: Vec<ViewInput<'scope>>, cx: &WorkerContext) -> ViewOutput<'scope> {
        let ViewOutput { rows, rejects, beginning } = self.below.attach(inputs, cx);
        let above = self.above.attach(vec![ViewInput { rows, beginning }], cx);
        ViewOutput { rejects: above.rejects.concat(rejects), ..above }
    }
}

fn below(sql: &str, emit: Emit) -> Arc<dyn View> {
    plan(sql, &[events()], ViewOptions { name: "u".into(), ..options(emit) }).unwrap()
}

fn over(below: &Arc<dyn View>, sql: &str) -> Arc<dyn View> {
    let fingerprint = below.fingerprints().iter().fold(0, |all, (_, one)| all ^ one);
    let table = Table { name: "u".into(), schema: below.rows(), changes: true, fingerprint };
    let above = plan(sql, &[table], options(Emit::Changes)).unwrap();
    Arc::new(Over { below: Arc::clone(below), above })
}

const TOTALS: &str = "SELECT tenant, n, count(*) AS c FROM events GROUP BY tenant, n";
const BEST: &str = "SELECT tenant, c, count(*) AS groups, max(n) AS most FROM u GROUP BY tenant, c";

/// Nine times 60 rows, of which many have keys that were there before.
fn lives() -> Vec<Vec<Row>> {
    let row = |n: i64, key: i64| row(n * 4, ["a", "b"][key as usize % 2], key * (1 + n % 3));
    (0..9).map(|n| (0..60).map(|key| row(n, key)).collect()).collect()
}

/// What views tell that run one after the other, each on so many workers, over three epochs of rows, and with the state
/// of the one before.
fn told(views: &[(&Arc<dyn View>, usize)], rows: &[Vec<Row>]) -> Vec<Vec<(u64, RecordBatch)>> {
    let (mut before, mut epoch, mut offset): (Option<(Outcome, u64)>, _, _) = (None, START + 10, 0);
    let mut told = Vec::new();
    for (life, (view, workers)) in views.iter().enumerate() {
        let of_life = &rows[life * 3..life * 3 + 3];
        let epochs = spaced(of_life, epoch, offset);
        let restored = before.as_ref().map(|(outcome, cut)| (outcome, *cut));
        let crashes = life + 1 < views.len();
        let mut outcome = Run { crashes, ..run(view, *workers, restored) }.go(&epochs);
        assert_eq!(outcome.stopped, None);
        epoch = epochs.keys().last().copied().unwrap();
        offset += of_life.iter().map(Vec::len).sum::<usize>() as u64;
        let cut = outcome.cut_before(epoch, view.operators().len() * workers).unwrap();
        assert!(cut > epoch - 12 * CUT_EVERY, "all rows of this life are in the state");
        told.push(std::mem::take(&mut outcome.rows));
        before = Some((outcome, cut));
    }
    told
}

#[test]
fn a_view_that_comes_later_begins_with_the_rows_that_are_there_once() {
    let join = "SELECT a.tenant, a.n, b.c FROM (SELECT DISTINCT tenant, n FROM events) a \
                JOIN (SELECT n, count(*) AS c FROM events GROUP BY n) b ON a.n = b.n";
    let windows = "SELECT tenant, n, count(*) AS c, tumble_start(\"@timestamp\", INTERVAL '10 seconds') AS s \
                   FROM events GROUP BY tenant, n, tumble(\"@timestamp\", INTERVAL '10 seconds')";
    let rows = lives();
    for (sql, emit) in
        [(TOTALS, Emit::Changes), (join, Emit::Changes), (windows, Emit::Changes), (windows, Emit::Final)]
    {
        let below = below(sql, emit);
        let both = over(&below, BEST);
        let expected = batch_answer(&format!("WITH u AS ({sql}) {BEST}"), &rows.concat(), None);
        for [first, second, third] in [[1, 3, 2], [3, 1, 1], [2, 2, 3]] {
            let told = told(&[(&below, first), (&both, second), (&both, third)], &rows);
            let told = settled(&told[1..].concat(), Emit::Changes);
            assert_eq!(told, expected, "{emit:?} {sql}, on {first}, {second}, {third} workers");
        }
    }
}

#[test]
fn a_view_that_changes_begins_with_the_rows_that_are_there() {
    let rows = lives();
    let below = below(TOTALS, Emit::Changes);
    let other = "SELECT tenant, max(c) AS most FROM u GROUP BY tenant";
    let told = told(&[(&over(&below, BEST), 2), (&over(&below, other), 1)], &rows);
    let expected = batch_answer(&format!("WITH u AS ({TOTALS}) {other}"), &rows[..6].concat(), None);
    assert_eq!(settled(&told[1], Emit::Changes), expected);
}

#[test]
fn a_view_over_one_that_changes_begins_anew() {
    let rows = lives();
    let positive = "SELECT tenant, n, count(*) AS c FROM events WHERE n > 10 GROUP BY tenant, n";
    let (first, second) = (below(TOTALS, Emit::Changes), below(positive, Emit::Changes));
    let told = told(&[(&over(&first, BEST), 2), (&over(&second, BEST), 3)], &rows);
    // Rows that came before the change are gone with what was computed of them.
    let expected = batch_answer(&format!("WITH u AS ({positive}) {BEST}"), &rows[3..6].concat(), None);
    assert_eq!(settled(&told[1], Emit::Changes), expected);
}

#[test]
fn a_view_with_windows_in_it_that_changes_begins_anew() {
    let rows = lives();
    let query = |k| {
        format!(
            "SELECT n, c, k FROM (SELECT n, c, row_number() OVER (ORDER BY c DESC, n) AS k FROM \
             (SELECT n, count(*) AS c FROM events GROUP BY n)) WHERE k <= {k}"
        )
    };
    let view = |k| view(&query(k), Emit::Changes).unwrap();
    let told = told(&[(&view(3), 2), (&view(5), 1)], &rows);
    assert_eq!(settled(&told[1], Emit::Changes), batch_answer(&query(5), &rows[3..6].concat(), None));
}
