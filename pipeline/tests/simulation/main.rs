//! The real dataflow in a simulated world: a source that breaks and comes back, far ends that break, forget and refuse,
//! a process that crashes and starts again with another number of workers, all chosen by a seed.
//!
//! What must hold, whatever is chosen, is what ARCHITECTURE.md calls invariants: a position is committed only when
//! everything before it has arrived (A1, A2, A4), every message ends as a row or as a reject (A3), sinks that know
//! positions have each row once, and the changes of a view come to what the messages come to (A8).
//!
//! `LOGDRIVE_SIMULATIONS=500` runs so many, `LOGDRIVE_SIMULATION_SEED=17` begins with that one. The seed repeats all
//! choices; what threads make of them is up to the machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod far;
mod log;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../support/message.rs"]
mod message;
mod world;

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use far::{Connection, Kind};
use log::Reader;
use logdrive::config::{self, Plan, PlanContext};
use logdrive::topology::{self, Stand};
use logdrive_connectors::Metrics;
use message::Dice;
use tokio::runtime::Runtime;
use world::World;

/// Lives of the process in which things go wrong; in the one after them all is well.
const N_LIVES: usize = 6;
/// So many run in CI.
const N_SIMULATIONS: u64 = 12;
const N_AT_ONCE: usize = 4;

/// What a simulation's pipeline looks like.
struct Shape {
    may_spill: bool,
    has_view: bool,
    has_plain: bool,
}

impl Shape {
    fn of(dice: &mut Dice) -> Self {
        Self { may_spill: dice.one_in(3), has_view: dice.one_in(2), has_plain: dice.one_in(2) }
    }

    fn far_ends(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Exact, Kind::Rejects];
        kinds.extend(self.has_plain.then_some(Kind::Plain));
        kinds.extend(self.has_view.then_some(Kind::Changes));
        kinds
    }

    fn yaml(&self, dir: &Path, workers: u64) -> String {
        let queue = if self.may_spill { "" } else { ", queue: { max_bytes: 0 }" };
        let mut yaml = format!(
            "data_dir: {0}/data
workers: {workers}
api: off
sources:
  log: {{ type: generate, schema: {{ fields: {{ id: int64, key: string, n: int64 }} }} }}
sinks:
  exact: {{ type: parquet, from: [log], path: \"{0}/exact\"{queue} }}
  refused: {{ type: file, from: [rejects], path: \"{0}/refused\"{queue} }}
",
            dir.display()
        );
        if self.has_plain {
            writeln!(
                yaml,
                "  plain: {{ type: file, from: [log], path: \"{}/plain\"{queue} }}",
                dir.display()
            )
            .unwrap();
        }
        if self.has_view {
            writeln!(
                yaml,
                "  changes: {{ type: parquet, from: [sums], path: \"{}/changes\"{queue} }}",
                dir.display()
            )
            .unwrap();
            yaml += "views:
  sums: { sql: \"SELECT key, count(*) AS c, sum(n) AS s FROM log GROUP BY key\", unbounded: true }
";
        }
        yaml
    }

    fn plan(&self, dir: &Path, workers: u64) -> Plan {
        std::fs::write(dir.join("pipeline.yaml"), self.yaml(dir, workers)).unwrap();
        let cx = PlanContext { working_dir: dir.to_owned() };
        let (_, plan) = config::load(&[dir.join("pipeline.yaml")], &cx);
        plan.unwrap_or_else(|errors| panic!("{errors:?}"))
    }
}

/// One life of the process: until it crashes, is stopped, or has done everything.
async fn live(shape: &Shape, world: &Arc<World>, dir: &Path, dice: &mut Dice, is_last: bool) {
    let plan = shape.plan(dir, dice.range(1, 4));
    let mut stand = Stand::default();
    stand.sources.insert(0, Box::new(Reader::new(world, Dice::new(dice.next()))));
    for (idx, sink) in plan.sinks.iter().enumerate() {
        let kind = match &*sink.name {
            "exact" => Kind::Exact,
            "plain" => Kind::Plain,
            "refused" => Kind::Rejects,
            _ => Kind::Changes,
        };
        stand.sinks.insert(idx, Box::new(Connection::new(world, kind, Dice::new(dice.next()))));
    }
    let running = match topology::start(plan, Arc::new(Metrics::new()), stand).await {
        Ok(running) => running,
        // The source may crash while it connects for the first time.
        Err(error) => return assert!(!is_last, "{error:?}"),
    };
    let shutdown = running.view().shutdown.clone();
    let stop = Duration::from_millis(dice.range(100, 3_000));
    let stopping = async {
        tokio::time::sleep(stop).await;
        if !is_last {
            shutdown.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = running.wait() => assert!(!is_last || ended.is_ok(), "{ended:?}"),
        () = stopping => {}
    }
}

/// Lives through everything that a seed holds; what is wrong then.
fn simulate(seed: u64) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(seed);
    let shape = Shape::of(&mut dice);
    let world = Arc::new(World::new(shape.may_spill, shape.far_ends()));
    for life in 0..=N_LIVES {
        let is_last = life == N_LIVES;
        world.is_bad.store(!is_last, Ordering::Release);
        // Nothing of a process outlives it.
        let process = Runtime::new().unwrap();
        let ended = process.block_on(async {
            let lived = live(&shape, &world, dir.path(), &mut dice, is_last);
            tokio::time::timeout(Duration::from_secs(60), lived).await
        });
        if ended.is_err() {
            return vec![format!("life {life} does not end")];
        }
    }
    let n_faults = world.n_faults.load(Ordering::Relaxed);
    writeln!(&mut stdout(), "seed {seed}: {n_faults} faults, far ends {:?}", world.far_ends).unwrap();
    world.settle()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_happens_every_message_arrives_and_none_is_committed_before() {
    let first = number("LOGDRIVE_SIMULATION_SEED").unwrap_or(1);
    let seeds = Mutex::new(first..first + number("LOGDRIVE_SIMULATIONS").unwrap_or(N_SIMULATIONS));
    std::thread::scope(|scope| {
        // They wait most of the time.
        for _ in 0..N_AT_ONCE {
            scope.spawn(|| {
                let next = || seeds.lock().unwrap().next();
                while let Some(seed) = next() {
                    let wrong = simulate(seed);
                    assert!(wrong.is_empty(), "LOGDRIVE_SIMULATION_SEED={seed}: {wrong:#?}");
                }
            });
        }
    });
}
