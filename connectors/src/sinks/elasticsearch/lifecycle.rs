//! Policies by which the server ages indices: ILM in Elasticsearch, ISM in OpenSearch.
//!
//! A server that has neither, or not by its licence, keeps indices until somebody deletes them; that is said once at
//! every connection, and nothing else depends on it.

use std::time::Duration;

use bytes::Bytes;
use opensearch::http::Method;
use serde_json::{Value, json};

use super::dialect::{Dialect, Product};
use super::endpoints::{Call, Endpoint, Reply};
use crate::error::ConnectorError;
use crate::sinks::http_rejects::excerpt;

const TIMEOUT: Duration = Duration::from_secs(30);
/// How the description of an ISM policy of ours begins; what it says follows.
const OURS: &str = "Made by Logdrive: ";

/// What indices must say so that the policy applies to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// The server has no policies.
    Nothing,
    /// The name of their policy.
    Ilm(String),
    /// Nothing: the policy names them.
    Ism,
}

/// What to install.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) pattern: String,
    pub(super) compress_after: Duration,
    pub(super) delete_after: Duration,
    /// Age and bytes at which a data stream gets a new index.
    pub(super) rollover: Option<(Duration, u64)>,
    pub(super) overwrite: bool,
}

impl Policy {
    /// Installs the policy, unless one of that name is there which is not ours.
    ///
    /// # Errors
    /// If the server does not answer, or asks for time.
    pub(super) async fn install(
        &self,
        endpoint: &Endpoint,
        dialect: Dialect,
    ) -> Result<Attached, ConnectorError> {
        let mut said = None;
        if dialect.product != Product::OpenSearch {
            said = self.install_ilm(endpoint).await?;
            if said.is_none() {
                return Ok(Attached::Ilm(self.name.clone()));
            }
        }
        if dialect.product != Product::Elasticsearch {
            said = self.install_ism(endpoint).await?;
            if said.is_none() {
                return Ok(Attached::Ism);
            }
        }
        tracing::warn!(
            policy = self.name,
            server = %dialect,
            reason = said.unwrap_or_default(),
            "The server takes no lifecycle policy: indices stay until somebody deletes them."
        );
        Ok(Attached::Nothing)
    }

    /// What the server said against it.
    async fn install_ilm(&self, endpoint: &Endpoint) -> Result<Option<String>, ConnectorError> {
        let path = format!("_ilm/policy/{}", self.name);
        let wanted = self.ilm();
        let found = self.send(endpoint, Call::get(&path, TIMEOUT)).await?;
        if found.status == 200 {
            let found: Value = serde_json::from_slice(&found.body).unwrap_or_default();
            let meta = &found[&self.name]["policy"]["_meta"];
            if *meta == wanted["policy"]["_meta"] {
                return Ok(None);
            }
            if meta["managed_by"] != "logdrive" && !self.overwrite {
                tracing::info!(policy = self.name, "The lifecycle policy is not ours and stays as it is.");
                return Ok(None);
            }
        }
        self.put(endpoint, &path, &[], &wanted).await
    }

    /// What the server said against it.
    async fn install_ism(&self, endpoint: &Endpoint) -> Result<Option<String>, ConnectorError> {
        let path = format!("_plugins/_ism/policies/{}", self.name);
        let wanted = self.ism();
        let found = self.send(endpoint, Call::get(&path, TIMEOUT)).await?;
        let mut version = Vec::new();
        if found.status == 200 {
            let found: Value = serde_json::from_slice(&found.body).unwrap_or_default();
            let description = &found["policy"]["description"];
            if *description == wanted["policy"]["description"] {
                return Ok(None);
            }
            if !description.as_str().unwrap_or_default().starts_with(OURS) && !self.overwrite {
                tracing::info!(policy = self.name, "The lifecycle policy is not ours and stays as it is.");
                return Ok(None);
            }
            version = vec![
                ("if_seq_no", found["_seq_no"].to_string()),
                ("if_primary_term", found["_primary_term"].to_string()),
            ];
        }
        let version: Vec<(&str, &str)> = version.iter().map(|(name, n)| (*name, n.as_str())).collect();
        self.put(endpoint, &path, &version, &wanted).await
    }

    async fn put(
        &self,
        endpoint: &Endpoint,
        path: &str,
        query: &[(&str, &str)],
        body: &Value,
    ) -> Result<Option<String>, ConnectorError> {
        let body = Some(Bytes::from(body.to_string()));
        let call = Call { method: Method::Put, query, body, ..Call::get(path, TIMEOUT) };
        let reply = self.send(endpoint, call).await?;
        if matches!(reply.status, 200 | 201) {
            tracing::info!(policy = self.name, pattern = self.pattern, "Installed the lifecycle policy.");
            return Ok(None);
        }
        Ok(Some(format!("status {}: {}", reply.status, excerpt(&String::from_utf8_lossy(&reply.body)))))
    }

