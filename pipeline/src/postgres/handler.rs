//! What a client says, and what it is answered: the simple and the extended query protocol.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{Sink, SinkExt as _, StreamExt as _};
use logdrive_queries::postgres::{Command, Subscribed, command, pieces, tables};
use logdrive_queries::{Options, shape, stream};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler, send_ready_for_query};
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use pgwire::messages::data::{FieldDescription, RowDescription};
use pgwire::messages::extendedquery::{Execute, PortalSuspended};
use pgwire::messages::response::{CommandComplete, EmptyQueryResponse, TransactionStatus};
use pgwire::messages::simplequery::Query;

use super::connection::Connection;
use super::encode::{fields, type_of};
use super::error::{error, error_with_hint, fatal, of_sql};
use super::parameter;
use super::rows::{Origin, Sent, subscription_schema};
use crate::config::postgres::PostgresConfig;
use crate::explaining;
use crate::following::{Follower, Wanted};
use crate::reading;
use crate::topology::View;

/// Answers all clients.
pub(super) struct Handler {
    pub(super) view: View,
    pub(super) config: PostgresConfig,
}

/// A statement that was prepared.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    command: Command,
    text: Arc<str>,
    /// The columns that it gives, if it gives rows.
    columns: Option<SchemaRef>,
    parameters: Vec<Type>,
}

/// What a statement comes to.
enum Outcome {
    Empty,
    Done(Tag),
    Begun,
    Ended(&'static str),
    Rows(Box<Sent>, &'static str),
    Copy(Box<Sent>),
}

/// Where a statement stands in the client's text.
type Place<'a> = (&'a Arc<str>, usize);

impl Handler {
    fn connection<C: ClientInfo>(client: &C) -> PgWireResult<Arc<Connection>> {
        let found = client.session_extensions().get::<Arc<Connection>>();
        found.map(|found| Arc::clone(&*found)).ok_or_else(|| fatal("08003", "the connection has not begun"))
    }

    /// What the tables are that a statement reads; with their rows if it runs.
    async fn options(
        &self,
        connection: &Connection,
        sql: &str,
        place: Place<'_>,
        with_rows: bool,
    ) -> PgWireResult<Options> {
        let (tables, _) = tables(sql).map_err(|error| of_sql(error, place.0, place.1))?;
        let options = if with_rows {
            reading::options(&self.view, &tables).await.map_err(|why| error("55000", why))?
        } else {
            reading::without_rows(&self.view)
        };
        let timeout = connection.timeout(self.config.statement_timeout);
        Ok(Options { postgres: Some(connection.session()), timeout, ..options })
    }

    /// The columns that a statement gives, and the types of its parameters: those that the client says, or the
    /// statement.
    async fn describe(
        &self,
        connection: &Connection,
        command: &Command,
        text: &Arc<str>,
        given: &[Option<Type>],
    ) -> PgWireResult<(Option<SchemaRef>, Vec<Type>)> {
        match command {
            Command::Query => {
                let in_place = |error| of_sql(error, text, 0);
                let mut options = self.options(connection, text, (text, 0), false).await?;
                let mut shaped = shape(text, &options).await.map_err(in_place)?;
                let n_parameters = shaped.parameters.len().max(given.len());
                let parameters = (0..n_parameters).map(|idx| {
                    let given = given.get(idx).cloned().flatten().filter(|given| *given != Type::UNKNOWN);
                    let found = || shaped.parameters.get(idx).cloned().flatten().map(|found| type_of(&found));
                    given.or_else(found).unwrap_or(Type::TEXT)
                });
                let parameters: Vec<Type> = parameters.collect();
                if !parameters.is_empty() {
                    let values = parameters.iter().map(|of| parameter::column(of, None, false));
                    let values: Result<Vec<ArrayRef>, _> = values.collect();
                    options.parameters = values.map_err(|invalid| error("22P02", invalid.to_string()))?;
                    shaped = shape(text, &options).await.map_err(in_place)?;
                }
                Ok((Some(shaped.schema), parameters))
            }
            Command::Show(name) => Ok((Some(shown(connection, name)?.schema()), Vec::new())),
            Command::Explain { .. } => {
                let columns = explaining::columns(&self.view, command).transpose();
                Ok((columns.map_err(|error| of_sql(error, text, 0))?, Vec::new()))
            }
            Command::Subscribe { query, .. } => {
                let wanted = self.wanted(query).map_err(|error| of_sql(error, text, 0))?;
                Ok((Some(subscription_schema(wanted.columns())), Vec::new()))
            }
            _ => Ok((None, Vec::new())),
        }
    }

