//! What is in the table already, kept beside it and changed by the transactions that bring rows.
//!
//! `logdrive_positions` has, for each partition of a source, the highest offset that was brought; its row is locked
//! before anything is decided, so that two processes that repeat the same rows, or one whose connection is lost while
//! its transaction is still being carried out, decide one after the other. `logdrive_identities` has rows that are known
//! by identity alone, because they have no order, and all rows that were refused, with the reason: a reject is told
//! after the commit, and would be missing if the process ended in between.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use logdrive_schemas::{Batch, Origin};
use tokio_postgres::types::Type;

use super::link::{Link, Trouble, Value};
use super::table::{LOCK, quote};
use crate::sinks::http_rejects::Refused;
use crate::sinks::pending::identity;

/// Source and partition.
type Key = (String, String);

/// Highest offsets by source and partition.
#[derive(Debug, Default)]
pub(super) struct Marks(BTreeMap<Key, i128>);

impl Marks {
    /// The offset up to which everything is in the table.
    pub(super) fn of(&self, origin: &Origin) -> i128 {
        self.0.get(&key(origin)).copied().unwrap_or(-1)
    }
}

fn key(origin: &Origin) -> Key {
    (origin.source.to_string(), origin.partition.to_string())
}

/// The two tables, as far as they are about one writer and one table.
pub(super) struct Books {
    writer: String,
    /// The table's whole name.
    table: String,
    positions: String,
    identities: String,
}

impl Books {
    /// Books in `schema`, about the table of this whole name.
    pub(super) fn new(writer: &str, schema: &str, table: String) -> Self {
        let of = |name: &str| format!("{}.{name}", quote(schema));
        Self {
            writer: writer.to_owned(),
            table,
            positions: of("logdrive_positions"),
            identities: of("logdrive_identities"),
        }
    }

    /// Makes the tables if they are not there.
    pub(super) async fn open(&self, link: &Link) -> Result<(), Trouble> {
        let there = "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL";
        let names: [Value<'_>; 2] = [(&self.positions, Type::TEXT), (&self.identities, Type::TEXT)];
        let found = link.query(there, &names).await?;
        if found.first().is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        link.run(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); \
             CREATE TABLE IF NOT EXISTS {} (writer text, \"table\" text, source text, partition text, \
             last_offset numeric(20) NOT NULL, written_at timestamptz NOT NULL DEFAULT now(), \
             PRIMARY KEY (writer, \"table\", source, partition)); \
             CREATE TABLE IF NOT EXISTS {} (writer text, \"table\" text, id bytea, reason text, \
             written_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (writer, \"table\", id)); COMMIT",
            self.positions, self.identities
        ))
        .await
    }

    /// Locks the positions of all partitions with an order, until the transaction ends.
    pub(super) async fn lock(&self, link: &Link, batches: &[Batch]) -> Result<Marks, Trouble> {
        // In one order everywhere, so that nobody waits in a circle.
        let ordered = batches.iter().filter(|batch| batch.origin().ordered);
        let keys: BTreeSet<Key> = ordered.map(|batch| key(batch.origin())).collect();
        if keys.is_empty() {
            return Ok(Marks::default());
        }
        let (sources, partitions): (Vec<String>, Vec<String>) = keys.into_iter().unzip();
        let values: [Value<'_>; 4] = [
            (&self.writer, Type::TEXT),
            (&self.table, Type::TEXT),
            (&sources, Type::TEXT_ARRAY),
            (&partitions, Type::TEXT_ARRAY),
        ];
        let make = format!(
            "INSERT INTO {} (writer, \"table\", source, partition, last_offset) \
             SELECT $1, $2, source, partition, -1 FROM unnest($3, $4) AS given (source, partition) \
             ON CONFLICT DO NOTHING",
            self.positions
        );
        link.query(&make, &values).await?;
        let lock = format!(
            "SELECT known.source, known.partition, known.last_offset::text FROM {} AS known \
             JOIN unnest($3, $4) AS given (source, partition) USING (source, partition) \
             WHERE writer = $1 AND \"table\" = $2 ORDER BY 1, 2 FOR UPDATE OF known",
            self.positions
        );
        let rows = link.query(&lock, &values).await?;
        let mark = |row: &tokio_postgres::Row| {
            let offset = row.get::<_, &str>(2).parse().map_err(|_| {
                Trouble::Refused(format!("{} holds an offset that is no number", self.positions))
            })?;
            Ok(((row.get(0), row.get(1)), offset))
        };
        Ok(Marks(rows.iter().map(mark).collect::<Result<_, Trouble>>()?))
    }

