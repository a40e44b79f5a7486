//! The composable index template: without it, an address would be text and a point an object.

use std::time::Duration;

use bytes::Bytes;
use logdrive_schemas::catalogue;
use opensearch::http::Method;
use serde_json::{Value, json};

use super::endpoints::{Call, Endpoint, NoReply, Reply};
use super::lifecycle::Attached;
use crate::error::ConnectorError;
use crate::sinks::http_rejects::excerpt;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Texts in the catalogue's events, objects in ECS and so in what the `syslog` and `access_log` decoders make: which of
/// the two is left to the first document of an index.
const TEXT_OR_OBJECT: &[&str] = &["host", "service", "source", "url", "user_agent"];

/// The template for indices whose names match `pattern`: the catalogue's e-commerce fields, of which an index holds
/// those that occur.
pub(super) fn body(pattern: &str, data_stream: bool, attached: &Attached) -> Value {
    let mut schema = catalogue::find("ecommerce").expect("the catalogue has it");
    schema.fields.retain(|(name, _)| !TEXT_OR_OBJECT.contains(&name.as_str()));
    let mut body = catalogue::index_template(&schema, pattern);
    // `_meta` says what is in it, so that a template of an earlier configuration is told from this one.
    if data_stream {
        body["data_stream"] = json!({});
        body["_meta"]["data_stream"] = json!(true);
    }
    let settings = &mut body["template"]["settings"]["index"];
    match attached {
        Attached::Nothing => {}
        Attached::Ilm(policy) => {
            settings["lifecycle"] = json!({ "name": policy });
            body["_meta"]["lifecycle"] = json!({ "ilm": policy });
        }
        // The policy names the indices that it is for, but cannot change how they are compressed.
        Attached::Ism => {
            settings["codec"] = json!("best_compression");
            body["_meta"]["lifecycle"] = json!("ism");
        }
    }
    body
}

/// What to install.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) pattern: String,
    pub(super) overwrite: bool,
    pub(super) data_stream: bool,
}

impl Template {
    /// Installs the template, unless one of that name is there which is not ours.
    ///
    /// # Errors
    /// If the server does not let us. The sink then pauses, since documents indexed without the template would have
    /// wrong types for as long as their index lives.
    pub(super) async fn install(
        &self,
        endpoint: &Endpoint,
        attached: &Attached,
    ) -> Result<(), ConnectorError> {
        let path = format!("_index_template/{}", self.name);
        let wanted = body(&self.pattern, self.data_stream, attached);
        let found = self.check(endpoint, endpoint.send(Call::get(&path, TIMEOUT)).await, &[200, 404])?;
        if found.status == 200 {
            let found: Value = serde_json::from_slice(&found.body).unwrap_or_default();
            let found = &found["index_templates"][0]["index_template"];
            let ours = found["_meta"]["managed_by"] == "logdrive";
            if ours
                && found["_meta"] == wanted["_meta"]
                && found["index_patterns"] == wanted["index_patterns"]
            {
                return Ok(());
            }
            if !ours && !self.overwrite {
                tracing::info!(template = self.name, "The index template is not ours and stays as it is.");
                return Ok(());
            }
        }
        let call = Call {
            method: Method::Put,
            body: Some(Bytes::from(wanted.to_string())),
            ..Call::get(&path, TIMEOUT)
        };
        self.check(endpoint, endpoint.send(call).await, &[200])?;
        tracing::info!(template = self.name, pattern = self.pattern, "Installed the index template.");
        Ok(())
    }

    fn check(
        &self,
        endpoint: &Endpoint,
        reply: Result<Reply, NoReply>,
        expected: &[u16],
    ) -> Result<Reply, ConnectorError> {
        let reply = reply.map_err(|error| ConnectorError::disconnected(endpoint.name(), error))?;
        if expected.contains(&reply.status) {
            return Ok(reply);
        }
        let said = excerpt(&String::from_utf8_lossy(&reply.body));
        let reason = format!(
            "index template `{}`: status {}: {said} (with `template: {{ enabled: false }}` none is installed)",
            self.name, reply.status
        );
        Err(ConnectorError::disconnected(endpoint.name(), reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_object_in_syslog_and_access_logs_is_left_open() {
        let properties = &body("x-*", false, &Attached::Nothing)["template"]["mappings"]["properties"];
        assert!(properties["tenant"].is_object());
        assert!(TEXT_OR_OBJECT.iter().all(|name| properties[name].is_null()), "{properties}");
    }

    #[test]
    fn a_policy_and_a_data_stream_change_what_the_template_says_of_itself() {
        let plain = body("x-*", false, &Attached::Nothing);
        let stream = body("x", true, &Attached::Ilm("p".into()));
        assert!(plain["data_stream"].is_null() && stream["data_stream"].is_object());
        assert_eq!(stream["template"]["settings"]["index"]["lifecycle"]["name"], "p");
        let merged = body("x-*", false, &Attached::Ism);
        assert_eq!(merged["template"]["settings"]["index"]["codec"], "best_compression");
        assert!(plain["_meta"] != stream["_meta"] && plain["_meta"] != merged["_meta"]);
    }
}
