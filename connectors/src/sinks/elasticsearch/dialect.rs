//! Which server it is. None is refused: what the answer decides is how a lifecycle policy is spoken of.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::endpoints::{Call, Endpoint, Reply};
use crate::error::ConnectorError;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A product and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) product: Product,
    /// Empty if it does not say.
    pub(super) version: String,
}

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    Elasticsearch,
    OpenSearch,
    /// It does not say, as serverless services and what stands in front of servers.
    Unknown,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.product {
            Product::Elasticsearch => "Elasticsearch",
            Product::OpenSearch => "OpenSearch",
            Product::Unknown => "unknown",
        };
        write!(f, "{name} {}", self.version)
    }
}

/// Asks a server what it is; if it does not say, it is of a kind that is unknown.
///
/// # Errors
/// If there is no whole answer.
pub(super) async fn ask(endpoint: &Endpoint) -> Result<Dialect, ConnectorError> {
    let lost = |error| ConnectorError::disconnected(endpoint.name(), error);
    let mut dialect = read(&endpoint.send(Call::get("/", TIMEOUT)).await.map_err(lost)?);
    if dialect.version.is_empty() {
        let query = [("filter_path", "nodes.*.version")];
        let call = Call { query: &query, ..Call::get("_nodes/_local", TIMEOUT) };
        let of_nodes = read(&endpoint.send(call).await.map_err(lost)?);
        if dialect.product == Product::Unknown {
            dialect.product = of_nodes.product;
        }
        dialect.version = of_nodes.version;
    }
    Ok(dialect)
}

/// Reads the answer to `/` or to `/_nodes`.
fn read(reply: &Reply) -> Dialect {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let of_node = || {
        let node = body.get("nodes")?.as_object()?.values().next()?;
        node.get("version")?.as_str().map(str::to_owned)
    };
    let version = match text("/version/number") {
        "" => of_node().unwrap_or_default(),
        version => version.to_owned(),
    };
    // OpenSearch can be told to give an Elasticsearch's number, but not another motto.
    let open = text("/version/distribution") == "opensearch" || text("/tagline").contains("OpenSearch");
    let product = match major(&version) {
        _ if open => Product::OpenSearch,
        _ if reply.is_elastic => Product::Elasticsearch,
        Some(5..) => Product::Elasticsearch,
        Some(_) => Product::OpenSearch,
        None => Product::Unknown,
    };
    Dialect { product, version }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(is_elastic: bool, body: &'static str) -> String {
        let reply = Reply { status: 200, retry_after: None, is_elastic, body: body.into() };
        read(&reply).to_string()
    }

    #[test]
    fn servers_are_told_by_what_they_say() {
        let elastic =
            r#"{"version":{"number":"8.15.1","build_flavor":"default"},"tagline":"You Know, for Search"}"#;
        assert_eq!(check(true, elastic), "Elasticsearch 8.15.1");
        let open = r#"{"version":{"distribution":"opensearch","number":"2.19.0"}}"#;
        assert_eq!(check(false, open), "OpenSearch 2.19.0");
        let disguised =
            r#"{"version":{"number":"7.10.2"},"tagline":"The OpenSearch Project: https://opensearch.org/"}"#;
        assert_eq!(check(false, disguised), "OpenSearch 7.10.2");
        assert_eq!(check(false, r#"{"nodes":{"x":{"version":"3.8.0"}}}"#), "OpenSearch 3.8.0");
        assert_eq!(check(false, r#"{"nodes":{"x":{"version":"9.5.3"}}}"#), "Elasticsearch 9.5.3");
        assert_eq!(check(true, "{}"), "Elasticsearch ");
        assert_eq!(check(false, "<html>"), "unknown ");
    }
}
