//! Which findings go where.

use std::time::Duration;

use logdrive_schemas::Severity;
use logdrive_schemas::component::duration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::book::Level;

/// Findings that go to the same channels. What is not given matches everything.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Of these severities: `P0`, `P1`, `P2`, `P3`.
    #[serde(default)]
    pub severity: Option<Vec<Severity>>,
    /// Of these tenants.
    #[serde(default)]
    pub tenant: Option<Vec<String>>,
    /// For which this condition in SQL is true.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
    /// The names of the channels that are told.
    pub channels: Vec<String>,
    /// Who else is told if the alert does not end.
    #[serde(default)]
    pub escalate: Vec<Escalation>,
    /// Whether later routes are tried, too.
    #[serde(default, rename = "continue")]
    pub goes_on: bool,
}

/// Who else is told of an alert that goes on.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    /// How long after the first channels were told.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub after: Duration,
    /// The names of the channels.
    pub channels: Vec<String>,
}

impl Route {
    /// `condition` is what the SQL said of the finding.
    pub(super) fn is_for(&self, severity: Severity, tenant: Option<&str>, condition: bool) -> bool {
        condition
            && self.severity.as_ref().is_none_or(|any| any.contains(&severity))
            && self.tenant.as_ref().is_none_or(|any| any.iter().any(|t| Some(t.as_str()) == tenant))
    }

    pub(super) fn levels(&self) -> Vec<Level> {
        let mut levels: Vec<_> = self
            .escalate
            .iter()
            .map(|e| Level { after_ms: super::millis(e.after), channels: e.channels.clone() })
            .collect();
        levels.sort_by_key(|level| level.after_ms);
        levels
    }

    /// Every channel that it names.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.channels.iter().chain(self.escalate.iter().flat_map(|e| &e.channels))
    }
}