    fn wanted(&self, query: &Subscribed) -> Result<Wanted, logdrive_queries::SqlError> {
        match query {
            Subscribed::View(name) => Wanted::view(&self.view, name),
            Subscribed::Query(query) => Wanted::query(&self.view, query),
        }
    }

    /// Runs one statement, and counts it.
    async fn run<C: ClientInfo>(
        &self,
        client: &C,
        command: &Command,
        sql: &str,
        place: Place<'_>,
        parameters: Vec<ArrayRef>,
        told: Option<(SchemaRef, Vec<FieldFormat>)>,
    ) -> PgWireResult<Outcome> {
        let connection = Self::connection(client)?;
        let stopped = connection.begin();
        tokio::select! {
            biased;
            () = stopped.cancelled() => Err(PgWireError::QueryCanceled),
            outcome = self.outcome(&connection, command, sql, place, parameters, told) => outcome,
        }
    }

    fn count<T>(&self, outcome: &PgWireResult<T>) {
        let outcome = match outcome {
            Ok(_) => "ok",
            Err(PgWireError::QueryCanceled) => "cancelled",
            Err(_) => "error",
        };
        self.view.metrics.reader_statements.with_label_values(&["postgres", outcome]).inc();
    }

    async fn outcome(
        &self,
        connection: &Arc<Connection>,
        command: &Command,
        sql: &str,
        place: Place<'_>,
        parameters: Vec<ArrayRef>,
        told: Option<(SchemaRef, Vec<FieldFormat>)>,
    ) -> PgWireResult<Outcome> {
        let sent = |origin: Origin, schema: SchemaRef| {
            let (told, formats) = match told {
                Some(told) => told,
                None => (Arc::clone(&schema), vec![FieldFormat::Text; schema.fields().len()]),
            };
            Box::new(Sent::new(origin, told, formats, connection, place))
        };
        let done = |tag: &str| Ok(Outcome::Done(Tag::new(tag)));
        match command {
            Command::Empty => Ok(Outcome::Empty),
            Command::Begin => Ok(Outcome::Begun),
            Command::Commit => Ok(Outcome::Ended("COMMIT")),
            Command::Rollback => Ok(Outcome::Ended("ROLLBACK")),
            Command::Ignored(tag) => done(tag),
            Command::Set { name, value } => {
                if !connection.set(name, value.clone()) {
                    return Err(error("53400", "there are too many settings"));
                }
                done("SET")
            }
            Command::Reset(name) => {
                connection.reset(name.as_deref());
                done("RESET")
            }
            Command::Deallocate(_) => done("DEALLOCATE"),
            Command::Show(name) => {
                let rows = shown(connection, name)?;
                let schema = rows.schema();
                Ok(Outcome::Rows(sent(Origin::Fixed(Some(rows)), schema), "SHOW"))
            }
            Command::Explain { .. } => {
                let rows = explaining::explained(&self.view, command).transpose();
                let rows = rows.map_err(|error| of_sql(error, place.0, place.1))?;
                let schema = rows.as_ref().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
                Ok(Outcome::Rows(sent(Origin::Fixed(rows), schema), "EXPLAIN"))
            }
            Command::Query => {
                let mut options = self.options(connection, sql, place, true).await?;
                options.parameters = parameters;
                let rows = stream(sql, &options).await.map_err(|error| of_sql(error, place.0, place.1))?;
                let schema = Arc::clone(rows.schema());
                Ok(Outcome::Rows(sent(Origin::Query(rows), schema), "SELECT"))
            }
            Command::Subscribe { query, token } => {
                let in_place = |error| of_sql(error, place.0, place.1);
                let wanted = self.wanted(query).map_err(in_place)?;
                let schema = subscription_schema(wanted.columns());
                let follower =
                    Follower::open(&self.view, wanted, token.as_deref()).await.map_err(in_place)?;
                Ok(Outcome::Rows(sent(Origin::Changes(Box::new(follower)), schema), "SUBSCRIBE"))
            }
            Command::Copy(inner) => {
                let command = self::command(inner).map_err(|error| of_sql(error, place.0, place.1))?;
                if !matches!(command, Command::Query | Command::Subscribe { .. }) {
                    return Err(error("42601", "COPY copies the rows of a query, or of SUBSCRIBE"));
                }
                // Where an error is within the brackets, is not known in the client's text.
                let text: Arc<str> = Arc::from(inner.as_str());
                match Box::pin(self.outcome(connection, &command, inner, (&text, 0), parameters, None))
                    .await?
                {
                    Outcome::Rows(sent, _) => Ok(Outcome::Copy(sent)),
                    other => Ok(other),
                }
            }
            Command::Other(word) => Err(refused(word)),
        }
    }

