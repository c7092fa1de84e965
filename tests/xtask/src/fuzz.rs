//! Builds and runs the libFuzzer targets of tests/fuzz.
//!
//! The flags are those that cargo-fuzz passes, so that cargo-fuzz need not be installed, without a
//! sanitizer: the parsers are free of unsafe code, what is looked for are panics, overflows and hangs.
//! The stable compiler can do that.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::child;
use crate::workspace::{self, Workspace};

/// Coverage feedback for libFuzzer, and `cfg(fuzzing)` as every fuzzer sets it.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    --cfg fuzzing";

/// An input that takes longer than this many seconds is a finding.
const SECONDS_PER_INPUT_MAX: u32 = 10;
/// Memory in MiB that a target may use before that is a finding.
const MEMORY_MAX: u32 = 1024;

/// What a short run of one target found.
pub struct Ran {
    /// The target.
    pub target: String,
    /// How many inputs it ran.
    pub inputs: u64,
    /// Everything it printed, when it found something.
    pub finding: Option<String>,
}

/// The names of the targets.
pub fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let fuzz = Workspace::at(&workspace.root.join("tests/fuzz"))?;
    Ok(fuzz.members.into_iter().flat_map(|member| member.binaries).collect())
}

/// The command that builds them all. `--target` keeps the flags away from build scripts.
pub fn build(workspace: &Workspace) -> Result<Command> {
    let mut command = Command::new(workspace::cargo());
    command
        .env("RUSTFLAGS", FLAGS)
        .args(["build", "--release", "--locked", "--bins", "--manifest-path"])
        .arg(workspace.root.join("tests/fuzz/Cargo.toml"))
        .args(["--target", &workspace::host_triple()?, "--target-dir"])
        .arg(folder(workspace));
    Ok(command)
}

/// Fuzzes one target in the foreground, or replays `inputs`; whether it found nothing.
pub fn run_one(
    workspace: &Workspace,
    target: &str,
    inputs: &[PathBuf],
    seconds: u32,
) -> Result<bool> {
    if !build(workspace)?.status().context("cargo did not start")?.success() {
        return Ok(false);
    }
    let mut command = if inputs.is_empty() {
        fuzzing(workspace, target, seconds)?
    } else {
        let mut command = Command::new(binary(workspace, target)?);
        command.args(inputs);
        command
    };
    Ok(command.status().with_context(|| format!("{target} did not start"))?.success())
}

/// Fuzzes every target for `seconds`, as many at once as there are processors. They are built.
pub fn run_all(workspace: &Workspace, targets: &[String], seconds: u32) -> Result<Vec<Ran>> {
    let waiting = Mutex::new(targets.iter().cloned().collect::<VecDeque<String>>());
    let next = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
    let work = || -> Result<Vec<Ran>> {
        let mut ran = Vec::new();
        while let Some(target) = next() {
            let one = run_captured(workspace, target, seconds)?;
            println!("{:<24} {:>10} inputs", one.target, one.inputs);
            ran.push(one);
        }
        Ok(ran)
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let ran = worker.join().map_err(|_| anyhow::anyhow!("a fuzzing thread panicked"))?;
            all.extend(ran?);
        }
        Ok(all)
    })
}

fn run_captured(workspace: &Workspace, target: String, seconds: u32) -> Result<Ran> {
    let mut command = fuzzing(workspace, &target, seconds)?;
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    // libFuzzer stops by itself; the limit is for a target that hangs it.
    let limit = Duration::from_secs(u64::from(seconds) + 120);
    let (failure, printed) = child::captured(&mut command, limit)?;
    let inputs = printed
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0);
    let finding = failure.map(|status| {
        format!(
            "{target}: {status}\n{printed}\nreplay it with `cargo xtask fuzz {target} tests/fuzz/artifacts/{target}/...`"
        )
    });
    Ok(Ran { target, inputs, finding })
}

/// The target with its two corpora: what it learns stays in the target directory, the seeds are
/// committed.
fn fuzzing(workspace: &Workspace, target: &str, seconds: u32) -> Result<Command> {
    let learnt = folder(workspace).join("corpus").join(target);
    let seeds = workspace.root.join("tests/fuzz/corpus").join(target);
    let artifacts = workspace.root.join("tests/fuzz/artifacts").join(target);
    for folder in [&learnt, &artifacts] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let mut command = Command::new(binary(workspace, target)?);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SECONDS_PER_INPUT_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(learnt);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    Ok(command)
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("fuzz")
}

fn binary(workspace: &Workspace, target: &str) -> Result<PathBuf> {
    Ok(folder(workspace).join(workspace::host_triple()?).join("release").join(target))
}
