//! The stages of `cargo xtask test`: what each runs, and when it cannot.
//!
//! Every stage runs whatever became of the others. docs/testing.md tells what each of them proves.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::child::{self, Counts};
use crate::report::{self, Line, Outcome};
use crate::workspace::{self, Workspace};
use crate::{arrows, fuzz, licences, packages, tidy};

/// One stage.
struct Stage {
    name: &'static str,
    proves: &'static str,
    run: fn(&Job<'_>) -> Result<Outcome>,
}

/// What a stage gets.
struct Job<'a> {
    workspace: &'a Workspace,
    long: bool,
}

/// Cheap ones first; then those that share what the one before has built.
const STAGES: &[Stage] = &[
    Stage { name: "fmt", proves: "the source is formatted by rustfmt", run: fmt },
    Stage { name: "arrows", proves: "every crate depends only on what it may", run: arrows },
    Stage {
        name: "tidy",
        proves: "unsafe, names and forbidden words are where they may be",
        run: tidy,
    },
    Stage {
        name: "licences",
        proves: "all that is built may be used, and is from the registry",
        run: licences,
    },
    Stage { name: "clippy", proves: "no lint complains, in tests either", run: clippy },
    Stage { name: "doc", proves: "every link in the documentation leads somewhere", run: doc },
    Stage {
        name: "test",
        proves: "unit, property and scenario tests, and documentation examples",
        run: test,
    },
    Stage {
        name: "loom",
        proves: "the ring cursors are right under every thread interleaving",
        run: loom,
    },
    Stage {
        name: "memory",
        proves: "the crates with unsafe code touch only memory they own",
        run: memory,
    },
    Stage {
        name: "fuzz",
        proves: "no parser panics, overflows or hangs, whatever the bytes",
        run: fuzz,
    },
    Stage {
        name: "sim",
        proves: "the whole target under seeded chaos agrees with a model disk",
        run: sim,
    },
    Stage {
        name: "figures",
        proves: "the exact costs per command are those committed",
        run: figures,
    },
    Stage {
        name: "emulate",
        proves: "the product serves a real image, processes and all",
        run: emulate,
    },
    Stage {
        name: "vm",
        proves: "Linux's own initiators are served, in a guest under emulation",
        run: vm,
    },
];

/// The crates whose unsafe code the `memory` stage watches.
const UNSAFE_CRATES: &[&str] = &["lunar-handlers", "lunar-pcie", "lunar-hca"];

/// How long a command may take: against what never ends, not against what is slow.
const LIMIT: Duration = Duration::from_secs(1200);
/// With `--long`.
const LIMIT_LONG: Duration = Duration::from_secs(12 * 3600);
/// How long all scenarios in the guest may take together.
const VM_LIMIT: Duration = Duration::from_secs(1800);

/// How often `reservation_torture` kills the agent with `--long`; without, it knows itself.
const KILLS_VARIABLE: &str = "LUNAR_TORTURE_KILLS";
const KILLS_LONG: &str = "10000";

/// The exact figures as committed, one `name = integer` a line.
const FIGURES: &str = "tests/scenario/figures.txt";

/// Prints the stages and what each proves.
pub fn list() {
    for stage in STAGES {
        println!("{:<10} {}", stage.name, stage.proves);
    }
}

