//! A query on all products: over the files, each in a process of its own, in turn in every round; and over rows in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use logdrive_compare::error::Result;
use logdrive_compare::process::empty_folder;
use logdrive_compare::{say, system};

use crate::answer::Answer;
use crate::events::Epoch;
use crate::measure::{self, Taken};
use crate::peers::{DATAFUSION, Product, Task};
use crate::queries::Query;
use crate::run::{self, Outcome};

/// Events of the run that shows what a start costs.
pub const FEW: usize = 2_000;

/// What all runs over the files share.
pub struct Trial {
    /// The folder of a few events.
    pub few: PathBuf,
    /// The folder of all.
    pub full: PathBuf,
    /// How many more these are.
    pub n_events: usize,
    /// How many come at once.
    pub per_epoch: usize,
    /// Where answers and logs lie.
    pub scratch: PathBuf,
    /// The core that everything measured runs on.
    pub core: usize,
    /// How long one run may take.
    pub limit: Duration,
}

/// What a product gave for a query.
#[derive(Clone, Debug)]
pub enum Finding {
    /// It is not given this query.
    LeftOut,
    /// What is wrong.
    Fault(String),
    /// The figures of each round.
    Right(Vec<Pair>),
}

/// The two runs of a round.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The run on few events.
    pub start: Taken,
    /// The run on all, its start included.
    pub whole: Taken,
}

impl Trial {
    /// A query on all products, in the order of these.
    ///
    /// # Errors
    /// If DataFusion fails, with whose answer all others are compared.
    pub fn run(&self, query: &Query, products: &[Product], rounds: usize) -> Result<Vec<Finding>> {
        let wanted = self.answer(query, &DATAFUSION, &self.full)?.1;
        let start = |product: &Product| match product.runs(query.name) {
            true => Finding::Right(Vec::new()),
            false => Finding::LeftOut,
        };
        let mut findings: Vec<Finding> = products.iter().map(start).collect();
        for _ in 0..rounds.max(1) {
            for (product, finding) in products.iter().zip(&mut findings) {
                let Finding::Right(pairs) = finding else { continue };
                match self.once(query, product, wanted) {
                    Ok(pair) => {
                        tell(query, product, pair, self.n_events);
                        pairs.push(pair);
                    }
                    Err(problem) => {
                        say(&format!("{:<5} {:<11} WRONG: {problem}", query.name, product.name));
                        *finding = Finding::Fault(problem.to_string());
                    }
                }
            }
        }
        Ok(findings)
    }

    fn once(&self, query: &Query, product: &Product, wanted: Answer) -> Result<Pair> {
        let (start, _) = self.answer(query, product, &self.few)?;
        let (whole, found) = self.answer(query, product, &self.full)?;
        match found.fault(wanted) {
            None => Ok(Pair { start, whole }),
            Some(fault) => Err(fault.into()),
        }
    }

    fn answer(&self, query: &Query, product: &Product, data: &Path) -> Result<(Taken, Answer)> {
        let folder = self.scratch.join("runs").join(format!("{}-{}", product.name, query.name));
        empty_folder(&folder)?;
        let output = folder.join("answer");
        let task = Task { query: query.name, data, output: &output, per_epoch: self.per_epoch };
        let taken = measure::run(product.command(&task, &folder)?, &folder, self.core, self.limit)?;
        let columns = run::plan(query).map_err(|error| error.message)?.0.rows();
        let found = Answer::read(&output, &columns)?;
        // Answers can be large; logs are kept.
        match output.is_dir() {
            true => std::fs::remove_dir_all(&output)?,
            false => std::fs::remove_file(&output)?,
        }
        Ok((taken, found))
    }
}

fn tell(query: &Query, product: &Product, pair: Pair, n_events: usize) {
    let Pair { start, whole } = pair;
    say(&format!(
        "{:<5} {:<11} {:>7.2} CPU-s per M, {:>6.0} MB, start {:.2} CPU-s",
        query.name,
        product.name,
        (whole.cpu - start.cpu) / n_events as f64 * 1e6,
        whole.memory as f64 / 1e6,
        start.cpu
    ));
}

/// Over rows that are there before the clock starts: as a view, then with DataFusion.
///
/// # Errors
/// If the query fails or its view stops.
pub fn in_memory(query: &Query, epochs: &[Epoch], core: usize) -> Result<(Outcome, Outcome)> {
    let (view, tables) = run::plan(query).map_err(|error| format!("{}: {}", query.name, error.message))?;
    // A thread of its own, so that only what is measured is bound to the core.
    let both = std::thread::scope(|scope| {
        let both = scope.spawn(|| -> Result<_> {
            system::run_on(core)?;
            Ok((run::run(&view, &tables, epochs, 1, false), run::batch(query, epochs, false)?))
        });
        both.join()
    });
    let (of_view, of_batch) = both.map_err(|_| format!("{} panicked", query.name))??;
    match of_view.stopped {
        None => Ok((of_view, of_batch)),
        Some(reason) => Err(format!("{} stopped: {reason}", query.name).into()),
    }
}
