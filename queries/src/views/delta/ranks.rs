//! The rows of a partition in an order: the first of them, or all, with window functions. These are DataFusion's, and see
//! the rows that are wanted; which these are is known from the order in which rows are kept.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Result, exec_err};
use datafusion::physical_expr::window::WindowExpr;

use super::bag::Bag;
use super::codec::{Codec, Row};
use super::fold::Fold;
use super::plan::Order;

/// How many rows one partition may have, counting those that are alike.
const ROWS_MAX: usize = 1 << 24;

/// The bytes of a row behind those of what it is ordered by; where that leaves the order open, the row decides.
pub(super) fn ordered(schema: &SchemaRef, order: &[Order]) -> Result<Codec> {
    let by = order.iter().enumerate().map(|(idx, order)| {
        let data_type: DataType = order.by.data_type(schema)?;
        Ok(Arc::new(Field::new(format!("o{idx}"), data_type, true)))
    });
    let mut fields = by.collect::<Result<Vec<_>>>()?;
    fields.extend(schema.fields().iter().map(Arc::clone));
    let options: Vec<SortOptions> = order.iter().map(|order| order.options).collect();
    Codec::ordered(&Arc::new(Schema::new(fields)), &options)
}

/// Some of the rows of a partition.
pub(super) struct InOrder {
    codec: Codec,
    n_order: usize,
    input: SchemaRef,
    skip: usize,
    fetch: usize,
    functions: Vec<Arc<dyn WindowExpr>>,
    output: Codec,
}

impl InOrder {
    /// Rows of `input`, those from `skip` on, `fetch` of them.
    pub(super) fn new(input: &SchemaRef, order: &[Order], skip: usize, fetch: usize) -> Result<Self> {
        Ok(Self {
            codec: ordered(input, order)?,
            n_order: order.len(),
            input: Arc::clone(input),
            skip,
            fetch,
            functions: Vec::new(),
            output: Codec::new(input)?,
        })
    }

    /// With the values of functions behind them, as rows of `output`.
    pub(super) fn with(self, functions: &[Arc<dyn WindowExpr>], output: &SchemaRef) -> Result<Self> {
        Ok(Self { functions: functions.to_vec(), output: Codec::new(output)?, ..self })
    }

    fn wanted<'a>(&self, kept: &'a Bag) -> Result<Vec<&'a [u8]>> {
        let (mut wanted, mut to_skip) = (Vec::new(), self.skip);
        for (row, count) in kept.iter() {
            let count = usize::try_from(count).unwrap_or(0);
            let n_skipped = count.min(to_skip);
            to_skip -= n_skipped;
            let n_taken = (count - n_skipped).min(self.fetch - wanted.len());
            if ROWS_MAX < wanted.len().saturating_add(n_taken) {
                return exec_err!("a partition has more than {ROWS_MAX} rows");
            }
            wanted.extend(std::iter::repeat_n(row, n_taken));
            if wanted.len() == self.fetch {
                break;
            }
        }
        Ok(wanted)
    }
}

impl Fold for InOrder {
    type Kept = Bag;
    type Ready = ();

    fn nothing(&self) -> Bag {
        Bag::default()
    }

    fn ready(&self, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }

    fn change(&self, kept: &mut Bag, (): &(), _: usize, row: &[u8], diff: i64) {
        kept.add(row, diff);
    }

    fn rows(&self, _: &[u8], kept: &Bag) -> Result<Vec<Row>> {
        let wanted = self.wanted(kept)?;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.codec.decode(wanted.into_iter())?;
        let n_rows = rows.num_rows();
        let mut columns = rows.columns()[self.n_order..].to_vec();
        if !self.functions.is_empty() {
            // A query may need no column of its rows.
            let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
            let input = Arc::clone(&self.input);
            let rows = RecordBatch::try_new_with_options(input, columns.clone(), &options)?;
            for function in &self.functions {
                columns.push(function.evaluate(&rows)?);
            }
        }
        self.output.encode(&columns, n_rows)
    }
}