/// Runs the named stages, or all of them, and reports.
pub fn run(workspace: &Workspace, names: &[String], long: bool) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| STAGES.iter().all(|s| s.name != **name)) {
        bail!("no stage `{unknown}`: `cargo xtask test --list` lists them");
    }
    let job = Job { workspace, long };
    let mut lines = Vec::new();
    for stage in STAGES.iter().filter(|s| names.is_empty() || names.iter().any(|n| n == s.name)) {
        println!("\n=== {}: {}", stage.name, stage.proves);
        let started = Instant::now();
        let outcome = (stage.run)(&job).unwrap_or_else(|error| failed(format!("{error:#}")));
        if let Outcome::Failed { reason, .. } = &outcome {
            println!("{} failed: {reason}", stage.name);
        }
        lines.push(Line { stage: stage.name, outcome, took: started.elapsed() });
    }
    Ok(if report::print(&lines, long) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fmt(job: &Job<'_>) -> Result<Outcome> {
    let mut fuzz = job.cargo(&["fmt", "--check", "--manifest-path"]);
    fuzz.arg(job.workspace.root.join("tests/fuzz/Cargo.toml"));
    job.run_each([job.cargo(&["fmt", "--all", "--check"]), fuzz])
}

fn arrows(job: &Job<'_>) -> Result<Outcome> {
    Ok(of_findings(arrows::check(job.workspace)?))
}

fn tidy(job: &Job<'_>) -> Result<Outcome> {
    Ok(of_findings(tidy::check(&job.workspace.root)?))
}

fn licences(job: &Job<'_>) -> Result<Outcome> {
    let findings = licences::check(job.workspace)?;
    if !findings.is_empty() {
        return Ok(of_findings(findings));
    }
    if !packages::on_path("cargo-deny") {
        return Ok(passed("without cargo-deny, which is not installed: no advisories, no yanks"));
    }
    job.run_each([job.cargo(&["deny", "check", "bans", "licenses", "sources"])])
}

fn clippy(job: &Job<'_>) -> Result<Outcome> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    job.run_each([job.cargo(&arguments)])
}

fn doc(job: &Job<'_>) -> Result<Outcome> {
    let mut doc = job.cargo(&["doc", "--workspace", "--no-deps", "--lib", "--locked"]);
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    job.run_each([doc])
}

fn test(job: &Job<'_>) -> Result<Outcome> {
    let kills = job.long.then_some((KILLS_VARIABLE, KILLS_LONG));
    if !packages::on_path("cargo-nextest") {
        // This runs the documentation's examples as well.
        let mut test = job.cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
        test.envs(kills);
        return job.run_each([test]);
    }
    let mut nextest = job.cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    nextest.args(["--no-tests=pass", "--status-level=slow", "--config-file"]);
    nextest.arg(job.workspace.root.join("tests/xtask/nextest.toml"));
    nextest.args(["--profile", if job.long { "long" } else { "default" }]);
    nextest.envs(kills);
    let examples = job.cargo(&["test", "--workspace", "--doc", "--locked", "--no-fail-fast"]);
    job.run_each([nextest, examples])
}

fn loom(job: &Job<'_>) -> Result<Outcome> {
    let mut loom = job.cargo(&["test", "--package=lunar-offload-proto", "--lib", "--locked"]);
    loom.arg("--target-dir").arg(job.folder("loom")).args(["--", "loom_"]);
    loom.env("RUSTFLAGS", "--cfg loom");
    if !job.long {
        // Loom's authors find nearly every bug within two or three preemptions.
        loom.env("LOOM_MAX_PREEMPTIONS", "3");
    }
    let outcome = job.run_each([loom])?;
    Ok(match outcome {
        Outcome::Passed { counts, .. } if counts.passed == 0 => {
            Outcome::Skipped("lunar-offload-proto has no tests named loom_*".into())
        }
        other => other,
    })
}

/// AddressSanitizer is unstable in name only: its runtime comes with the stable compiler, which
/// takes the flag when asked to forget that it is stable. Where the runtime is missing, valgrind
/// looks for the same faults, more slowly.
fn memory(job: &Job<'_>) -> Result<Outcome> {
    let mut test = job.cargo(&["test", "--lib", "--tests", "--locked", "--no-fail-fast"]);
    test.args(UNSAFE_CRATES.iter().map(|name| format!("--package={name}")));
    let triple = workspace::host_triple()?;
    if has_address_sanitizer()? {
        test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
        // The leak check traces its own process, which containers forbid; leaks are no faults here.
        test.env("ASAN_OPTIONS", "detect_leaks=0");
        // With --target, the flags do not reach build scripts.
        test.args(["--target", &triple, "--target-dir"]).arg(job.folder("memory"));
        return Ok(noting(job.run_each([test])?, "AddressSanitizer"));
    }
    if let Some(reason) = packages::missing("valgrind", "valgrind") {
        let reason = format!("no AddressSanitizer runtime in this toolchain, and {reason}");
        return Ok(Outcome::Skipped(reason));
    }
    let runner = format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace('-', "_"));
    test.env(runner, "valgrind --quiet --error-exitcode=1");
    Ok(noting(job.run_each([test])?, "valgrind"))
}

