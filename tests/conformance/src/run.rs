//! Scenarios, one after the other in as few machines as will do, and how they ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::architecture::{Architecture, X86_64};
use crate::image::{self, Image};
use crate::lunar;
use crate::machine::{Machine, Place, Report, Wanted};
use crate::measure::Figures;
use crate::packages::{self, Packages};
use crate::scenarios::Scenario;

/// How long a boot may take before it is tried again; it takes a tenth of that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long powering off may take.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long the guest may be silent while it measures: a login and a filled disk take a tenth of that.
const SILENCE_LIMIT: Duration = Duration::from_secs(180);
/// This program in the guest, which goes there by other names.
const SELF: &str = "lunar-conformance";
/// How much of the console is shown when something fails.
const LAST_LINES: usize = 60;

/// Everything that a machine can be started from.
pub struct Run {
    guest: PathBuf,
    /// This run's directory: image, logs, and what the guest leaves.
    out: PathBuf,
    packages: Packages,
    image: Image,
    /// A directory of the user that the guest sees.
    pub share: Option<PathBuf>,
    /// Whether the console is shown.
    pub shown: bool,
    /// Memory, in MiB.
    pub memory: u32,
}

/// How a scenario ended.
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// What became of it.
    pub outcome: Verdict,
    /// How many of its checks held.
    pub checks: usize,
    /// What it measured.
    pub measured: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// What became of a scenario.
pub enum Verdict {
    /// Everything that it checked held.
    Passed,
    /// Something did not.
    Failed(String),
    /// It cannot be run here.
    Skipped(String),
}

impl Verdict {
    /// Whether this is a failure.
    pub fn is_failure(&self) -> bool {
        matches!(self, Verdict::Failed(_))
    }
}

impl Run {
    /// Fetches what is missing and makes the image. An error says what could not be had.
    pub fn prepare(guest: &Path, refresh: bool) -> Result<Run> {
        const ARCHITECTURE: &Architecture = &X86_64;
        let (qemu, package) = ARCHITECTURE.qemu;
        packages::installed(qemu, package)?;
        packages::installed("xz", "xz-utils")?;
        let packages = image::unpacked(ARCHITECTURE, refresh)?;
        let out = folder_of_this_run()?;
        // The guest's processor is this machine's, so far: what runs here runs there.
        let programs = out.join("bin");
        fs::create_dir_all(&programs)?;
        fs::copy(std::env::current_exe()?, programs.join(SELF))?;
        for (name, _) in crate::IN_THE_GUEST {
            std::os::unix::fs::symlink(SELF, programs.join(name))?;
        }
        let init = fs::read(guest.join("init"))?;
        let image = image::make(ARCHITECTURE, &packages, &init, &out)?;
        let guest = guest.to_path_buf();
        Ok(Run { guest, out, packages, image, share: None, shown: false, memory: 0 })
    }

    /// Puts Lunar's programs into the guest.
    pub fn add_lunar(&self) -> Result<()> {
        let workspace = self.guest.ancestors().nth(3);
        lunar::add(workspace.context("this crate has no workspace")?, &target_folder()?, &self.out)
    }

    /// The versions of what the guest is made of.
    pub fn made_of(&self) -> String {
        self.packages.files.join("\n")
    }

    /// Runs a shell command in the guest; returns its exit code.
    pub fn command(&self, command: &str) -> Result<u8> {
        fs::write(self.out.join("command"), command)?;
        let mut machine = self.booted(&self.wanted("command", false, true))?;
        loop {
            match machine.report(Instant::now() + Duration::from_secs(3600)) {
                Ok(Some(Report::Ran(code))) => {
                    machine.end(END_LIMIT)?;
                    return Ok(u8::try_from(code).unwrap_or(1));
                }
                Ok(Some(_)) => {}
                Ok(None) => bail!("the command was not over after an hour"),
                Err(error) => {
                    return Err(error.context(format!("log: {}", machine.console.display())));
                }
            }
        }
    }

