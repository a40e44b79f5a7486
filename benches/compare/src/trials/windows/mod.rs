//! W8: events of a Kafka topic, counted and summed per tenant and minute of event time, into another topic.
//!
//! The topic is full before a product starts. So its start cannot be told from its work in one run: each product also
//! runs on a topic of few events, and what that costs is taken off.

mod broker;
mod events;
mod jobs;
mod tally;

use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::broker::{Broker, Input};
use self::jobs::{Job, Ours, Task};
use self::tally::Tally;
use super::Cast;
use crate::error::Result;
use crate::measure::Outcome;
use crate::process::Process;
use crate::report::Spread;
use crate::run::{Journal, tell};
use crate::say;
use crate::stage::{QUIET, load};

pub use jobs::PEERS;

/// Events of the run that shows what a start costs.
const FEW: u64 = 2000;
/// How long a product may take to become quiet. Some look for messages all the time and never do.
const CALM: Duration = Duration::from_secs(1);
/// What is said of a run that took no longer than a start.
const UNTOLD: &str = "too few events to tell the work from the start";

/// What a product gave in a round.
#[derive(Serialize)]
struct Pair {
    /// The run on few events.
    start: Outcome,
    /// The run on the full topic, its start included.
    whole: Outcome,
}

impl Pair {
    fn is_right(&self) -> bool {
        self.start.is_right() && self.whole.is_right()
    }

    fn faults(&self) -> String {
        match self.start.is_right() {
            true => self.whole.faults(),
            false => format!("with {} events: {}", self.start.lines, self.start.faults()),
        }
    }

    /// The whole run less a start. What it took no longer for than the start is not above zero.
    fn less(&self, seconds: f64, cpu: f64) -> Outcome {
        Outcome {
            lines: self.whole.lines.saturating_sub(self.start.lines),
            bytes: self.whole.bytes.saturating_sub(self.start.bytes),
            seconds: self.whole.seconds - seconds,
            cpu: self.whole.cpu - cpu,
            ..self.whole.clone()
        }
    }
}

/// Runs it.
pub(super) fn run(cast: &Cast<'_>, journal: &mut Journal) -> Result<String> {
    let mut out = head(cast.lines);
    if cast.lines < 10 * FEW {
        return Err(format!("it takes at least {} lines to tell the work from the start", 10 * FEW).into());
    }
    let broker = match Broker::start(cast.kafka_port) {
        Ok(broker) => broker,
        Err(problem) => {
            say(&format!("W8   no broker: {problem}"));
            writeln!(out, "**Not measured: there is no Kafka broker: {problem}.**")?;
            return Ok(out);
        }
    };
    let mut jobs: Vec<Box<dyn Job + '_>> = vec![Box::new(Ours(cast.ours))];
    let mut absent = Vec::new();
    for name in cast.peers.iter().filter(|name| PEERS.contains(&name.as_str())) {
        say(&format!("getting {name}"));
        match jobs::peer(name, &cast.bench.scratch) {
            Ok(job) => jobs.push(job),
            Err(problem) => {
                say(&format!("skipped {name}: {problem}"));
                absent
                    .push(format!("| {name} | **not at hand: {}** | | | | | |", cell(&problem.to_string())));
            }
        }
    }
    say("W8   filling the topics");
    let (few, full) = (broker.fill("w8-few", FEW)?, broker.fill("w8-full", cast.lines)?);
    let mut pairs: Vec<Vec<Pair>> = jobs.iter().map(|_| Vec::new()).collect();
    for round in 1..=cast.rounds {
        for (job, pairs) in jobs.iter().zip(&mut pairs) {
            let start = once(cast, &broker, job.as_ref(), &few, round);
            let pair = Pair { start, whole: once(cast, &broker, job.as_ref(), &full, round) };
            if pair.is_right() {
                tell(&pair.less(pair.start.seconds, pair.start.cpu));
            } else {
                say(&format!("W8   {:<16} WRONG: {}", job.name(), pair.faults()));
            }
            journal.add(&pair)?;
            pairs.push(pair);
        }
    }
    for (job, pairs) in jobs.iter().zip(&pairs) {
        writeln!(out, "{}", row(job.as_ref(), pairs))?;
    }
    absent.iter().try_for_each(|row| writeln!(out, "{row}"))?;
    writeln!(out)?;
    for job in &jobs {
        writeln!(out, "- {} {}: {}", job.name(), job.version(), job.note())?;
    }
    Ok(out)
}

