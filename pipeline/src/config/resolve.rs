//! From sections to the checked plan: names become edges, schemas flow along them, needs flow back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema};
use logdrive_connectors::sink::Reads;
use logdrive_connectors::{Demand, Guarantee, SINKS};
use logdrive_operators::{Compiler, DetectorContext, STEPS, Stage, StepContext, StepPlan};
use logdrive_queries::SqlCompiler;
use logdrive_schemas::component::{ConfigError, Node, NodeKind, Scalar, Span};
use logdrive_schemas::{Edit, Finding, Layout, RowSchema, reject};

use super::attributes;
use super::computed;
use super::draft::{
    AttributesDraft, DetectorDraft, Draft, Reference, SinkDraft, SourceDraft, StreamDraft, complete_keys,
};
use super::plan::{
    DetectorPlan, Input, Lane, LanePlan, Plan, QueueConfig, SinkPlan, SourcePlan, StreamPlan, ViewPlan,
};
use super::view;

/// What planning needs from outside the configuration.
#[derive(Clone, Debug)]
pub struct PlanContext {
    /// The folder that relative paths start at.
    pub working_dir: PathBuf,
}

/// What planning one component needs.
struct Planning<'a> {
    compiler: Arc<dyn Compiler>,
    working_dir: &'a Path,
}

/// Names, and what they are.
#[derive(Default)]
struct Names {
    known: HashMap<String, Input>,
    /// Defined, but wrong.
    broken: BTreeSet<String>,
}

/// One round of planning over given source schemas.
#[derive(Default)]
struct Round {
    lanes: BTreeMap<Input, Vec<Lane>>,
    streams: Vec<StreamPlan>,
    detectors: Vec<DetectorPlan>,
    views: Vec<ViewPlan>,
    sinks: Vec<(Vec<Input>, Vec<Vec<StepPlan>>, Guarantee, Reads)>,
}

/// What a source gives.
struct Fields {
    /// The fields to decode.
    schema: RowSchema,
    /// The column of attributes.
    attributes: Option<FieldRef>,
}

impl Fields {
    fn declared(source: &SourceDraft) -> Self {
        let attributes = source.attributes.as_ref().map(|attributes| Arc::clone(&attributes.field));
        Self { schema: source.schema.clone(), attributes }
    }

    fn cut_down(&self, needed: &BTreeSet<String>) -> Self {
        let fields = self.schema.fields.iter().filter(|(name, _)| needed.contains(name)).cloned().collect();
        let attributes = self.attributes.clone().filter(|field| needed.contains(field.name()));
        Self { schema: RowSchema { fields, ..self.schema.clone() }, attributes }
    }
}