    /// Answers one statement of the simple protocol.
    async fn answer<C>(&self, client: &mut C, text: &Arc<str>, start: usize, sql: &str) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let command = command(sql).map_err(|error| of_sql(error, text, start))?;
        if let Command::Deallocate(name) = &command {
            deallocate(client.portal_store(), name.as_deref());
        }
        match self.run(client, &command, sql, (text, start), Vec::new(), None).await? {
            Outcome::Rows(sent, tag) => {
                let described = fields(&sent.told, |_| FieldFormat::Text);
                client.feed(PgWireBackendMessage::RowDescription(description(&described))).await?;
                let mut rows = Box::pin(sent.stream());
                let (n_rows, _) = send(client, &mut rows, 0).await?;
                client.feed(complete(tag, Some(n_rows))).await?;
            }
            other => self.finish(client, other).await?,
        }
        Ok(())
    }

    /// Answers what gives no rows in messages of their own.
    async fn finish<C>(&self, client: &mut C, outcome: Outcome) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match outcome {
            Outcome::Empty => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?
            }
            Outcome::Done(tag) => client.feed(PgWireBackendMessage::CommandComplete(tag.into())).await?,
            Outcome::Begun => {
                client.set_transaction_status(TransactionStatus::Transaction);
                client.feed(complete("BEGIN", None)).await?;
            }
            Outcome::Ended(tag) => {
                client.set_transaction_status(TransactionStatus::Idle);
                client.feed(complete(tag, None)).await?;
            }
            Outcome::Copy(mut sent) => {
                let n_columns = sent.told.fields().len();
                let columns = i16::try_from(n_columns).unwrap_or(i16::MAX);
                let response = CopyOutResponse::new(0, columns, vec![0; n_columns]);
                client.send(PgWireBackendMessage::CopyOutResponse(response)).await?;
                let mut n_rows = 0;
                loop {
                    let next = sent.copied();
                    let mut next = std::pin::pin!(next);
                    let row = match futures::poll!(&mut next) {
                        std::task::Poll::Ready(row) => row?,
                        std::task::Poll::Pending => {
                            client.flush().await?;
                            next.await?
                        }
                    };
                    let Some(row) = row else { break };
                    n_rows += 1;
                    client.feed(PgWireBackendMessage::CopyData(CopyData::new(row.freeze()))).await?;
                }
                client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
                client.feed(complete("COPY", Some(n_rows))).await?;
            }
            Outcome::Rows(..) => return Err(error("XX000", "rows are sent elsewhere")),
        }
        Ok(())
    }
}

/// Sends rows as they come; what is there is sent before more is waited for. How many, and whether there may be more.
async fn send<C, S>(client: &mut C, rows: &mut S, max_rows: usize) -> PgWireResult<(usize, bool)>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    S: futures::Stream<Item = PgWireResult<pgwire::messages::data::DataRow>> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let mut n_rows = 0;
    while max_rows == 0 || n_rows < max_rows {
        let row = match futures::poll!(rows.next()) {
            std::task::Poll::Ready(row) => row,
            std::task::Poll::Pending => {
                client.flush().await?;
                rows.next().await
            }
        };
        let Some(row) = row else { return Ok((n_rows, false)) };
        client.feed(PgWireBackendMessage::DataRow(row?)).await?;
        n_rows += 1;
    }
    Ok((n_rows, true))
}