fn has_address_sanitizer() -> Result<bool> {
    let folder = child::output(Command::new("rustc").args(["--print", "target-libdir"]))?;
    let Ok(folder) = folder else {
        return Ok(false);
    };
    Ok(std::fs::read_dir(folder.trim())?
        .flatten()
        .any(|file| file.file_name().to_string_lossy().ends_with("_rt.asan.a")))
}

fn fuzz(job: &Job<'_>) -> Result<Outcome> {
    if let Some(reason) = packages::missing("c++", "g++") {
        return Ok(Outcome::Skipped(format!("libFuzzer is C++: {reason}")));
    }
    let built = job.run_each([fuzz::build(job.workspace)?])?;
    if !matches!(built, Outcome::Passed { .. }) {
        return Ok(built);
    }
    let targets = fuzz::targets(job.workspace)?;
    let seconds = if job.long { 600 } else { 10 };
    let ran = fuzz::run_all(job.workspace, &targets, seconds)?;
    let inputs: u64 = ran.iter().map(|one| one.inputs).sum();
    let findings: Vec<String> = ran.into_iter().filter_map(|one| one.finding).collect();
    if !findings.is_empty() {
        return Ok(of_findings(findings));
    }
    Ok(passed(&format!("{} targets, {seconds} s each, {inputs} inputs", targets.len())))
}

/// With the deliberate mistakes compiled in, so that one build serves both runs; they are off unless
/// asked for.
fn sim(job: &Job<'_>) -> Result<Outcome> {
    let lunar_sim = |arguments: &[&str]| {
        let mut sim = job.cargo(&["run", "--release", "--locked", "--package", "lunar-sim"]);
        sim.args(["--features", "mutants", "--"]).args(arguments);
        sim
    };
    let seeds = if job.long { "10000" } else { "24" };
    job.run_each([
        lunar_sim(&["--seeds", seeds, "--commands", "20000", "--coverage"]),
        lunar_sim(&["--mutants", "--seeds", "20"]),
    ])
}

fn figures(job: &Job<'_>) -> Result<Outcome> {
    if !job.workspace.has_binary("lunar-scenario", "figures") {
        return Ok(Outcome::Skipped("lunar-scenario has no binary `figures` yet".into()));
    }
    // Instructions are counted by callgrind.
    if let Some(reason) = packages::missing("valgrind", "valgrind") {
        return Ok(Outcome::Skipped(reason));
    }
    let mut figures = job.binary("lunar-scenario", "figures");
    figures.arg("--exact");
    println!("$ {}", child::written(&figures));
    let printed = match child::output(&mut figures)? {
        Ok(printed) => printed,
        Err(error) => return Ok(failed(error)),
    };
    let committed = std::fs::read_to_string(job.workspace.root.join(FIGURES))?;
    let findings = differences(&committed, &printed);
    if findings.is_empty() {
        return Ok(passed(&format!("{} figures", printed.lines().count())));
    }
    println!("accept them with: {} > {FIGURES}", child::written(&figures));
    Ok(of_findings(findings))
}

/// The lines that only one of the two has.
fn differences(committed: &str, printed: &str) -> Vec<String> {
    let lacking = |these: &str, those: &str, whose: &str| -> Vec<String> {
        let absent = these.lines().filter(|line| !those.lines().any(|other| other == *line));
        absent.map(|line| format!("{whose}: {line}")).collect()
    };
    let mut findings = lacking(committed, printed, "committed");
    findings.extend(lacking(printed, committed, "now"));
    findings
}