/// Plans a configuration whose sections are read. The order of planning is: names, edges, types with every declared
/// field, needs, types again with only the needed fields.
pub(super) fn resolve(mut draft: Draft, cx: &PlanContext, errors: &mut Vec<ConfigError>) -> Option<Plan> {
    let names = collect_names(&draft, errors);
    add_default_rejects_sink(&mut draft);
    let order = order_streams(&draft.streams, &names, errors);
    reorder(&mut draft.streams, &order);
    let of_each_other = view::sort(&mut draft.views, errors);
    draft.broken.extend(of_each_other);
    // Streams have moved; what is wrong with names is reported already.
    let names = collect_names(&draft, &mut Vec::new());
    check_attributes(&draft.sources, errors);
    let all: Vec<_> = draft.sources.iter().map(Fields::declared).collect();
    let compiler = Arc::new(SqlCompiler::with(&draft.functions));
    let cx = &Planning { compiler, working_dir: &cx.working_dir };
    // What calls a function that is wrong is not wrong for it.
    let mut hidden = Vec::new();
    let of_round = if draft.functions_broken { &mut hidden } else { &mut *errors };
    let round = plan_round(&draft, &names, &all, cx, of_round);
    if draft.sources.is_empty() && draft.broken.is_empty() {
        let help = "add one under `sources:`, such as `in: { type: stdin, decoder: json }`";
        errors.push(
            ConfigError::new("config::no_source", Span::default(), "there is no source").with_help(help),
        );
    }
    if !errors.is_empty() {
        return None;
    }
    let needed = needs(&draft, &round);
    let cut: Vec<_> = all.iter().zip(&needed).map(|(fields, needed)| fields.cut_down(needed)).collect();
    let round = plan_round(&draft, &names, &cut, cx, errors);
    if !errors.is_empty() {
        return None;
    }
    let sinks =
        draft.sinks.into_iter().zip(round.sinks).map(|(draft, (inputs, steps, guarantee, _))| SinkPlan {
            name: draft.key.name.into(),
            entry: draft.entry,
            node: draft.node,
            inputs,
            steps,
            guarantee,
            queue: draft.queue,
        });
    let mut sinks: Vec<_> = sinks.collect();
    // What reads rejects comes last: the rejects of every other sink flow into it.
    sinks.sort_by_key(|sink| sink.inputs.contains(&Input::Rejects));
    let sources = draft.sources.into_iter().zip(cut).map(|(draft, cut)| SourcePlan {
        name: draft.key.name.into(),
        entry: draft.entry,
        node: draft.node,
        decoder: draft.decoder,
        decoder_node: draft.decoder_node,
        schema: draft.schema,
        demand: Demand { schema: cut.schema, validate: true },
        attributes: cut.attributes,
        buffer: draft.buffer,
    });
    let sources: Vec<_> = sources.collect();
    let mut plan = Plan {
        data_dir: draft.data_dir,
        checkpoints: draft.checkpoints,
        workers: draft.workers,
        api: draft.api,
        postgres: draft.postgres,
        functions: draft.functions,
        in_flight_max_bytes: draft.in_flight_max_bytes,
        drain_timeout: draft.drain_timeout,
        stall_timeout: draft.stall_timeout,
        sources,
        streams: round.streams,
        detectors: round.detectors,
        views: round.views,
        sinks,
        tests: Vec::new(),
    };
    plan.tests = super::testcase::read(&draft.tests, &names.known, errors);
    errors.is_empty().then_some(plan)
}

fn collect_names(draft: &Draft, errors: &mut Vec<ConfigError>) -> Names {
    let mut names = HashMap::from([("rejects".to_owned(), Input::Rejects)]);
    let mut sinks = BTreeSet::new();
    let sources = draft.sources.iter().enumerate().map(|(idx, s)| (&s.key, Input::Source(idx)));
    let streams = draft.streams.iter().enumerate().map(|(idx, s)| (&s.key, Input::Stream(idx)));
    let detectors = draft.detectors.iter().enumerate().map(|(idx, s)| (&s.key, Input::Detector(idx)));
    let views = draft.views.iter().enumerate().map(|(idx, s)| (&s.key, Input::View(idx)));
    let mut duplicate = |key: &logdrive_schemas::component::Key| {
        let message = format!("the name `{}` is taken", key.name);
        errors.push(
            ConfigError::new("config::duplicate_name", key.span, message)
                .with_help("sources, streams, detectors, views and sinks share one set of names"),
        );
    };
    for (key, input) in sources.chain(streams).chain(detectors).chain(views) {
        // That `rejects` is taken is said where names are read.
        if names.insert(key.name.clone(), input).is_some() && key.name != "rejects" {
            duplicate(key);
        }
    }
    for sink in &draft.sinks {
        if names.contains_key(&sink.key.name) || !sinks.insert(&sink.key.name) {
            duplicate(&sink.key);
        }
    }
    Names { known: names, broken: draft.broken.clone() }
}