    /// Runs guest/measure.sh with so many turns for each target, and takes down what it measures.
    pub fn measure(&self, turns: u32, figures: &mut Figures) -> Result<()> {
        let script = format!("rounds={turns}\n. /guest/lib.sh\n. /guest/measure.sh\n");
        fs::write(self.out.join("command"), script)?;
        let mut machine = self.booted(&self.wanted("command", false, self.shown))?;
        let why = |machine: &Machine| format!("it stopped:\n{}", machine.last_words(LAST_LINES));
        loop {
            match machine.report(Instant::now() + SILENCE_LIMIT).with_context(|| why(&machine))? {
                Some(Report::Measured(line)) => {
                    println!("{line}");
                    figures.add(&line)?;
                }
                Some(Report::Ran(0)) => return machine.end(END_LIMIT),
                Some(Report::Ran(_)) => bail!(why(&machine)),
                Some(_) => {}
                None => bail!("{} s without a word; {}", SILENCE_LIMIT.as_secs(), why(&machine)),
            }
        }
    }

    /// Runs scenarios, if any, and then a shell in the same guest until the user leaves it.
    pub fn shell(&self, scenarios: &[Scenario]) -> Result<()> {
        let names = names(scenarios);
        Machine::start(&self.wanted(&names, true, true), 1)?.attend()
    }

    /// Runs the scenarios. One that fails takes its machine along; the next begins in a new one.
    pub fn scenarios(&self, scenarios: &[Scenario]) -> Result<Vec<Outcome>> {
        let mut results: Vec<Outcome> = Vec::new();
        let mut number = 0;
        while results.len() < scenarios.len() {
            number += 1;
            let left = &scenarios[results.len()..];
            let alike = left.iter().take_while(|next| next.needs_two == left[0].needs_two).count();
            let left = &left[..alike];
            let names = names(left);
            let wanted = self.wanted(&names, false, self.shown);
            let (mut machine, second) = if left[0].needs_two {
                let (first, second) = self.booted_two(wanted, number)?;
                (first, Some(second))
            } else {
                (self.booted_as(&wanted, number)?, None)
            };
            for scenario in left {
                let result = follow(&mut machine, scenario);
                print(&result);
                let has_failed = result.outcome.is_failure();
                results.push(result);
                if has_failed {
                    println!("--- the last lines of {}", machine.console.display());
                    println!("{}\n---", machine.last_words(LAST_LINES));
                    if let Some(second) = &second {
                        println!("--- and of {}", second.console.display());
                        println!("{}\n---", second.last_words(LAST_LINES));
                    }
                    break;
                }
            }
        }
        let count = |is: fn(&Verdict) -> bool| results.iter().filter(|r| is(&r.outcome)).count();
        let failed = count(Verdict::is_failure);
        // As cargo's test runner says it, which whoever started us can read.
        println!(
            "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out",
            if failed == 0 { "ok" } else { "FAILED" },
            count(|verdict| matches!(verdict, Verdict::Passed)),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        );
        Ok(results)
    }

    fn wanted<'a>(&'a self, run: &'a str, shell: bool, shown: bool) -> Wanted<'a> {
        Wanted {
            architecture: &X86_64,
            image: &self.image,
            guest: &self.guest,
            out: &self.out,
            share: self.share.as_deref(),
            run,
            shell,
            shown,
            memory: self.memory,
            place: None,
        }
    }

    fn booted(&self, wanted: &Wanted<'_>) -> Result<Machine> {
        self.booted_as(wanted, 1)
    }

    /// A machine that is up.
    fn booted_as(&self, wanted: &Wanted<'_>, number: u32) -> Result<Machine> {
        tried_twice(|| up(Machine::start(wanted, number)?))
    }

    /// Two machines on one wire that are up: the one that `wanted` says, and the one that does what it is asked to.
    fn booted_two(&self, wanted: Wanted<'_>, number: u32) -> Result<(Machine, Machine)> {
        let first = Wanted { place: Some(Place::First), ..wanted };
        let second = Wanted {
            place: Some(Place::Second),
            run: "second",
            shown: false,
            ..self.wanted("", false, false)
        };
        tried_twice(|| {
            // What earlier ones asked and answered, and the ends of their wire.
            for left in ["second", "wire-1", "wire-2"].map(|left| self.out.join(left)) {
                let _ =
                    if left.is_dir() { fs::remove_dir_all(left) } else { fs::remove_file(left) };
            }
            fs::create_dir_all(self.out.join("second"))?;
            let second = Machine::start(&second, number)?;
            let first = Machine::start(&first, number)?;
            Ok((up(first)?, up(second)?))
        })
    }
}