fn complete(tag: &str, n_rows: Option<usize>) -> PgWireBackendMessage {
    let tag = Tag::new(tag);
    let tag = match n_rows {
        Some(n_rows) => tag.with_rows(n_rows),
        None => tag,
    };
    PgWireBackendMessage::CommandComplete(CommandComplete::from(tag))
}

fn description(fields: &[FieldInfo]) -> RowDescription {
    RowDescription::new(fields.iter().map(FieldDescription::from).collect())
}

fn deallocate<P: PortalStore>(store: &P, name: Option<&str>) {
    match name {
        Some(name) => store.rm_statement(name),
        // Others than those that clients name are replaced, not collected.
        None => store.clear_portals(),
    }
}

fn refused(word: &str) -> PgWireError {
    match word {
        "declare" | "fetch" | "move" => error_with_hint(
            "0A000",
            "there are no cursors",
            "fetch the rows of a statement in parts, or use COPY",
        ),
        "prepare" | "execute" => {
            error_with_hint("0A000", "there is no PREPARE in SQL", "prepare statements with the protocol")
        }
        "insert" | "update" | "delete" | "merge" | "truncate" | "create" | "drop" | "alter" | "grant"
        | "revoke" | "comment" | "refresh" | "reindex" | "vacuum" | "lock" => error_with_hint(
            "25006",
            "only statements that read are answered",
            "the configuration says what is written",
        ),
        other => error("42601", format!("no statement begins with `{other}`")),
    }
}

/// What `SHOW` shows.
fn shown(connection: &Connection, name: &str) -> PgWireResult<RecordBatch> {
    let (names, columns): (Vec<&str>, Vec<Vec<String>>) = if name == "all" {
        let settings = connection.settings();
        let (names, values) = settings.into_iter().unzip();
        (vec!["name", "setting"], vec![names, values])
    } else {
        let value = connection.get(name);
        let value = value.ok_or_else(|| error("42704", format!("there is no setting `{name}`")))?;
        (vec![name], vec![vec![value]])
    };
    let fields = names.iter().map(|name| Field::new(*name, DataType::Utf8, false));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = columns.into_iter().map(|values| Arc::new(StringArray::from(values)) as ArrayRef);
    RecordBatch::try_new(schema, columns.collect()).map_err(|e| error("XX000", e.to_string()))
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let text: Arc<str> = Arc::from(query.query);
        let pieces = pieces(&text).map_err(|error| of_sql(error, &text, 0))?;
        if pieces.is_empty() {
            self.finish(client, Outcome::Empty).await?;
        }
        for (start, sql) in pieces {
            let answered = self.answer(client, &text, start, sql).await;
            self.count(&answered);
            answered?;
        }
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, _: &mut C, _: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(error("XX000", "queries are answered elsewhere"))
    }
}

#[async_trait]
impl QueryParser for Handler {
    type Statement = Prepared;

    async fn parse_sql<C>(
        &self,
        client: &C,
        sql: &str,
        types: &[Option<Type>],
    ) -> PgWireResult<Option<Prepared>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let connection = Self::connection(client)?;
        let text: Arc<str> = Arc::from(sql);
        let whole = |error| of_sql(error, &text, 0);
        match pieces(sql).map_err(whole)?.len() {
            0 => return Ok(None),
            1 => {}
            _ => return Err(error("42601", "a prepared statement is one statement")),
        }
        // What ends a statement is no part of it.
        let text: Arc<str> = Arc::from(sql.trim_end().trim_end_matches(';'));
        let command = command(&text).map_err(whole)?;
        if let Command::Other(word) = &command {
            return Err(refused(word));
        }
        let (columns, parameters) = self.describe(&connection, &command, &text, types).await?;
        Ok(Some(Prepared { command, text, columns, parameters }))
    }

    fn get_parameter_types(&self, statement: &Prepared) -> PgWireResult<Vec<Type>> {
        Ok(statement.parameters.clone())
    }

    fn get_result_schema(
        &self,
        statement: &Prepared,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let Some(columns) = &statement.columns else { return Ok(Vec::new()) };
        let formats = formats(format.unwrap_or(&Format::UnifiedText), columns.fields().len())?;
        Ok(fields(columns, |idx| formats[idx]))
    }
}