    /// Notes the identities of all rows without an order; those that were not known.
    pub(super) async fn claim(&self, link: &Link, batches: &[Batch]) -> Result<HashSet<u128>, Trouble> {
        let unordered = batches.iter().filter(|batch| !batch.origin().ordered);
        let all = unordered.flat_map(|batch| (0..batch.num_rows()).map(move |row| identity(batch, row)));
        let ids: BTreeSet<u128> = all.collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let ids: Vec<Vec<u8>> = ids.into_iter().map(|id| id.to_be_bytes().to_vec()).collect();
        let values: [Value<'_>; 3] =
            [(&self.writer, Type::TEXT), (&self.table, Type::TEXT), (&ids, Type::BYTEA_ARRAY)];
        let claim = format!(
            "INSERT INTO {} (writer, \"table\", id) SELECT $1, $2, id FROM unnest($3) AS given (id) \
             ON CONFLICT DO NOTHING RETURNING id",
            self.identities
        );
        let rows = link.query(&claim, &values).await?;
        Ok(rows.iter().filter_map(|row| id_of(row.get(0))).collect())
    }

    /// Which of these rows were refused, and why.
    pub(super) async fn refused(
        &self,
        link: &Link,
        ids: impl Iterator<Item = u128>,
    ) -> Result<HashMap<u128, String>, Trouble> {
        let ids: Vec<Vec<u8>> = ids.map(|id| id.to_be_bytes().to_vec()).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let values: [Value<'_>; 3] =
            [(&self.writer, Type::TEXT), (&self.table, Type::TEXT), (&ids, Type::BYTEA_ARRAY)];
        let find = format!(
            "SELECT id, reason FROM {} JOIN unnest($3) AS given (id) USING (id) \
             WHERE writer = $1 AND \"table\" = $2 AND reason IS NOT NULL",
            self.identities
        );
        let rows = link.query(&find, &values).await?;
        Ok(rows.iter().filter_map(|row| Some((id_of(row.get(0))?, row.get(1)))).collect())
    }

    /// Notes how far the transaction comes, and what it leaves out.
    pub(super) async fn note(
        &self,
        link: &Link,
        batches: &[Batch],
        refused: &Refused,
    ) -> Result<(), Trouble> {
        let mut marks: BTreeMap<Key, u64> = BTreeMap::new();
        for batch in batches.iter().filter(|batch| batch.origin().ordered) {
            let last = batch.offsets().values().iter().copied().max().unwrap_or(0);
            let mark = marks.entry(key(batch.origin())).or_insert(last);
            *mark = last.max(*mark);
        }
        if !marks.is_empty() {
            let (keys, offsets): (Vec<Key>, Vec<String>) =
                marks.into_iter().map(|(key, offset)| (key, offset.to_string())).unzip();
            let (sources, partitions): (Vec<String>, Vec<String>) = keys.into_iter().unzip();
            let note = format!(
                "UPDATE {} AS known SET last_offset = greatest(known.last_offset, given.last_offset::numeric), \
                 written_at = now() FROM unnest($3, $4, $5) AS given (source, partition, last_offset) \
                 WHERE known.writer = $1 AND known.\"table\" = $2 AND known.source = given.source \
                 AND known.partition = given.partition",
                self.positions
            );
            let values: [Value<'_>; 5] = [
                (&self.writer, Type::TEXT),
                (&self.table, Type::TEXT),
                (&sources, Type::TEXT_ARRAY),
                (&partitions, Type::TEXT_ARRAY),
                (&offsets, Type::TEXT_ARRAY),
            ];
            link.query(&note, &values).await?;
        }
        let reasons: BTreeMap<u128, &str> = refused
            .iter()
            .flat_map(|(batch, rejects)| rejects.iter().map(|r| (identity(batch, r.idx), r.reason.as_str())))
            .collect();
        if reasons.is_empty() {
            return Ok(());
        }
        let ids: Vec<Vec<u8>> = reasons.keys().map(|id| id.to_be_bytes().to_vec()).collect();
        let reasons: Vec<&str> = reasons.into_values().collect();
        let note = format!(
            "INSERT INTO {} (writer, \"table\", id, reason) SELECT $1, $2, id, reason \
             FROM unnest($3, $4) AS given (id, reason) \
             ON CONFLICT (writer, \"table\", id) DO UPDATE SET reason = excluded.reason",
            self.identities
        );
        let values: [Value<'_>; 4] = [
            (&self.writer, Type::TEXT),
            (&self.table, Type::TEXT),
            (&ids, Type::BYTEA_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
        ];
        link.query(&note, &values).await.map(drop)
    }

    /// Forgets what nobody repeats any more.
    pub(super) async fn prune(&self, link: &Link, older_than: Duration) -> Result<(), Trouble> {
        let seconds = i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX).min(100 * 365 * 86_400);
        for table in [&self.positions, &self.identities] {
            let prune = format!(
                "DELETE FROM {table} WHERE writer = $1 AND \"table\" = $2 \
                 AND written_at < now() - make_interval(secs => $3)"
            );
            let seconds = seconds as f64;
            let values: [Value<'_>; 3] =
                [(&self.writer, Type::TEXT), (&self.table, Type::TEXT), (&seconds, Type::FLOAT8)];
            link.query(&prune, &values).await?;
        }
        Ok(())
    }
}

fn id_of(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.try_into().ok()?))
}
