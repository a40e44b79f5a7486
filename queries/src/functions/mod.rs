//! The function library: what logs need and DataFusion has not.
//!
//! Every function takes any string type, gives null for null, never fails on a row (what does not parse is null or
//! false) and takes time linear in its input. Adding one: a file with a `Function`, and a line in [`FUNCTIONS`].

mod cidr;
mod defined;
mod function;
mod hash;
mod json;
mod luhn;
mod parse_url;
mod redact;
mod regexp;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

pub use defined::Functions;
pub use function::Function;

/// All functions of the library, by name.
pub const FUNCTIONS: &[&Function] = &[
    &cidr::CIDR_MATCH,
    &hash::HMAC_SHA256,
    &cidr::IP_VERSION,
    &json::JSON_GET,
    &json::JSON_GET_BOOL,
    &json::JSON_GET_FLOAT,
    &json::JSON_GET_INT,
    &json::JSON_GET_STR,
    &luhn::LUHN_VALID,
    &parse_url::PARSE_URL,
    &redact::REDACT,
    &regexp::REGEXP_EXTRACT,
    &hash::SHA256,
];

/// The functions as DataFusion takes them.
pub(crate) fn udfs() -> impl Iterator<Item = Arc<ScalarUDF>> {
    FUNCTIONS.iter().map(|function| Arc::new(ScalarUDF::new_from_impl(function::Udf::new(function))))
}
