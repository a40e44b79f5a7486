//! Guards the hot kernels against becoming slower unseen: counts their instructions under valgrind and compares them
//! with the counts that were committed. Instructions, not time, so that a busy machine changes nothing.
//!
//! `guard` checks, `guard --update` writes `benches/guard.json`, `guard --run NAME N` is what valgrind runs.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use logdrive_benches::kernels::{EVENTS, KERNELS};

/// How many more instructions are still no slow-down: another compiler may need that.
const TOLERANCE: f64 = 0.05;
/// The difference of two numbers of runs is counted, so that preparing the input is not.
const RUNS: [usize; 2] = [1, 5];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--run", name, n] => {
            let kernel = KERNELS.iter().find(|kernel| kernel.name == name).ok_or("no such kernel")?;
            std::hint::black_box(kernel.run(n.parse()?));
            Ok(ExitCode::SUCCESS)
        }
        ["--update"] => check(true),
        [] => check(false),
        _ => Err("usage: guard [--update]".into()),
    }
}

fn check(update: bool) -> Result<ExitCode, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("guard.json");
    let committed: BTreeMap<String, u64> = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(_) if update => BTreeMap::new(),
        Err(error) => return Err(format!("{}: {error}", path.display()).into()),
    };
    let mut counts = BTreeMap::new();
    let mut slower = false;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:24} {:>10} {:>10}", "instructions per event", "committed", "now")?;
    for kernel in KERNELS {
        let [few, many] = [instructions(kernel.name, RUNS[0])?, instructions(kernel.name, RUNS[1])?];
        let now = many.saturating_sub(few) / ((RUNS[1] - RUNS[0]) * EVENTS) as u64;
        let before = committed.get(kernel.name).copied();
        let limit = before.map_or(u64::MAX, |before| (before as f64 * (1.0 + TOLERANCE)) as u64 + 1);
        let verdict = match before {
            None => "new",
            Some(_) if limit < now => "SLOWER",
            Some(before) if (now as f64) < before as f64 * (1.0 - TOLERANCE) => "faster",
            Some(_) => "",
        };
        slower |= limit < now || before.is_none();
        let before = before.map_or_else(|| "-".to_owned(), |n| n.to_string());
        writeln!(out, "{:24} {before:>10} {now:>10} {verdict}", kernel.name)?;
        counts.insert(kernel.name.to_owned(), now);
    }
    if update {
        std::fs::write(&path, serde_json::to_string_pretty(&counts)? + "\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if slower {
        writeln!(out, "If that is meant: cargo run --release -p logdrive-benches --bin guard -- --update")?;
    }
    Ok(ExitCode::from(u8::from(slower)))
}

/// The instructions of a whole process that runs the kernel `n` times.
fn instructions(kernel: &str, n: usize) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--"])
        .arg(std::env::current_exe()?)
        .args(["--run", kernel, &n.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error} (is it installed?)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{kernel}: {said}").into());
    }
    let collected = said.lines().rev().find_map(|line| line.split_once("Collected :"));
    Ok(collected.ok_or_else(|| format!("{kernel}: no count in {said}"))?.1.trim().parse()?)
}
