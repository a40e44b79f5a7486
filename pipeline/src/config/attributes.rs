//! The column of what a source says of each message beside its bytes: how the plan adds it to a source's rows, and how
//! a worker fills it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StructArray, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, Fields, Schema};
use logdrive_operators::Stage;
use logdrive_schemas::{Batch, Chunk, Edit, Layout};

/// Rows of `stage` with one more column, which documents have too.
pub(crate) fn added_to(stage: Stage, field: &FieldRef) -> Stage {
    let mut fields = stage.schema.fields().to_vec();
    fields.push(Arc::clone(field));
    let schema = Arc::new(Schema::new_with_metadata(fields, stage.schema.metadata().clone()));
    let layout = match Arc::unwrap_or_clone(stage.layout) {
        Layout::Columns => Layout::Columns,
        Layout::Original(mut edits) => {
            edits.push(Edit::Set { key: field.name().clone() });
            Layout::Original(edits)
        }
    };
    Stage { schema, layout: Arc::new(layout) }
}

/// Fills the column.
pub(crate) struct Attach {
    /// What its result looks like.
    stage: Stage,
    /// The fields of the column.
    fields: Fields,
}

impl Attach {
    /// For rows of `stage`, as a decoder makes them.
    pub(crate) fn new(stage: Stage, field: &FieldRef) -> Self {
        let fields = match field.data_type() {
            DataType::Struct(fields) => fields.clone(),
            _ => Fields::empty(),
        };
        Self { stage: added_to(stage, field), fields }
    }

    /// Adds the attributes of each row's message, which is found by its offset. What was buffered before the
    /// configuration asked for them has none: null.
    pub(crate) fn attach(&self, batch: Batch, chunk: &Chunk) -> Batch {
        let column = self.column(&batch, chunk);
        let mut columns = batch.rows().columns().to_vec();
        columns.push(column);
        let rows = RecordBatch::try_new(Arc::clone(&self.stage.schema), columns)
            .expect("the decoder's rows fit its schema, and the column was made to fit");
        batch.with_rows(rows, Arc::clone(&self.stage.layout))
    }

    fn column(&self, batch: &Batch, chunk: &Chunk) -> ArrayRef {
        let column_type = DataType::Struct(self.fields.clone());
        let n_rows = batch.num_rows();
        let n_messages = chunk.messages.len();
        let Some(given) = chunk.attributes.as_ref().filter(|given| given.len() == n_messages) else {
            return new_null_array(&column_type, n_rows);
        };
        let offsets: &[u64] = batch.offsets().values();
        let indices = (offsets != chunk.offsets.as_slice()).then(|| messages_of(offsets, &chunk.offsets));
        let columns = self.fields.iter().map(|field| {
            let given = given.column_by_name(field.name()).filter(|c| c.data_type() == field.data_type());
            match (given, &indices) {
                (Some(given), None) => Arc::clone(given),
                (Some(given), Some(indices)) => {
                    take(given, indices, None).expect("the indices are within the chunk")
                }
                (None, _) => new_null_array(field.data_type(), n_rows),
            }
        });
        let columns = columns.collect();
        Arc::new(StructArray::new(self.fields.clone(), columns, None))
    }
}

