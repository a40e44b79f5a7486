//! Following the changes of a view, whichever way a reader asks: all of it, or some rows and columns.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::take;
use arrow::datatypes::{Schema, SchemaRef};
use logdrive_queries::SqlError;
use logdrive_queries::views::{self, Narrow, with_change};

use crate::topology::{Event, Lost, Subscription, View};

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    view: String,
    narrow: Option<Arc<Narrow>>,
    /// The columns without the change and its epoch.
    columns: SchemaRef,
}

impl Wanted {
    /// A view.
    pub(crate) fn view(view: &View, name: &str) -> Result<Self, SqlError> {
        let columns = columns(view, name)?;
        Ok(Self { view: name.to_owned(), narrow: None, columns })
    }

    /// Some rows and columns of one view.
    pub(crate) fn query(view: &View, query: &str) -> Result<Self, SqlError> {
        let tables = views::tables(query);
        let [name] = tables.as_slice() else {
            return Err(failed("sql::unsupported", "a subscription is to one view"));
        };
        let narrow = Narrow::new(query, name, &columns(view, name)?, &view.functions)?;
        let columns = Arc::clone(narrow.schema());
        Ok(Self { view: name.clone(), narrow: Some(Arc::new(narrow)), columns })
    }

    /// The columns without the change and its epoch.
    pub(crate) fn columns(&self) -> &SchemaRef {
        &self.columns
    }
}

/// That there is no such view, with the nearest name.
pub(crate) fn unknown_view(view: &View, name: &str) -> SqlError {
    let names: Vec<&str> = view.views.followed().collect();
    let help = match logdrive_schemas::component::nearest(name, &names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("views: {}", names.join(", ")),
    };
    SqlError { help: Some(help), ..failed("sql::unknown_table", &format!("there is no view `{name}`")) }
}

/// The columns of a view that can be followed.
fn columns(view: &View, name: &str) -> Result<SchemaRef, SqlError> {
    let schema = view.views.changes_schema(name).ok_or_else(|| unknown_view(view, name))?;
    let n_columns = schema.fields().len() - 2;
    Ok(Arc::new(Schema::new(schema.fields()[..n_columns].to_vec())))
}

pub(crate) fn failed(code: &'static str, message: &str) -> SqlError {
    SqlError { code, message: message.to_owned(), help: None, at: None }
}

/// Who follows.
#[derive(Debug)]
pub(crate) struct Follower {
    wanted: Wanted,
    schema: SchemaRef,
    subscription: Subscription,
}

/// Why nothing more is told.
#[derive(Debug)]
pub(crate) enum Ended {
    /// What comes next is no longer kept: begin anew.
    Lost(String),
    /// It failed.
    Failed(SqlError),
}

impl Follower {
    /// Follows from where `token` says, or from a snapshot on.
    pub(crate) async fn open(view: &View, wanted: Wanted, token: Option<&str>) -> Result<Self, SqlError> {
        let subscription = view.views.subscribe(&wanted.view, token).await;
        let subscription = subscription.map_err(|why| failed("sql::view", &why))?;
        let schema = with_change(&wanted.columns);
        Ok(Self { wanted, schema, subscription })
    }

    /// What comes next; nothing when the pipeline has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Ended> {
        loop {
            let event = self.subscription.next().await.map_err(|Lost(why)| Ended::Lost(why))?;
            let Some(Event::Rows(rows)) = event else { return Ok(event) };
            let rows = rows.iter().map(|rows| self.narrowed(rows));
            let mut rows = rows.collect::<Result<Vec<_>, _>>().map_err(Ended::Failed)?;
            rows.retain(|rows| rows.num_rows() > 0);
            if !rows.is_empty() {
                return Ok(Some(Event::Rows(rows)));
            }
        }
    }

    fn narrowed(&self, rows: &RecordBatch) -> Result<RecordBatch, SqlError> {
        let Some(narrow) = &self.wanted.narrow else { return Ok(rows.clone()) };
        let (chosen, indices) = narrow.apply(rows).map_err(|why| failed("sql::failed", &why))?;
        let mut columns = chosen.columns().to_vec();
        let of_arrow = |error: arrow::error::ArrowError| failed("sql::failed", &error.to_string());
        for column in &rows.columns()[rows.num_columns() - 2..] {
            columns.push(take(column, &indices, None).map_err(of_arrow)?);
        }
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(of_arrow)
    }
}
