//! Tables of all formats, errors in them, and their replacement.

use std::fs;

use arrow::array::{BinaryViewArray, Int64Array, StringViewArray, UInt64Array};
use arrow::datatypes::Int64Type;
use logdrive_schemas::{Edit, FieldType, Layout, Origin, Partition};
use parquet::arrow::ArrowWriter;

use super::*;
use crate::expression::{CompileError, Compiler, Expression};

#[derive(Debug)]
struct NoSql;

impl Compiler for NoSql {
    fn compile(&self, _: &str, _: &Schema) -> Result<Arc<dyn Expression>, CompileError> {
        unreachable!("a lookup has no SQL")
    }
}

pub(in crate::steps) fn context(folder: &Path) -> StepContext {
    StepContext { stream: "events".into(), compiler: Arc::new(NoSql), working_dir: folder.to_owned() }
}

/// One row per value of the column `name`.
pub(in crate::steps) fn batch(name: &str, values: &[Option<&str>]) -> Batch {
    let rows = RecordBatch::try_new(
        stage(name).schema,
        vec![
            Arc::new(StringViewArray::from(values.to_vec())),
            Arc::new(Int64Array::from_iter_values(0..values.len() as i64)),
        ],
    )
    .unwrap();
    let origin =
        Origin { source: "shop".into(), partition: Partition(1), ordered: true, received_at: 0, peer: None };
    let original = BinaryViewArray::from_iter_values(values.iter().map(|_| b"{}"));
    let offsets = UInt64Array::from_iter_values(0..values.len() as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), stage(name).layout).unwrap()
}

pub(in crate::steps) fn stage(name: &str) -> Stage {
    let fields = vec![FieldType::String.field(name), FieldType::Int64.field("n")];
    Stage { schema: Arc::new(Schema::new(fields)), layout: Arc::new(Layout::Original(Vec::new())) }
}

/// Plans a step from YAML.
pub(in crate::steps) fn plan<C: StepConfig>(
    folder: &Path,
    yaml: &str,
    column: &str,
) -> Result<StepPlan, Vec<ConfigError>> {
    let node = Node::parse(yaml.as_bytes(), Default::default())?;
    (crate::step::StepEntry::of::<C>().plan)(&node, &stage(column), &context(folder))
}

pub(in crate::steps) fn apply(step: &mut dyn Step, batch: Batch) -> Emit {
    let mut out = Emit::default();
    step.apply(batch, &mut out);
    out
}

const CSV: &str = "tenant,plan,seats,since\nacme,gold,5,2024-01-02\n007,,7,\nother,free,,2020-02-29\n";

fn texts(rows: &Batch, name: &str) -> Vec<Option<String>> {
    let column = rows.rows().column_by_name(name).unwrap().as_string_view().clone();
    column.iter().map(|text| text.map(str::to_owned)).collect()
}

fn check(folder: &Path, table: &str) {
    let yaml = format!("{{table: {table}, on: tenant, add: [plan, seats]}}");
    let plan = plan::<Lookup>(folder, &yaml, "tenant").unwrap_or_else(|errors| panic!("{table}: {errors:?}"));
    assert_eq!(
        (plan.reads, plan.writes),
        (vec!["tenant".to_owned()], vec!["plan".to_owned(), "seats".to_owned()])
    );
    let edits = ["plan", "seats"].map(|key| Edit::Set { key: key.into() }).to_vec();
    assert_eq!(*plan.output.layout, Layout::Original(edits));
    let values = [Some("acme"), Some("nobody"), None, Some("007"), Some("other")];
    let out = apply(&mut *(plan.build)(), batch("tenant", &values));
    assert!(out.rejects.is_empty());
    let rows = &out.rows[0];
    assert_eq!(rows.schema(), plan.output.schema);
    let gold = |text: &str| Some(text.to_owned());
    assert_eq!(texts(rows, "plan"), [gold("gold"), None, None, None, gold("free")], "{table}");
    let seats = rows.rows().column_by_name("seats").unwrap().as_primitive::<Int64Type>().clone();
    assert_eq!(seats, Int64Array::from(vec![Some(5), None, None, Some(7), None]), "{table}");
}

