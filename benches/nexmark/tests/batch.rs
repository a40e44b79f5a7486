//! Every query, as a view on 1, 2 and 4 workers, gives what DataFusion gives over the same rows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use logdrive_nexmark::queries::QUERIES;
use logdrive_nexmark::{events, run};

#[test]
fn views_give_what_datafusion_gives_over_a_table() {
    let epochs = events::generate(4_000, 150);
    let mut wrong = Vec::new();
    for query in QUERIES {
        let (expected, view) = (run::batch(query, &epochs, true), run::plan(query));
        let (Ok(expected), Ok((view, tables))) = (&expected, &view) else {
            wrong.push(format!("{}: {expected:?} {view:?}", query.name));
            continue;
        };
        let expected = &expected.rows;
        assert!(!expected.is_empty(), "{} has an answer", query.name);
        for workers in [1, 2, 4] {
            let found = run::run(view, tables, &epochs, workers, true);
            if found.stopped.is_some() || &found.rows != expected {
                let first = found.rows.iter().zip(expected).find(|(a, b)| a != b);
                wrong.push(format!(
                    "{} on {workers}: {:?}, {} rows for {}, first {first:?}",
                    query.name,
                    found.stopped,
                    found.rows.len(),
                    expected.len()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