/// The message of each row. Both lists ascend; a message may have no row.
fn messages_of(rows: &[u64], messages: &[u64]) -> UInt32Array {
    let mut at = 0;
    let indices = rows.iter().map(|offset| {
        while messages.get(at).is_some_and(|message| message < offset) {
            at += 1;
        }
        let found = messages.get(at) == Some(offset);
        u32::try_from(at).ok().filter(|_| found)
    });
    indices.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::{AsArray as _, StringViewArray};
    use arrow::datatypes::{Field, Int64Type};
    use async_trait::async_trait;
    use logdrive_connectors::document::Documents;
    use logdrive_connectors::sink::FlushPolicy;
    use logdrive_connectors::{Budget, ConnectorError, DECODERS, Demand, Metrics, Sink, Source};
    use logdrive_schemas::component::{ConfigError, Limits, Node, NodeKind, Span};
    use logdrive_schemas::{Epoch, FieldType, MessageRange, Partition, Position, RowSchema};

    use super::*;
    use crate::config::draft::AttributesDraft;
    use crate::config::{Plan, PlanContext};
    use crate::topology::{self, Stand};

    fn chunk(messages: &[&str], attributes: Option<StructArray>) -> Chunk {
        let mut data = String::new();
        let mut ranges = Vec::new();
        for message in messages {
            ranges.push(MessageRange { start: data.len() as u32, len: message.len() as u32 });
            data.push_str(message);
        }
        let offsets = (0..messages.len() as u64).map(|n| 7 + n * n).collect();
        Chunk {
            source: "s".into(),
            partition: Partition(1),
            data: data.into_bytes().into(),
            messages: ranges,
            offsets,
            received_at: 0,
            peer: None,
            attributes,
            next_offset: 1 << 20,
        }
    }

    fn topics(topics: &[Option<&str>]) -> StructArray {
        let field = Arc::new(Field::new("topic", DataType::Utf8View, true));
        StructArray::from(vec![(field, Arc::new(StringViewArray::from(topics.to_vec())) as ArrayRef)])
    }

    /// Decodes JSON with the field `n` and attaches `mq: { topic, qos }`.
    fn documents(chunk: &Chunk) -> Vec<String> {
        let field =
            FieldType::Object(vec![("topic".into(), FieldType::String), ("qos".into(), FieldType::Int64)]);
        let schema = RowSchema::of_fields(vec![("n".into(), FieldType::Int64)]);
        let node = Node { kind: NodeKind::Map(Vec::new()), span: Span::default() };
        let json = DECODERS.iter().find(|entry| entry.name == "json").unwrap();
        let mut decoder = (json.build)(&node, &Demand { schema, validate: true }).unwrap();
        let stage = Stage { schema: decoder.schema(), layout: Arc::new(decoder.layout()) };
        let attach = Attach::new(stage, &Arc::new(field.field("mq")));
        let Some(rows) = decoder.decode(chunk).rows else { return Vec::new() };
        let batch = attach.attach(rows, chunk);
        let column = batch.rows().column_by_name("mq").unwrap();
        assert_eq!(column.as_struct().column(1).as_primitive::<Int64Type>().null_count(), batch.num_rows());
        let documents = Documents::new(&batch);
        let document = |idx| {
            let mut out = Vec::new();
            documents.write(idx, &mut out);
            String::from_utf8(out).unwrap()
        };
        (0..batch.num_rows()).map(document).collect()
    }

    #[test]
    fn each_row_has_the_attributes_of_its_message_also_behind_rejects() {
        let all = chunk(&[r#"{"n":1}"#, r#"{"n":2}"#], Some(topics(&[Some("a"), None])));
        assert_eq!(documents(&all), [r#"{"n":1,"mq":{"topic":"a"}}"#, r#"{"n":2,"mq":{}}"#]);
        let given = topics(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("e")]);
        let some = chunk(&["{", r#"{"n":2}"#, "x", "x", r#"{"n":5}"#], Some(given));
        let expected = [r#"{"n":2,"mq":{"topic":"b"}}"#, r#"{"n":5,"mq":{"topic":"e"}}"#];
        assert_eq!(documents(&some), expected);
    }

    fn object() -> FieldRef {
        Arc::new(FieldType::Object(vec![("topic".into(), FieldType::String)]).field("mq"))
    }

    /// Plans `yaml` as if its source had said `metadata: mq`.
    fn plan(yaml: &str) -> Result<Plan, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let root = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
        let mut draft = crate::config::draft::read(&root, &mut errors);
        let span = Span { start: 3, len: 2 };
        draft.sources[0].attributes = Some(AttributesDraft { field: object(), span });
        let cx = PlanContext { working_dir: ".".into() };
        let plan = crate::config::resolve::resolve(draft, &cx, &mut errors);
        plan.filter(|_| errors.is_empty()).ok_or(errors)
    }

    #[test]
    fn a_declared_field_of_that_name_is_an_error_with_its_place() {
        let fields = |name| {
            format!("sources: {{ s: {{ type: generate, schema: {{ fields: {{ {name}: string }} }} }} }}")
        };
        let errors = plan(&fields("mq")).err().unwrap();
        assert_eq!((errors[0].code, errors[0].span), ("config::duplicate_name", Span { start: 3, len: 2 }));
        assert!(plan(&fields("mp")).is_ok());
    }

    #[test]
    fn what_nothing_reads_is_not_attached() {
        let source = "sources: { s: { type: generate } }";
        assert!(plan(source).unwrap().sources[0].attributes.is_none());
        let sink = "sinks: { o: { from: s, type: stdout } }";
        assert!(plan(&format!("{source}\n{sink}")).unwrap().sources[0].attributes.is_some());
    }

    /// Gives one chunk, or keeps what it is given.
    struct Fake(Option<Chunk>, Arc<Mutex<Vec<String>>>);

    #[async_trait]
    impl Source for Fake {
        async fn connect(&mut self, _: &[Position]) -> Result<(), ConnectorError> {
            Ok(())
        }

        async fn recv(&mut self, _: Budget) -> Result<Chunk, ConnectorError> {
            self.0.take().ok_or(ConnectorError::End)
        }

        async fn commit(&mut self, _: Position) -> Result<(), ConnectorError> {
            Ok(())
        }
    }

    #[async_trait]
    impl Sink for Fake {
        async fn connect(&mut self) -> Result<(), ConnectorError> {
            Ok(())
        }

        async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
            let documents = Documents::new(batch);
            for idx in 0..batch.num_rows() {
                let mut out = Vec::new();
                documents.write(idx, &mut out);
                self.1.lock().unwrap().push(String::from_utf8(out).unwrap());
            }
            Ok(None)
        }

        async fn flush(&mut self, _: Epoch) -> Result<Option<Batch>, ConnectorError> {
            Ok(None)
        }

        fn flush_policy(&self) -> FlushPolicy {
            FlushPolicy { bytes_max: 1, age_max: std::time::Duration::ZERO }
        }
    }

    #[tokio::test]
    async fn sql_reads_them_and_documents_have_them() {
        let dir = tempfile::tempdir().unwrap();
        let yaml = "
sources: { s: { type: generate, schema: { fields: { n: int64 } } } }
streams: { odd: { from: s, steps: [ { where: \"mq.topic <> 'even' AND n > 0\" } ] } }
sinks: { o: { from: odd, type: stdout } }
";
        let plan = plan(&format!("data_dir: {}\nworkers: 1\n{yaml}", dir.path().display())).unwrap();
        let given = topics(&[Some("odd"), Some("odd"), Some("even"), Some("odd")]);
        let messages = [r#"{"n":1}"#, "nonsense", r#"{"n":2}"#, r#"{"n":3,"mq":"is replaced"}"#];
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut stand = Stand::default();
        stand.sources.insert(0, Box::new(Fake(Some(chunk(&messages, Some(given))), Arc::clone(&seen))));
        stand.sinks.insert(0, Box::new(Fake(None, Arc::clone(&seen))));
        let running = topology::start(plan, Arc::new(Metrics::new()), stand).await.unwrap();
        running.wait().await.unwrap();
        let expected = [r#"{"n":1,"mq":{"topic":"odd"}}"#, r#"{"n":3,"mq":{"topic":"odd"}}"#];
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn messages_without_attributes_leave_as_they_came() {
        assert_eq!(documents(&chunk(&[r#"{"n":1}"#, "x"], None)), [r#"{"n":1}"#]);
        // Kept in a buffer by another configuration: what has another type is null.
        let field = Arc::new(Field::new("topic", DataType::Int64, true));
        let numbers = Arc::new(arrow::array::Int64Array::from(vec![4])) as ArrayRef;
        let other = StructArray::from(vec![(field, numbers)]);
        assert_eq!(documents(&chunk(&[r#"{"n":1}"#], Some(other))), [r#"{"n":1,"mq":{}}"#]);
    }
}