/// What is measured, and the head of the table.
fn head(lines: u64) -> String {
    format!(
        "## W8: Kafka → parse JSON → count and sum per tenant and minute → Kafka\n\n\
         {lines} of the JSON events, of {} tenants, {} ms of event time apart, lie in order of time in a topic of {} partition, uncompressed. \
         A product reads them from the earliest offset and writes one row for each tenant and minute \
         when the minute is over by event time, {} s of lateness included; one more event per tenant, far later, closes the last minutes. \
         The run ends when every row is in the output topic. Checked: every tenant and minute once, with the count and the sum (in hundredths) of \
         the events that were produced, and all counts together are the number of events.\n\n\
         The figures are of the product's processes alone: what the broker, the producer and the checking consumer cost is in none of them, but all \
         share the machine. As the topic is full before the product starts, each product also runs on a topic of {FEW} events; \
         that is its start, and the median of it is taken off CPU-s and events/s. Peak memory is that of the whole run. Logdrive commits offsets behind what is \
         delivered and keeps its windows for a restart; the peers run with their defaults, which keep none.\n\n\
         | product | CPU-s per M events | events/s | peak RSS MB | start until rows, s | start, CPU-s | every window once and right |\n\
         |---|---:|---:|---:|---:|---:|---|\n",
        events::TENANTS,
        crate::data::STEP_MS,
        events::PARTITIONS,
        events::LATENESS,
    )
}

/// A product's line of the table. What is taken off every run is the middle one of all starts.
fn row(job: &dyn Job, pairs: &[Pair]) -> String {
    let middle = |figure: fn(&Pair) -> f64| {
        Spread::of(pairs.iter().filter(|pair| pair.is_right()).map(figure)).map(|spread| spread.median)
    };
    let (seconds, cpu) = (middle(|pair| pair.start.seconds), middle(|pair| pair.start.cpu));
    let of_right = || pairs.iter().filter(|pair| pair.is_right());
    let runs: Vec<Outcome> =
        of_right().map(|pair| pair.less(seconds.unwrap_or(0.0), cpu.unwrap_or(0.0))).collect();
    let costs: Vec<f64> = runs.iter().filter(|run| run.cpu > 0.0).map(Outcome::cpu_per_million).collect();
    let rates = runs.iter().filter(|run| run.seconds > 0.0).map(Outcome::events_per_second);
    let memory = runs.iter().map(|run| run.memory as f64 / 1e6);
    let shown = |figure: Option<f64>, digits: usize, unit: &str| {
        figure.map_or("–".to_owned(), |figure| format!("{figure:.digits$}{unit}"))
    };
    let n_wrong = pairs.iter().filter(|pair| !pair.is_right()).count();
    let right = match pairs.iter().find(|pair| !pair.is_right()) {
        Some(first) => format!("**no**: {n_wrong} of {} runs: {}", pairs.len(), cell(&first.faults())),
        None if costs.len() < pairs.len() => {
            format!("yes; of {} of {} runs: {UNTOLD}", pairs.len() - costs.len(), pairs.len())
        }
        None => "yes".to_owned(),
    };
    let per_million = Spread::of(costs).map_or("–".to_owned(), |spread| {
        format!("**{:.2}** ({:.2}–{:.2})", spread.median, spread.min, spread.max)
    });
    format!(
        "| {} | {per_million} | {} | {} | {} | {} | {right} |",
        job.name(),
        shown(Spread::of(rates).map(|spread| spread.median / 1000.0), 1, " k"),
        shown(Spread::of(memory).map(|spread| spread.max), 0, ""),
        shown(seconds, 1, ""),
        shown(cpu, 2, ""),
    )
}

/// Text that may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

fn once(cast: &Cast<'_>, broker: &Broker, job: &dyn Job, input: &Input, round: u32) -> Outcome {
    let mut outcome = Outcome {
        name: "W8".to_owned(),
        product: job.name().to_owned(),
        round,
        lines: input.lines,
        bytes: input.bytes,
        load: load(),
        ..Outcome::default()
    };
    if let Err(problem) = attempt(cast, broker, job, input, &mut outcome) {
        outcome.problem = Some(problem.to_string());
    }
    outcome
}