#[test]
fn every_format_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("t.csv", CSV);
    let rows = [
        r#"{"tenant":"acme","plan":"gold","seats":5}"#,
        r#"{"tenant":"007","plan":null,"seats":7}"#,
        r#"{"tenant":"other","plan":"free","more":{"a":[1]}}"#,
    ];
    write("t.ndjson", &rows.join("\n"));
    write("t.json", &format!("[{}]", rows.join(",\n")));
    let columns = table_file::read(&folder.path().join("t.csv"), "tenant", 1 << 20, None).unwrap();
    let file = fs::File::create(folder.path().join("t.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, columns.schema(), None).unwrap();
    writer.write(&columns).unwrap();
    writer.close().unwrap();
    for table in ["t.csv", "t.ndjson", "t.json", "t.parquet"] {
        check(folder.path(), table);
    }
    assert!(matches!(columns.column_by_name("since").unwrap().data_type(), DataType::Timestamp(..)));
}

#[test]
fn columns_can_go_into_one_object_and_replace_a_field() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), CSV).unwrap();
    let yaml = "{table: t.csv, on: id, key: tenant, add: [plan, seats], into: n}";
    let plan = plan::<Lookup>(folder.path(), yaml, "id").unwrap();
    let out = apply(&mut *(plan.build)(), batch("id", &[Some("acme"), Some("x")]));
    let object = out.rows[0].rows().column_by_name("n").unwrap().as_struct().clone();
    assert_eq!(out.rows[0].rows().num_columns(), 2);
    assert_eq!(object.column(0).as_string_view().value(0), "gold");
    assert!(object.is_null(1));
}

#[test]
fn a_missing_key_can_be_a_reject() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), CSV).unwrap();
    let yaml = "{table: t.csv, on: tenant, add: [plan], missing: reject}";
    let mut step = (plan::<Lookup>(folder.path(), yaml, "tenant").unwrap().build)();
    let out = apply(&mut *step, batch("tenant", &[None, Some("other"), Some("x"), Some("acme")]));
    assert_eq!(texts(&out.rows[0], "plan"), [Some("free".to_owned()), Some("gold".to_owned())]);
    assert_eq!(out.rejects[0].offsets().values(), &[0, 2]);
    assert!(texts(&out.rejects[0], "reason")[0].as_ref().unwrap().starts_with("lookup_missing: "));
    let out = apply(&mut *step, batch("tenant", &[Some("x")]));
    assert!(out.rows.is_empty() && out.rejects[0].num_rows() == 1);
}

#[test]
fn a_replaced_table_is_used_unless_its_types_changed() {
    let folder = tempfile::tempdir().unwrap();
    let replace = |text: &str| {
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), folder.path().join("t.csv")).unwrap();
    };
    replace("tenant,plan,rate\nacme,gold,0.5\n");
    let yaml = "{table: t.csv, on: tenant, add: [plan, rate]}";
    let plan = plan::<Lookup>(folder.path(), yaml, "tenant").unwrap();
    let mut step = (plan.build)();
    let mut plan_of_acme = || texts(&apply(&mut *step, batch("tenant", &[Some("acme")])).rows[0], "plan");
    assert_eq!(plan_of_acme(), [Some("gold".to_owned())]);
    replace("rate,plan,tenant\n1,silver,acme\n");
    assert_eq!(plan.reloads[0].reload_if_changed(), Ok(true), "a whole number is a float too");
    assert_eq!(plan_of_acme(), [Some("silver".to_owned())]);
    for broken in [
        "tenant,plan,rate\nacme,lead,high\n",
        "tenant,rate\nacme,1\n",
        "tenant,plan,rate\na,b,1\na,c,1\n",
        "",
        "\0\0",
    ] {
        replace(broken);
        assert!(plan.reloads[0].reload_if_changed().is_err(), "{broken:?}");
        assert_eq!(plan_of_acme(), [Some("silver".to_owned())], "{broken:?}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tenants.csv"), CSV).unwrap();
    fs::write(folder.path().join("twice.csv"), "tenant,plan\na,1\na,2\n").unwrap();
    let check = |yaml: &str, code: &str, at: &str, help: Option<&str>| {
        let Err(errors) = plan::<Lookup>(folder.path(), yaml, "tenant") else { panic!("{yaml} is planned") };
        let error = &errors[0];
        let found = &yaml[error.span.start..error.span.start + error.span.len];
        assert_eq!((error.code, found, error.help.as_deref()), (code, at, help), "{error}");
    };
    let near = |name: &str| Some(format!("did you mean `{name}`?"));
    check(
        "{table: tenant.csv, on: tenant, add: [plan]}",
        "config::bad_file",
        "tenant.csv",
        near("tenants.csv").as_deref(),
    );
    check("{table: twice.csv, on: tenant, add: [plan]}", "config::bad_file", "twice.csv", None);
    check(
        "{table: tenants.csv, on: tenant, add: [plan, seat]}",
        "config::unknown_column",
        "seat",
        near("seats").as_deref(),
    );
    check(
        "{table: tenants.csv, on: tenent, key: tenant, add: [plan]}",
        "config::unknown_field",
        "tenent",
        near("tenant").as_deref(),
    );
    check(
        "{table: tenants.csv, on: tenant, add: [plan], max_bytes: 10B}",
        "config::bad_file",
        "tenants.csv",
        None,
    );
}