/// Rejects never vanish: if no sink takes them they go to a file in the data directory.
fn add_default_rejects_sink(draft: &mut Draft) {
    let taken = draft.sinks.iter().any(|sink| sink.from.iter().any(|from| from.name == "rejects"));
    let Some(entry) = SINKS.iter().find(|entry| entry.name == "file").filter(|_| !taken) else { return };
    let span = Span::default();
    let path = draft.data_dir.join("rejects").join("rejects.ndjson").display().to_string();
    let path = Node { kind: NodeKind::Scalar(Scalar { text: path, quoted: true }), span };
    let key = |name: &str| logdrive_schemas::component::Key { name: name.into(), span };
    draft.sinks.push(SinkDraft {
        key: key("rejects_file"),
        from: vec![Reference { name: "rejects".into(), span }],
        entry,
        filter: None,
        node: Node { kind: NodeKind::Map(vec![(key("path"), path)]), span },
        queue: QueueConfig::default(),
    });
}

/// Streams ordered so that each comes after its inputs; reports cycles.
fn order_streams(streams: &[StreamDraft], names: &Names, errors: &mut Vec<ConfigError>) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    fn visit(
        idx: usize,
        streams: &[StreamDraft],
        names: &Names,
        marks: &mut [Mark],
        order: &mut Vec<usize>,
        path: &mut Vec<usize>,
        errors: &mut Vec<ConfigError>,
    ) {
        marks[idx] = Mark::Open;
        path.push(idx);
        for from in &streams[idx].from {
            let Some(Input::Stream(input)) = names.known.get(&from.name) else { continue };
            match marks[*input] {
                Mark::Done => {}
                Mark::New => visit(*input, streams, names, marks, order, path, errors),
                Mark::Open => {
                    let start = path.iter().position(|at| at == input).unwrap_or(0);
                    let mut cycle: Vec<_> = path[start..].iter().map(|at| &*streams[*at].key.name).collect();
                    cycle.push(&streams[*input].key.name);
                    cycle.reverse();
                    let message = format!("streams form a cycle: {}", cycle.join(" → "));
                    errors.push(ConfigError::new("config::cycle", from.span, message));
                }
            }
        }
        path.pop();
        marks[idx] = Mark::Done;
        order.push(idx);
    }
    let mut marks = vec![Mark::New; streams.len()];
    let (mut order, mut path) = (Vec::with_capacity(streams.len()), Vec::new());
    for idx in 0..streams.len() {
        if marks[idx] == Mark::New {
            visit(idx, streams, names, &mut marks, &mut order, &mut path, errors);
        }
    }
    order
}

fn reorder(streams: &mut Vec<StreamDraft>, order: &[usize]) {
    let mut slots: Vec<_> = streams.drain(..).map(Some).collect();
    streams.extend(order.iter().filter_map(|idx| slots[*idx].take()));
}

fn inputs(
    from: &[Reference],
    what: &str,
    allowed: fn(Input) -> bool,
    names: &Names,
    errors: &mut Vec<ConfigError>,
) -> Vec<Input> {
    let mut found = Vec::with_capacity(from.len());
    for reference in from {
        match names.known.get(&reference.name) {
            Some(input) if allowed(*input) => found.push(*input),
            None if names.broken.contains(&reference.name) => {}
            _ => {
                let mut valid: Vec<_> = names
                    .known
                    .iter()
                    .filter(|(_, input)| allowed(**input))
                    .map(|(name, _)| name.as_str())
                    .collect();
                valid.sort_unstable();
                errors.push(ConfigError::unknown_name(
                    "config::unknown_input",
                    reference.span,
                    "input",
                    &reference.name,
                    what,
                    &valid,
                ));
            }
        }
    }
    found
}