/// Emulated machines sometimes hang while booting, so a second try is made; nothing is tried again after that.
fn tried_twice<T>(boot: impl Fn() -> Result<T>) -> Result<T> {
    boot().or_else(|error| {
        println!("the guest did not boot ({error:#}); once more");
        boot()
    })
}

/// Waits until a machine that was just started is up.
fn up(mut machine: Machine) -> Result<Machine> {
    let started = machine.started;
    let report = machine.report(started + BOOT_LIMIT);
    let says = || format!("its console says:\n{}", machine.last_words(LAST_LINES));
    match report.with_context(says)? {
        Some(Report::Ready) => {
            println!("the guest is up after {:.1} s", started.elapsed().as_secs_f64());
            Ok(machine)
        }
        _ => bail!("not up after {} s; {}", BOOT_LIMIT.as_secs(), says()),
    }
}

/// Follows one scenario to its end.
fn follow(machine: &mut Machine, scenario: &Scenario) -> Outcome {
    let started = Instant::now();
    let deadline = started + scenario.limit;
    let mut checks = 0;
    let mut measured = Vec::new();
    let outcome = loop {
        match machine.report(deadline) {
            Ok(Some(Report::Checked(_))) => checks += 1,
            Ok(Some(Report::Measured(what))) => measured.push(what),
            Ok(Some(Report::Passed(name))) if name == scenario.name => {
                // A scenario that checks nothing proves nothing.
                break match checks {
                    0 => Verdict::Failed("it checked nothing".to_string()),
                    _ => Verdict::Passed,
                };
            }
            Ok(Some(Report::Failed(name, why))) if name == scenario.name => {
                break Verdict::Failed(why);
            }
            Ok(Some(Report::Skipped(name, why))) if name == scenario.name => {
                break Verdict::Skipped(why);
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                break Verdict::Failed(format!("not over after {} s", scenario.limit.as_secs()));
            }
            Err(error) => break Verdict::Failed(format!("{error:#}")),
        }
    };
    let name = scenario.name.clone();
    Outcome { name, outcome, checks, measured, took: started.elapsed() }
}

fn names(scenarios: &[Scenario]) -> String {
    scenarios.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>().join(",")
}

fn print(result: &Outcome) {
    let (verdict, why) = match &result.outcome {
        Verdict::Passed => ("PASS", format!("{} checks", result.checks)),
        Verdict::Failed(why) => ("FAIL", why.clone()),
        Verdict::Skipped(why) => ("SKIP", why.clone()),
    };
    println!("{verdict} {:<28} {:>6.1} s  {why}", result.name, result.took.as_secs_f64());
    result.measured.iter().for_each(|what| println!("     {what}"));
}

/// The results for other programs.
pub fn json(results: &[Outcome]) -> serde_json::Value {
    let one = |result: &Outcome| {
        let (verdict, why) = match &result.outcome {
            Verdict::Passed => ("passed", None),
            Verdict::Failed(why) => ("failed", Some(why)),
            Verdict::Skipped(why) => ("skipped", Some(why)),
        };
        json!({
            "scenario": result.name,
            "verdict": verdict,
            "reason": why,
            "checks": result.checks,
            "measured": result.measured,
            "seconds": result.took.as_secs_f64(),
        })
    };
    json!({ "scenarios": results.iter().map(one).collect::<Vec<_>>() })
}

/// Cargo's target directory: this program is in a folder of it.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("no target directory")?.to_path_buf())
}

/// `vm/PROCESS` in the target directory. What earlier processes left there goes: their logs are of use
/// until the next run.
fn folder_of_this_run() -> Result<PathBuf> {
    let all = target_folder()?.join("vm");
    fs::create_dir_all(&all)?;
    for entry in fs::read_dir(&all)? {
        let entry = entry?;
        if !Path::new("/proc").join(entry.file_name()).exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let folder = all.join(std::process::id().to_string());
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
