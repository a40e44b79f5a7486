//! Row isolation: one row that fails an expression becomes a reject, the other rows of its batch go on.

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::compute::concat;
use logdrive_schemas::{Batch, Reject, Rejects};

use crate::expression::Expression;

/// Evaluates `expr` on `batch`: the rows that it works for, its values for them, and a reject
/// (`expression_failed: …`) for each other row, by its index in `batch`.
///
/// A batch without a bad row is evaluated once. Otherwise it is halved until the bad rows stand alone, which costs
/// about twice the rows for each bad one and at most `2 · rows` evaluations.
#[must_use]
pub fn evaluate(expr: &dyn Expression, batch: &Batch) -> (Option<Batch>, Option<ArrayRef>, Rejects) {
    let (mut parts, rejects) = isolate(batch.num_rows(), |start, len| range(expr, batch, start, len));
    if rejects.is_empty() && parts.len() == 1 {
        return (Some(batch.clone()), parts.pop().map(|(_, values)| values), rejects);
    }
    let good: Vec<ArrayRef> = parts.into_iter().map(|(_, values)| values).collect();
    join(batch, &good, rejects)
}

/// Does `work` (on the rows from `start`, `len` of them) for all rows but those that make it fail, which it finds by
/// halving. Returns what was done from which row on, ascending, and a reject (`expression_failed: …`) for each other row.
pub fn isolate<T>(
    n_rows: usize,
    mut work: impl FnMut(usize, usize) -> Result<T, String>,
) -> (Vec<(usize, T)>, Rejects) {
    let (mut done, mut rejects) = (Vec::new(), Vec::new());
    // Ranges to look at, the first rows on top, so that results come in row order.
    let mut ranges = vec![(0, n_rows)];
    while let Some((start, len)) = ranges.pop() {
        match work(start, len) {
            Ok(result) => done.push((start, result)),
            // What fails whatever the rows are, fails for no row here.
            Err(_) if len == 0 => {}
            Err(error) if len <= 1 => {
                rejects.push(Reject { idx: start, reason: format!("expression_failed: {error}") });
            }
            Err(_) => {
                let half = len / 2;
                ranges.push((start + half, len - half));
                ranges.push((start, half));
            }
        }
    }
    (done, rejects)
}

/// The values of a range of rows.
fn range(expr: &dyn Expression, batch: &Batch, start: usize, len: usize) -> Result<ArrayRef, String> {
    let values = if len == batch.num_rows() {
        expr.evaluate(batch.rows())
    } else {
        expr.evaluate(&batch.rows().slice(start, len))
    };
    let values = values.map_err(|error| error.0)?;
    if values.len() == len { Ok(values) } else { Err(format!("{} values for {len} rows", values.len())) }
}

fn join(batch: &Batch, good: &[ArrayRef], rejects: Rejects) -> (Option<Batch>, Option<ArrayRef>, Rejects) {
    let parts: Vec<&dyn Array> = good.iter().map(AsRef::as_ref).collect();
    if parts.is_empty() {
        return (None, None, rejects);
    }
    let mut keep = vec![true; batch.num_rows()];
    for reject in &rejects {
        keep[reject.idx] = false;
    }
    let joined = concat(&parts).and_then(|values| Ok((batch.filter(&BooleanArray::from(keep))?, values)));
    match joined {
        Ok((Some(rows), values)) => (Some(rows), Some(values), rejects),
        Ok((None, _)) => (None, None, rejects),
        // Halves of different types: the expression broke its contract, so no row can be trusted.
        Err(error) => {
            let reason = format!("expression_failed: {error}");
            let all = (0..batch.num_rows()).map(|idx| Reject { idx, reason: reason.clone() });
            (None, None, all.collect())
        }
    }
}