fn plan_round(
    draft: &Draft,
    names: &Names,
    fields: &[Fields],
    cx: &Planning<'_>,
    errors: &mut Vec<ConfigError>,
) -> Round {
    let mut round = Round::default();
    for (idx, (source, fields)) in draft.sources.iter().zip(fields).enumerate() {
        let lane = source_lane(idx, source, fields, errors);
        round.lanes.insert(Input::Source(idx), lane.into_iter().collect());
    }
    round.lanes.insert(Input::Rejects, vec![fixed_lane(reject::schema(), "received_at")]);
    for stream in &draft.streams {
        let idx = round.streams.len();
        let plan = plan_stream(stream, &round.lanes, names, cx, errors);
        round.lanes.insert(Input::Stream(idx), plan.lanes.iter().map(|lane| lane.output.clone()).collect());
        round.streams.push(plan);
    }
    for (idx, detector) in draft.detectors.iter().enumerate() {
        let output = fixed_lane(Finding::schema(), "@timestamp");
        round.lanes.insert(Input::Detector(idx), vec![output.clone()]);
        round.detectors.extend(plan_detector(detector, output, &round.lanes, names, cx, errors));
    }
    for draft in &draft.views {
        let plan = plan_view(draft, &round.lanes, &round.views, names, errors);
        if let Some(plan) = plan {
            let output = fixed_lane(plan.view.schema(), plan.view.event_time().unwrap_or("@timestamp"));
            round.lanes.insert(Input::View(round.views.len()), vec![output]);
            round.views.push(plan);
        }
    }
    for sink in &draft.sinks {
        round.sinks.extend(plan_sink(sink, &round.lanes, names, cx, errors));
    }
    dedupe(errors);
    round
}

/// Lanes repeat a stream's steps, and so its errors.
fn dedupe(errors: &mut Vec<ConfigError>) {
    let mut unique: Vec<ConfigError> = Vec::with_capacity(errors.len());
    for error in errors.drain(..) {
        if !unique.contains(&error) {
            unique.push(error);
        }
    }
    *errors = unique;
}

fn fixed_lane(schema: arrow::datatypes::SchemaRef, event_time: &str) -> Lane {
    Lane {
        source: None,
        stage: Stage { schema, layout: Arc::new(Layout::Columns) },
        event_time: event_time.into(),
        lateness: RowSchema::LATENESS,
    }
}

fn source_lane(
    idx: usize,
    source: &SourceDraft,
    fields: &Fields,
    errors: &mut Vec<ConfigError>,
) -> Option<Lane> {
    let demand = Demand { schema: fields.schema.clone(), validate: true };
    let decoder = (source.decoder.build)(&source.decoder_node, &demand).map_err(|e| errors.extend(e)).ok()?;
    let stage = Stage { schema: decoder.schema(), layout: Arc::new(decoder.layout()) };
    Some(Lane {
        source: Some(idx),
        stage: match &fields.attributes {
            Some(field) => attributes::added_to(stage, field),
            None => stage,
        },
        event_time: fields.schema.event_time.clone(),
        lateness: fields.schema.lateness,
    })
}

/// A field of the messages and the attributes cannot have one name.
fn check_attributes(sources: &[SourceDraft], errors: &mut Vec<ConfigError>) {
    for source in sources {
        let Some(AttributesDraft { field, span }) = &source.attributes else { continue };
        let name = field.name();
        if source.schema.fields.iter().any(|(declared, _)| declared == name) {
            let message = format!("`metadata: {name}`: the messages have a field `{name}` already");
            let help = "name the metadata otherwise, or leave the field out of `schema`";
            errors.push(ConfigError::new("config::duplicate_name", *span, message).with_help(help));
        }
    }
}

fn plan_stream(
    stream: &StreamDraft,
    lanes: &BTreeMap<Input, Vec<Lane>>,
    names: &Names,
    cx: &Planning<'_>,
    errors: &mut Vec<ConfigError>,
) -> StreamPlan {
    let allowed = |input| matches!(input, Input::Source(_) | Input::Stream(_));
    let inputs = inputs(&stream.from, &format!("stream `{}`", stream.key.name), allowed, names, errors);
    let step_cx = step_context(&stream.key.name, cx);
    let mut plans = Vec::new();
    for lane in inputs.iter().filter_map(|input| lanes.get(input)).flatten() {
        let mut stage = lane.stage.clone();
        let mut event_time = lane.event_time.clone();
        let mut steps = Vec::with_capacity(stream.steps.len());
        for (entry, node) in &stream.steps {
            match (entry.plan)(node, &stage, &step_cx) {
                Ok(plan) => {
                    stage = plan.output.clone();
                    if let Some((_, to)) = plan.renames.iter().find(|(from, _)| *from == event_time) {
                        event_time.clone_from(to);
                    }
                    steps.push(plan);
                }
                Err(more) => errors.extend(more),
            }
        }
        let output = Lane { source: lane.source, stage, event_time, lateness: lane.lateness };
        plans.push(LanePlan { steps, output });
    }
    StreamPlan { name: stream.key.name.as_str().into(), inputs, lanes: plans }
}

