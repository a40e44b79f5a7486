//! The one way in which DataFusion is set up, for expressions and for queries alike.

use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;

use crate::functions::{self, Functions};

/// The configuration: names are case-sensitive and keep their case, errors know where they are.
pub(crate) fn config() -> SessionConfig {
    let mut config = SessionConfig::new().with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.collect_spans = true;
    config
}

/// A session with DataFusion's functions and ours.
pub(crate) fn builder() -> SessionStateBuilder {
    let mut builder = SessionStateBuilder::new_with_default_features();
    builder.scalar_functions().get_or_insert_default().extend(functions::udfs());
    builder.with_config(config())
}

/// The same, with functions that users define.
pub(crate) fn with(defined: &Functions) -> SessionStateBuilder {
    let mut builder = builder();
    builder.scalar_functions().get_or_insert_default().extend(defined.udfs());
    builder
}