fn attempt(
    cast: &Cast<'_>,
    broker: &Broker,
    job: &dyn Job,
    input: &Input,
    outcome: &mut Outcome,
) -> Result<()> {
    let output = format!("{}-{}-{}", input.topic, job.name(), outcome.round);
    broker.topic(&output)?;
    let folder = cast.bench.folder(job.name(), &input.topic)?;
    let task = Task { folder: &folder, broker: &broker.address, input: &input.topic, output: &output };
    let tally = Mutex::new(Tally::new(&input.expected));
    thread::scope(|scope| {
        // Dropped at the end of this block, whatever happens in it: that ends the thread.
        let mut reader = broker.read(&output)?;
        let rows = reader.lines()?;
        scope.spawn(|| collect(rows, &tally));
        let mut process = Process::start(job.launch(&task)?)?;
        let done = drive(&mut process, &tally, cast.bench.timeout, outcome);
        process.stop(Duration::from_secs(10));
        let tally = lock(&tally);
        outcome.seconds = tally.latest.saturating_duration_since(process.started).as_secs_f64();
        outcome.verdict = Some(tally.verdict());
        done
    })
}

/// Waits until every window is there, and takes the figures.
fn drive(
    process: &mut Process,
    tally: &Mutex<Tally<'_>>,
    timeout: Duration,
    outcome: &mut Outcome,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mut problem = None;
    while !lock(tally).is_complete() {
        sleep(Duration::from_millis(10));
        process.check()?;
        if Instant::now() > deadline {
            problem = Some(format!("not done within {timeout:?}").into());
            break;
        }
    }
    process.wait_quiet(QUIET, Instant::now() + CALM)?;
    outcome.cpu = process.cpu();
    outcome.memory = process.peak_memory();
    problem.map_or(Ok(()), Err)
}

/// Takes rows until there are no more.
fn collect(rows: impl Read, tally: &Mutex<Tally<'_>>) {
    for row in BufReader::new(rows).split(b'\n') {
        // An end in the midst of a row is that of the reader: what is missing then is missing in the tally.
        let Ok(row) = row else { return };
        lock(tally).take(&row);
    }
}

fn lock<'a, 'b>(tally: &'a Mutex<Tally<'b>>) -> MutexGuard<'a, Tally<'b>> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::ledger::Verdict;
    use crate::process::Launch;

    struct Fake;

    impl Job for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn version(&self) -> &'static str {
            "1"
        }

        fn note(&self) -> &'static str {
            ""
        }

        fn launch(&self, _task: &Task<'_>) -> Result<Launch> {
            Err("it is not real".into())
        }
    }

    fn outcome(lines: u64, seconds: f64, cpu: f64) -> Outcome {
        let verdict = Some(Verdict { wanted: 9, arrived: 9, ..Verdict::default() });
        Outcome { lines, seconds, cpu, memory: 50_000_000, verdict, ..Outcome::default() }
    }

    fn start() -> Outcome {
        outcome(2000, 1.5, 0.75)
    }

    #[test]
    fn the_middle_start_is_taken_off() {
        let pairs = [(1.5, 0.75), (9.0, 9.0), (1.0, 0.25)].map(|(seconds, cpu)| Pair {
            start: outcome(2000, seconds, cpu),
            whole: outcome(1_002_000, 5.5, 2.75),
        });
        assert!(pairs[1].less(9.0, 9.0).cpu < 0.0);
        assert_eq!(row(&Fake, &pairs), "| fake | **2.00** (2.00–2.00) | 250.0 k | 50 | 1.5 | 0.75 | yes |");
    }

    #[test]
    fn what_is_wrong_gives_no_figures() {
        let mut missing = outcome(1_002_000, 5.5, 2.75);
        missing.verdict = Some(Verdict { wanted: 9, arrived: 7, ..Verdict::default() });
        let pair = Pair { start: start(), whole: missing };
        assert_eq!(row(&Fake, &[pair]), "| fake | – | – | – | – | – | **no**: 1 of 1 runs: 2 of 9 missing |");

        let mut ended = start();
        ended.problem = Some("it ended".to_owned());
        let pair = Pair { start: ended, whole: outcome(1_002_000, 5.5, 2.75) };
        assert_eq!(pair.faults(), "with 2000 events: it ended");
    }

    #[test]
    fn what_cannot_be_told_from_the_start_is_right_without_figures() {
        let pair = Pair { start: start(), whole: outcome(3000, 1.4, 0.7) };
        assert_eq!(
            row(&Fake, &[pair]),
            format!("| fake | – | – | 50 | 1.5 | 0.75 | yes; of 1 of 1 runs: {UNTOLD} |")
        );
    }

    #[test]
    fn rows_are_collected_to_the_end() {
        let expected = events::Expected::of(1).expect("a line");
        let tally = Mutex::new(Tally::new(&expected));
        collect(&b"{}\n{}\n"[..], &tally);
        assert_eq!(lock(&tally).verdict().unknown, 2);
    }
}