fn step_context(stream: &str, cx: &Planning<'_>) -> StepContext {
    StepContext {
        stream: stream.into(),
        compiler: Arc::clone(&cx.compiler),
        working_dir: cx.working_dir.to_owned(),
    }
}

fn plan_detector(
    draft: &DetectorDraft,
    output: Lane,
    lanes: &BTreeMap<Input, Vec<Lane>>,
    names: &Names,
    cx: &Planning<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<DetectorPlan> {
    let allowed = |input| matches!(input, Input::Source(_) | Input::Stream(_));
    let what = format!("detector `{}`", draft.key.name);
    let inputs = inputs(&draft.from, &what, allowed, names, errors);
    let lanes: Vec<_> = inputs.iter().filter_map(|input| lanes.get(input)).flatten().collect();
    let first = lanes.first()?;
    let schema = match Schema::try_merge(lanes.iter().map(|lane| lane.stage.schema.as_ref().clone())) {
        Ok(schema) => Arc::new(schema),
        Err(e) => {
            let message = format!("the inputs of {what} disagree: {e}");
            errors.push(ConfigError::new("config::schema_mismatch", draft.key.span, message));
            return None;
        }
    };
    let detector_cx = DetectorContext {
        name: draft.key.name.as_str().into(),
        compiler: Arc::clone(&cx.compiler),
        input: Arc::clone(&schema),
        event_time: first.event_time.clone(),
        lateness: lanes.iter().map(|lane| lane.lateness).max().unwrap_or(RowSchema::LATENESS),
    };
    let detector = (draft.entry.plan)(&draft.node, &detector_cx).map_err(|e| errors.extend(e)).ok()?;
    Some(DetectorPlan {
        name: draft.key.name.as_str().into(),
        kind: draft.entry.name,
        inputs,
        input: Stage { schema, layout: Arc::clone(&first.stage.layout) },
        detector,
        output,
    })
}

fn plan_view(
    draft: &view::ViewDraft,
    lanes: &BTreeMap<Input, Vec<Lane>>,
    planned: &[ViewPlan],
    names: &Names,
    errors: &mut Vec<ConfigError>,
) -> Option<ViewPlan> {
    let mut valid: Vec<&str> = names
        .known
        .iter()
        .filter(|(_, input)| matches!(input, Input::Source(_) | Input::Stream(_) | Input::View(_)))
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != draft.key.name)
        .collect();
    valid.sort_unstable();
    let known = |name: &str| names.known.get(name).copied();
    view::plan(draft, lanes, planned, &known, &valid, &|name| names.broken.contains(name), errors)
}

