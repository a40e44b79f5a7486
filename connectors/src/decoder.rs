//! From messages to rows.

use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, Chunk, Layout, RowSchema};

/// Which of the declared fields a pipeline reads, and how strictly the rest is to be checked.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The fields to decode: the declared schema, cut down to what any step, detector or sink reads. Nested objects
    /// are cut down too.
    pub schema: RowSchema,
    /// Whether each message must be checked in full, because a sink passes it on.
    pub validate: bool,
}

/// Every message of a chunk is in exactly one of the two.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The rows, in message order. Their schema is [`Decoder::schema`].
    pub rows: Option<Batch>,
    /// The messages that do not decode, as rows of the `rejects` stream.
    pub rejects: Option<Batch>,
}

/// Turns messages into rows. Pure, and cannot fail: a message that does not decode is a reject with its reason.
pub trait Decoder: Send {
    /// The columns of the rows it makes; the same for every chunk.
    fn schema(&self) -> arrow::datatypes::SchemaRef;

    /// How a row leaves as a document: as the message itself, unless the format is not JSON.
    fn layout(&self) -> Layout {
        Layout::Original(Vec::new())
    }

    /// Decodes one chunk. String columns are views over `chunk.data`; nothing is copied unless it was escaped.
    fn decode(&mut self, chunk: &Chunk) -> Decoded;
}

/// The YAML of a decoder. `decoder: json` is short for `decoder: { type: json }`.
pub trait DecoderConfig: Component {
    /// The fields that messages have if the pipeline declares no schema; empty if it must.
    fn default_schema(&self) -> RowSchema;

    /// Builds a decoder for what the pipeline reads. Called once per worker.
    ///
    /// # Errors
    /// If the schema does not fit the format.
    fn build(self, demand: &Demand) -> Result<Box<dyn Decoder>, ConfigError>;
}

/// One line of the registry.
pub struct DecoderEntry {
    /// `type:`.
    pub name: &'static str,
    /// A complete fragment of YAML.
    pub example: &'static str,
    /// The JSON Schema of its keys.
    pub schema: fn() -> schemars::Schema,
    /// The fields without a declared schema.
    pub default_schema: fn(&Node) -> Result<RowSchema, Vec<ConfigError>>,
    /// Reads the YAML and builds.
    pub build: fn(&Node, &Demand) -> Result<Box<dyn Decoder>, Vec<ConfigError>>,
}

impl DecoderEntry {
    /// The entry of a configuration type.
    #[must_use]
    pub const fn of<C: DecoderConfig>() -> Self {
        Self {
            name: C::NAME,
            example: C::EXAMPLE,
            schema: || schemars::schema_for!(C),
            default_schema: |node| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                Ok(config.default_schema())
            },
            build: |node, demand| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                config.build(demand).map_err(|e| vec![crate::source::spanned(e, node)])
            },
        }
    }
}