fn emulate(job: &Job<'_>) -> Result<Outcome> {
    let mut usage = job.binary("lunar-board", "emulate");
    usage.arg("--help");
    println!("$ {}", child::written(&usage));
    match child::output(&mut usage)? {
        Err(error) => return Ok(failed(error)),
        Ok(usage) if !usage.contains("--quick") => {
            return Ok(Outcome::Skipped("`emulate` has no --quick yet".into()));
        }
        Ok(_) => {}
    }
    let mut emulate = job.binary("lunar-board", "emulate");
    if !job.long {
        emulate.arg("--quick");
    }
    job.run_each([emulate])
}

fn vm(job: &Job<'_>) -> Result<Outcome> {
    // One against Linux's own target shows that the scenarios can be passed.
    let names: &[&str] = if job.long { &[] } else { &["boot", "verbs", "lio:files", "lunar"] };
    let mut prepare = job.workspace.conformance();
    prepare.arg("--prepare").args(names);
    println!("$ {}", child::written(&prepare));
    if let Err(error) = child::output(&mut prepare)? {
        return Ok(match error.split_once("skipped: ") {
            Some((_, reason)) => Outcome::Skipped(reason.into()),
            None => failed(error),
        });
    }
    let mut scenarios = job.workspace.conformance();
    scenarios.args(names);
    job.run_each_within(VM_LIMIT, [scenarios])
}

impl Job<'_> {
    /// Cargo, in the workspace's root.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(workspace::cargo());
        command.args(arguments).current_dir(&self.workspace.root);
        command
    }

    /// `cargo run` of a binary as users run it, ready for the binary's own arguments.
    fn binary(&self, package: &str, binary: &str) -> Command {
        self.cargo(&["run", "--release", "--locked", "--package", package, "--bin", binary, "--"])
    }

    /// Where a stage that builds with flags of its own builds, so that nothing is built twice.
    fn folder(&self, name: &str) -> PathBuf {
        self.workspace.target.join(name)
    }

    /// Runs the commands one after the other, each whatever became of the one before.
    fn run_each(&self, commands: impl IntoIterator<Item = Command>) -> Result<Outcome> {
        self.run_each_within(LIMIT, commands)
    }

    fn run_each_within(
        &self,
        limit: Duration,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<Outcome> {
        let limit = if self.long { LIMIT_LONG } else { limit };
        let mut counts = Counts::default();
        let mut reasons = Vec::new();
        for mut command in commands {
            let ended = child::run(&mut command, limit)?;
            counts.passed += ended.counts.passed;
            counts.failed += ended.counts.failed;
            counts.left_out += ended.counts.left_out;
            if let Some(reason) = ended.failure {
                reasons.push(format!("{reason} of {}", child::written(&command)));
            }
        }
        Ok(if reasons.is_empty() {
            Outcome::Passed { counts, note: String::new() }
        } else {
            Outcome::Failed { counts, reason: reasons.join("; ") }
        })
    }
}

fn passed(note: &str) -> Outcome {
    Outcome::Passed { counts: Counts::default(), note: note.into() }
}

fn failed(reason: String) -> Outcome {
    Outcome::Failed { counts: Counts::default(), reason }
}

fn noting(outcome: Outcome, with: &str) -> Outcome {
    match outcome {
        Outcome::Passed { counts, .. } => Outcome::Passed { counts, note: format!("with {with}") },
        other => other,
    }
}

fn of_findings(findings: Vec<String>) -> Outcome {
    findings.iter().for_each(|finding| println!("{finding}"));
    if findings.is_empty() {
        return passed("");
    }
    failed(format!("{} found", findings.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_changed_appeared_or_vanished_is_told() {
        assert!(differences("a = 1\nb = 2\n", "a = 1\nb = 2\n").is_empty());
        assert_eq!(
            differences("a = 1\nb = 2\n", "a = 1\nb = 3\n"),
            ["committed: b = 2", "now: b = 3"]
        );
        assert_eq!(differences("a = 1\n", "a = 1\nc = 4\n"), ["now: c = 4"]);
        assert_eq!(differences("a = 1\nb = 2\n", "a = 1\n"), ["committed: b = 2"]);
    }

    #[test]
    fn stage_names_are_unique() {
        for (index, stage) in STAGES.iter().enumerate() {
            assert!(STAGES[index + 1..].iter().all(|other| other.name != stage.name));
        }
    }
}