fn plan_sink(
    draft: &SinkDraft,
    lanes: &BTreeMap<Input, Vec<Lane>>,
    names: &Names,
    cx: &Planning<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<(Vec<Input>, Vec<Vec<StepPlan>>, Guarantee, Reads)> {
    let inputs = inputs(&draft.from, &format!("sink `{}`", draft.key.name), |_| true, names, errors);
    let n_before = errors.len();
    let checked = (draft.entry.check)(&draft.node, errors);
    complete_keys(&draft.node, &["from", "queue", "where"], &mut errors[n_before..]);
    let (guarantee, reads) = checked?;
    let where_step = STEPS.iter().find(|entry| entry.name == "where");
    let step_cx = step_context(&draft.key.name, cx);
    let mut steps = Vec::new();
    for lane in inputs.iter().filter_map(|input| lanes.get(input)).flatten() {
        let mut of_lane = Vec::new();
        if let (Some(node), Some(entry)) = (&draft.filter, where_step) {
            match (entry.plan)(node, &lane.stage, &step_cx) {
                Ok(plan) => of_lane.push(plan),
                Err(more) => errors.extend(more),
            }
        }
        of_lane.extend(computed::step(draft.entry, &draft.node, &lane.stage, &step_cx, errors));
        steps.push(of_lane);
    }
    Some((inputs, steps, guarantee, reads))
}

/// For each source the declared top-level fields that anything reads.
fn needs(draft: &Draft, round: &Round) -> Vec<BTreeSet<String>> {
    let mut after: BTreeMap<(Input, usize), BTreeSet<String>> = BTreeMap::new();
    for (inputs, steps, _, reads) in &round.sinks {
        let mut steps = steps.iter();
        for (input, lane_idx, lane) in lanes_of(inputs, &round.lanes) {
            let needed = after.entry((input, lane_idx)).or_default();
            needed.extend(read_by_sink(reads, lane));
            needed.extend(steps.next().into_iter().flatten().flat_map(|plan| plan.reads.clone()));
        }
    }
    for detector in &round.detectors {
        for (input, lane_idx, _) in lanes_of(&detector.inputs, &round.lanes) {
            after.entry((input, lane_idx)).or_default().extend(detector.detector.reads());
        }
    }
    for view in &round.views {
        for (of, reads) in view.inputs.iter().zip(view.view.reads()) {
            for (input, lane_idx, _) in lanes_of(&[of.input], &round.lanes) {
                after.entry((input, lane_idx)).or_default().extend(reads.iter().cloned());
            }
        }
    }
    for (idx, stream) in round.streams.iter().enumerate().rev() {
        let sources = lanes_of(&stream.inputs, &round.lanes).map(|(input, lane_idx, _)| (input, lane_idx));
        for ((lane_idx, lane), input) in stream.lanes.iter().enumerate().zip(sources.collect::<Vec<_>>()) {
            let mut needed = after.get(&(Input::Stream(idx), lane_idx)).cloned().unwrap_or_default();
            for step in lane.steps.iter().rev() {
                needed = before(step, needed);
            }
            after.entry(input).or_default().extend(needed);
        }
    }
    (0..draft.sources.len()).map(|idx| after.remove(&(Input::Source(idx), 0)).unwrap_or_default()).collect()
}

fn lanes_of<'a>(
    inputs: &'a [Input],
    lanes: &'a BTreeMap<Input, Vec<Lane>>,
) -> impl Iterator<Item = (Input, usize, &'a Lane)> {
    inputs.iter().flat_map(move |input| {
        lanes.get(input).into_iter().flatten().enumerate().map(move |(idx, lane)| (*input, idx, lane))
    })
}

fn read_by_sink(reads: &Reads, lane: &Lane) -> Vec<String> {
    let all = || lane.stage.schema.fields().iter().map(|f| f.name().clone()).collect();
    match (reads, &*lane.stage.layout) {
        (Reads::AllColumns, _) | (_, Layout::Columns) => all(),
        (Reads::Document(columns), Layout::Original(edits)) => {
            let set = edits.iter().filter_map(|edit| match edit {
                Edit::Set { key } => Some(key.clone()),
                _ => None,
            });
            columns.iter().cloned().chain(set).collect()
        }
    }
}

/// What a step needs, given what is needed behind it.
fn before(step: &StepPlan, after: BTreeSet<String>) -> BTreeSet<String> {
    let mut needed: BTreeSet<_> = after.into_iter().filter(|name| !step.writes.contains(name)).collect();
    for (from, to) in &step.renames {
        if needed.remove(to) {
            needed.insert(from.clone());
        }
    }
    needed.extend(step.reads.iter().cloned());
    needed
}
