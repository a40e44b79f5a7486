//! A set of Parquet files as a table.
//!
//! DataFusion's own listing table would list again when it scans, take hidden files for data, and refuse a column
//! that is both in a file and in its path. This one is a snapshot: the files are those found when the query was
//! prepared, whatever a sink does meanwhile.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result, ScalarValue, project_schema};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::helpers::{expr_applicable_for_cols, filter_partitioned_file};
use datafusion::datasource::listing::{ListingTableUrl, PartitionedFile};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::object_store::ObjectStore;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::schema::merge;

/// How many footers are read at a time.
const FOOTERS: usize = 32;

/// A snapshot of data files.
#[derive(Debug)]
pub(super) struct LakeTable {
    store: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    schema: TableSchema,
    format: Arc<ParquetFormat>,
}

impl LakeTable {
    /// Reads the footers of the files.
    pub(super) async fn open(
        url: &ListingTableUrl,
        files: Vec<DataFile>,
        store: &Arc<dyn ObjectStore>,
        state: &dyn Session,
    ) -> Result<Self> {
        let format = Arc::new(ParquetFormat::default().with_options(state.table_options().parquet.clone()));
        let schemas: Vec<SchemaRef> = futures::stream::iter(&files)
            .map(|file| {
                let format = Arc::clone(&format);
                async move {
                    let found = format.infer_schema(state, store, std::slice::from_ref(&file.meta)).await;
                    found.map_err(|error| error.context(format!("{} is not readable", file.meta.location)))
                }
            })
            .buffered(FOOTERS)
            .try_collect()
            .await?;
        let inside = Arc::new(merge(schemas.iter().map(AsRef::as_ref)));
        // A column that a file has itself is read from there, not from the path.
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in files.iter().flat_map(|file| &file.partitions) {
            if inside.column_with_name(key).is_none() && !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        let columns: Vec<FieldRef> =
            keys.iter().map(|key| Arc::new(Field::new(*key, DataType::Utf8View, true))).collect();
        let value = |file: &DataFile, key: &str| {
            let found = file.partitions.iter().find(|(name, _)| name == key);
            ScalarValue::Utf8View(found.and_then(|(_, value)| value.clone()))
        };
        let mut listed = Vec::with_capacity(files.len());
        for (file, own) in files.iter().zip(&schemas) {
            let values = keys.iter().map(|key| value(file, key)).collect();
            let mut entry = PartitionedFile::new_from_meta(file.meta.clone()).with_partition_values(values);
            // Statistics of another type than the table's cannot be compared with its constants.
            if own.fields().iter().all(|field| {
                inside.field_with_name(field.name()).is_ok_and(|f| f.data_type() == field.data_type())
            }) {
                let statistics = format.infer_stats(state, store, Arc::clone(&inside), &file.meta).await?;
                entry = entry.with_statistics(Arc::new(statistics));
            }
            listed.push(entry);
        }
        let schema = TableSchema::builder(inside).with_table_partition_cols(columns).build();
        Ok(Self { store: url.object_store(), files: listed, schema, format })
    }

    fn partition_columns(&self) -> Vec<&str> {
        self.schema.table_partition_cols().iter().map(|field| field.name().as_str()).collect()
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.schema.table_schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Filters only leave out files and row groups here; rows are filtered above.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = self.partition_columns();
        let by_path: Vec<Expr> = filters
            .iter()
            .filter(|filter| !columns.is_empty() && expr_applicable_for_cols(&columns, filter))
            .cloned()
            .collect();
        let partitions = Schema::new(self.schema.table_partition_cols().clone());
        let partitions = DFSchema::try_from(partitions)?;
        let mut files = Vec::new();
        for file in &self.files {
            files.extend(filter_partitioned_file(file.clone(), &by_path, &partitions)?);
        }
        if files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema(), projection)?)));
        }
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let source = self.format.file_source(self.schema.clone());
        let config = FileScanConfigBuilder::new(self.store.clone(), source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            // A limit counts rows that pass the filters, which are applied above.
            .with_limit(if filters.is_empty() { limit } else { None })
            .build();
        self.format.create_physical_plan(state, config).await
    }
}