    async fn send(&self, endpoint: &Endpoint, call: Call<'_>) -> Result<Reply, ConnectorError> {
        let reply = endpoint.send(call).await;
        let reply = reply.map_err(|error| ConnectorError::disconnected(endpoint.name(), error))?;
        match reply.status {
            401 | 408 | 409 | 429 | 500.. => {
                let reason = format!("lifecycle policy `{}`: status {}", self.name, reply.status);
                Err(ConnectorError::disconnected(endpoint.name(), reason))
            }
            _ => Ok(reply),
        }
    }

    /// The policy as Elasticsearch has it.
    fn ilm(&self) -> Value {
        let mut hot = json!({ "set_priority": { "priority": 100 } });
        if let Some((age, bytes)) = self.rollover {
            hot["rollover"] = json!({ "max_age": time(age), "max_primary_shard_size": format!("{bytes}b") });
        }
        let merge = json!({ "max_num_segments": 1, "index_codec": "best_compression" });
        let phases = json!({
            "hot": { "min_age": "0ms", "actions": hot },
            "warm": {
                "min_age": time(self.compress_after),
                "actions": { "set_priority": { "priority": 50 }, "readonly": {}, "forcemerge": merge },
            },
            "delete": { "min_age": time(self.delete_after), "actions": { "delete": {} } },
        });
        // The server adds defaults to phases, so what was asked for is kept beside them.
        json!({ "policy": { "phases": phases, "_meta": { "managed_by": "logdrive", "asked": phases.to_string() } } })
    }

    /// The policy as OpenSearch has it.
    fn ism(&self) -> Value {
        let (age, mut hot) = ("min_index_age", Vec::new());
        let age = match self.rollover {
            None => age,
            Some((age, bytes)) => {
                let shard = format!("{bytes}b");
                hot.push(
                    json!({ "rollover": { "min_index_age": time(age), "min_primary_shard_size": shard } }),
                );
                "min_rollover_age"
            }
        };
        let after = |state: &str, time_left: Duration| json!([{ "state_name": state, "conditions": { age: time(time_left) } }]);
        let states = json!([
            { "name": "hot", "actions": hot, "transitions": after("compressed", self.compress_after) },
            {
                "name": "compressed",
                "actions": [{ "read_only": {} }, { "force_merge": { "max_num_segments": 1 } }],
                "transitions": after("deleted", self.delete_after),
            },
            { "name": "deleted", "actions": [{ "delete": {} }], "transitions": [] },
        ]);
        let text = format!("{OURS}{} {states}", self.pattern);
        json!({ "policy": {
            "description": text,
            "default_state": "hot",
            "states": states,
            "ism_template": [{ "index_patterns": [self.pattern], "priority": 200 }],
        } })
    }
}

/// In the largest unit that it is a whole number of, for both servers.
fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match [(86_400, "d"), (3600, "h"), (60, "m")].iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rollover: bool) -> Policy {
        Policy {
            name: "logdrive-logs".into(),
            pattern: "logs-*".into(),
            compress_after: Duration::from_secs(7 * 86_400),
            delete_after: Duration::from_secs(90 * 86_400),
            rollover: rollover.then_some((Duration::from_secs(36 * 3600), 50 << 30)),
            overwrite: false,
        }
    }

    #[test]
    fn elasticsearch_compresses_and_deletes() {
        let ilm = policy(true).ilm();
        let phases = &ilm["policy"]["phases"];
        assert_eq!(phases["hot"]["actions"]["rollover"]["max_age"], "36h");
        assert_eq!(phases["hot"]["actions"]["rollover"]["max_primary_shard_size"], "53687091200b");
        assert_eq!(phases["warm"]["min_age"], "7d");
        assert_eq!(phases["warm"]["actions"]["forcemerge"]["index_codec"], "best_compression");
        assert_eq!(phases["delete"]["min_age"], "90d");
        assert!(policy(false).ilm()["policy"]["phases"]["hot"]["actions"]["rollover"].is_null());
    }

    #[test]
    fn opensearch_counts_from_the_rollover_where_there_is_one() {
        let states = |rollover| policy(rollover).ism()["policy"]["states"].clone();
        assert_eq!(states(true)[0]["transitions"][0]["conditions"], json!({ "min_rollover_age": "7d" }));
        assert_eq!(states(false)[1]["transitions"][0]["conditions"], json!({ "min_index_age": "90d" }));
        assert_eq!(states(false)[0]["actions"], json!([]));
    }
}