/// The format of each column. What a client says of it is one for all, or one for each.
fn formats(format: &Format, n_columns: usize) -> PgWireResult<Vec<FieldFormat>> {
    match format {
        Format::UnifiedText => Ok(vec![FieldFormat::Text; n_columns]),
        Format::UnifiedBinary => Ok(vec![FieldFormat::Binary; n_columns]),
        Format::Individual(codes) if codes.len() == n_columns => {
            Ok(codes.iter().map(|code| FieldFormat::from(*code)).collect())
        }
        Format::Individual(codes) if codes.is_empty() => Ok(vec![FieldFormat::Text; n_columns]),
        Format::Individual(codes) => {
            Err(error("08P01", format!("{} formats were given for {n_columns} columns", codes.len())))
        }
    }
}

/// The values that were bound, as columns of one row.
fn bound(portal: &Portal<Prepared>) -> PgWireResult<Vec<ArrayRef>> {
    let types = &portal.statement.statement.parameters;
    let values = &portal.parameters;
    if values.len() != types.len() {
        let message = format!("{} values were bound to {} parameters", values.len(), types.len());
        return Err(error("08P01", message));
    }
    let is_binary = |idx: usize| match &portal.parameter_format {
        Format::UnifiedText => false,
        Format::UnifiedBinary => true,
        Format::Individual(codes) => codes.get(idx) == Some(&1),
    };
    let values = types.iter().zip(values).enumerate().map(|(idx, (of, value))| {
        let column = parameter::column(of, value.as_deref(), is_binary(idx));
        column.map_err(|invalid| error("22P02", format!("${}: {invalid}", idx + 1)))
    });
    values.collect()
}

#[async_trait]
impl ExtendedQueryHandler for Extended {
    type Statement = Prepared;
    type QueryParser = Handler;

    fn query_parser(&self) -> Arc<Handler> {
        Arc::clone(&self.0)
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => return self.0.finish(client, Outcome::Empty).await,
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        let executed = self.execute(client, &portal, usize::try_from(message.max_rows).unwrap_or(0)).await;
        self.0.count(&executed);
        executed
    }

    async fn do_query<C>(&self, _: &mut C, _: &Portal<Prepared>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(error("XX000", "queries are answered elsewhere"))
    }
}

/// The extended protocol.
pub(super) struct Extended(pub(super) Arc<Handler>);

impl Extended {
    async fn execute<C>(&self, client: &mut C, portal: &Portal<Prepared>, max_rows: usize) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let state = portal.state();
        let mut state = state.lock().await;
        if matches!(*state, PortalExecutionState::Initial) {
            let Prepared { command, text, columns, .. } = &portal.statement.statement;
            let told = match columns {
                Some(columns) => {
                    let formats = formats(&portal.result_column_format, columns.fields().len())?;
                    Some((Arc::clone(columns), formats))
                }
                None => None,
            };
            if let Command::Deallocate(name) = command {
                deallocate(client.portal_store(), name.as_deref());
            }
            let parameters = bound(portal)?;
            match self.0.run(client, command, text, (text, 0), parameters, told).await? {
                Outcome::Rows(sent, tag) => {
                    let mut response = QueryResponse::new(Arc::default(), sent.stream());
                    response.set_command_tag(tag);
                    *state = PortalExecutionState::Suspended(response);
                }
                other => {
                    *state = PortalExecutionState::Finished;
                    return self.0.finish(client, other).await;
                }
            }
        } else {
            // It can be stopped again.
            Handler::connection(client)?.begin();
        }
        let PortalExecutionState::Suspended(response) = &mut *state else {
            return self.0.finish(client, Outcome::Done(Tag::new("SELECT").with_rows(0))).await;
        };
        let tag = response.command_tag().to_owned();
        match send(client, response.data_rows(), max_rows).await {
            Ok((_, true)) => {
                client.feed(PgWireBackendMessage::PortalSuspended(PortalSuspended::new())).await?;
                Ok(())
            }
            ended => {
                *state = PortalExecutionState::Finished;
                let (n_rows, _) = ended?;
                client.feed(complete(&tag, Some(n_rows))).await?;
                Ok(())
            }
        }
    }
}
