//! `views:`: the keys of a view, and how its query finds its input.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use logdrive_operators::{Stage, View};
use logdrive_queries::Functions;
use logdrive_queries::views::{self, Emit, Table, ViewOptions};
use logdrive_schemas::RowSchema;
use logdrive_schemas::component::{ConfigError, Key, Node, duration};
use serde::{Deserialize, Deserializer};

use super::plan::{Input, Lane, ViewInput, ViewPlan};

/// The keys of a view.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// The query, over sources, streams and other views. Windows of event time are named by `tumble(time, size)`,
    /// `hop(time, slide, size)` and `session(time, gap)` in `GROUP BY`, and their edges by `tumble_start(…)`,
    /// `tumble_end(…)` and so on.
    pub sql: String,
    /// What leaves the view: `changes`, every change of a row with `_change` and `_epoch`; or `final`, each row once,
    /// when its window closes.
    #[serde(default)]
    pub emit: Emit,
    /// How late a row may be; that of the input's schema unless given.
    #[serde(default, deserialize_with = "some_duration")]
    #[schemars(with = "Option<String>")]
    pub lateness: Option<Duration>,
    /// After how long without rows a partition of a source no longer holds back the windows.
    #[serde(default = "idle_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How many bytes the state may take, about. A view that needs more stops; the pipeline goes on.
    #[serde(default = "max_bytes_default", deserialize_with = "logdrive_schemas::component::bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// For how long after its end a window can still be read by `logdrive sql`, in event time. What has left to sinks
    /// does not depend on it.
    #[serde(default = "retain_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub retain: Duration,
    /// Allows a query without windows, whose state grows with every new key.
    #[serde(default)]
    pub unbounded: bool,
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

fn idle_timeout_default() -> Duration {
    Duration::from_secs(60)
}

fn retain_default() -> Duration {
    Duration::from_secs(3600)
}

fn max_bytes_default() -> u64 {
    1 << 30
}

/// A view as it is written.
pub(super) struct ViewDraft {
    pub(super) key: Key,
    pub(super) node: Node,
    pub(super) config: ViewConfig,
    /// The functions that it may call.
    pub(super) functions: Functions,
}

/// Puts views behind those that they read. Returns the names of those that read each other, which are left out.
pub(super) fn sort(views: &mut Vec<ViewDraft>, errors: &mut Vec<ConfigError>) -> Vec<String> {
    let mut waiting = std::mem::take(views);
    while !waiting.is_empty() {
        let names: Vec<String> = waiting.iter().map(|view| view.key.name.clone()).collect();
        let reads_none =
            |view: &mut ViewDraft| !views::tables(&view.config.sql).iter().any(|table| names.contains(table));
        let ready: Vec<ViewDraft> = waiting.extract_if(.., reads_none).collect();
        if ready.is_empty() {
            let message = format!("the views `{}` read each other or themselves", names.join("`, `"));
            let span = waiting[0].key.span;
            let help = "let one of them read streams only; WITH RECURSIVE can say the same within one view";
            errors.push(ConfigError::new("sql::cycle", span, message).with_help(help));
            return names;
        }
        views.extend(ready);
    }
    Vec::new()
}

/// Of all that a view's result depends on.
fn fingerprint(view: &dyn View) -> u64 {
    view.fingerprints().iter().fold(0, |all: u64, (_, one)| all.rotate_left(1) ^ one)
}

/// Plans a view over the sources, streams and views whose lanes are known; `planned` are the views before it. `nothing`
/// if what it reads has an error of its own.
pub(super) fn plan(
    draft: &ViewDraft,
    lanes: &BTreeMap<Input, Vec<Lane>>,
    planned: &[ViewPlan],
    known: &dyn Fn(&str) -> Option<Input>,
    valid: &[&str],
    is_broken: &dyn Fn(&str) -> bool,
    errors: &mut Vec<ConfigError>,
) -> Option<ViewPlan> {
    let ViewDraft { key, node, config, functions } = draft;
    let sql_node = node.get("sql").unwrap_or(node);
    let (mut inputs, mut tables) = (Vec::new(), Vec::new());
    for name in views::tables(&config.sql) {
        match known(&name) {
            _ if is_broken(&name) => return None,
            Some(input @ (Input::Source(_) | Input::Stream(_) | Input::View(_))) => {
                let of_input = lanes.get(&input).map(Vec::as_slice).unwrap_or_default();
                let layout = Arc::clone(&of_input.first()?.stage.layout);
                let schemas = of_input.iter().map(|lane| lane.stage.schema.as_ref().clone());
                let schema: SchemaRef = match Schema::try_merge(schemas) {
                    Ok(schema) => Arc::new(schema),
                    Err(error) => {
                        let message = format!("the sources of `{name}` disagree: {error}");
                        errors.push(ConfigError::new("config::schema_mismatch", sql_node.span, message));
                        return None;
                    }
                };
                let view = match input {
                    Input::View(_) => Some(planned.iter().find(|view| *view.name == *name)?),
                    _ => None,
                };
                let rows = view.map_or_else(|| Arc::clone(&schema), |view| view.view.rows());
                // What keeps nothing takes nothing back.
                let changes = view.is_some_and(|view| view.view.table().is_some());
                let fingerprint = view.filter(|_| changes).map_or(0, |view| fingerprint(&*view.view));
                tables.push(Table { name, schema: rows, changes, fingerprint });
                inputs.push(ViewInput { input, columns: Stage { schema, layout } });
            }
            _ => {
                let what = format!("view `{}`", key.name);
                let code = "sql::unknown_table";
                errors.push(ConfigError::unknown_name(code, sql_node.span, "table", &name, &what, valid));
                return None;
            }
        }
    }
    let read: Vec<&Lane> = inputs.iter().filter_map(|input| lanes.get(&input.input)).flatten().collect();
    let lateness = read.iter().map(|lane| lane.lateness).max().unwrap_or(RowSchema::LATENESS);
    let options = ViewOptions {
        name: key.name.as_str().into(),
        emit: config.emit,
        lateness: config.lateness.unwrap_or(lateness),
        idle_timeout: config.idle_timeout,
        max_bytes: config.max_bytes,
        retain: config.retain,
        unbounded: config.unbounded,
        functions: functions.clone(),
    };
    let view = match views::plan(&config.sql, &tables, options) {
        Ok(view) => view,
        Err(error) => {
            errors.push(error.in_configuration(sql_node));
            return None;
        }
    };
    Some(ViewPlan { name: key.name.as_str().into(), inputs, view })
}
