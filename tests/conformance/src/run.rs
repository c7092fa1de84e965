//! Scenarios, one after the other in as few machines as will do, and how they ended.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::architecture::{Architecture, POWERPC64LE, X86_64};
use crate::image::{self, Contents, Image};
use crate::lunar;
use crate::machine::{self, Around, Machine, Report, Wanted};
use crate::measure::Figures;
use crate::packages::{self, Packages};
use crate::partition::{self, Partition};
use crate::scenarios::{Place, Scenario};

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
    /// This run's directory: images, logs, and what the guest leaves.
    out: PathBuf,
    machine: Option<Made>,
    partition: Option<Made>,
    /// Why scenarios of a partition are skipped, where they are.
    pub without_partition: Option<String>,
    /// A directory of the user that the guest sees.
    pub share: Option<PathBuf>,
    /// Whether the console is shown.
    pub shown: bool,
    /// Memory, in MiB.
    pub memory: u32,
}

/// What a kind of guest is made of, and what it starts from.
struct Made {
    packages: Packages,
    image: Image,
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
    /// A run without anything to start yet.
    pub fn new(guest: &Path) -> Result<Run> {
        Ok(Run {
            guest: guest.to_path_buf(),
            out: folder_of_this_run()?,
            machine: None,
            partition: None,
            without_partition: None,
            share: None,
            shown: false,
            memory: 0,
        })
    }

    /// Fetches what is missing and makes the image of the machine that most scenarios run in. An error says what
    /// could not be had.
    pub fn prepare_machine(&mut self, refresh: bool) -> Result<()> {
        // The guest's processor is this machine's, so far: what runs here runs there.
        let programs = self.out.join("bin");
        fs::create_dir_all(&programs)?;
        fs::copy(std::env::current_exe()?, programs.join(SELF))?;
        for (name, _) in crate::IN_THE_GUEST {
            std::os::unix::fs::symlink(SELF, programs.join(name))?;
        }
        let own = BTreeMap::from([("init".to_string(), fs::read(self.guest.join("init"))?)]);
        self.machine = Some(self.made(&X86_64, &image::SERVER, &own, refresh)?);
        Ok(())
    }

    /// The same for the partition, whose image has its scenarios.
    pub fn prepare_partition(&mut self, refresh: bool) -> Result<()> {
        let init = fs::read(self.guest.join("partition-init"))?;
        let mut own = BTreeMap::from([("init".to_string(), init)]);
        for folder in ["", "scenarios/"] {
            for entry in fs::read_dir(self.guest.join(folder))? {
                let path = entry?.path();
                if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                    let name = format!("guest/{folder}{}", name.to_string_lossy());
                    own.insert(name, fs::read(path)?);
                }
            }
        }
        self.partition = Some(self.made(&POWERPC64LE, &image::PARTITION, &own, refresh)?);
        Ok(())
    }

    fn made(
        &self,
        architecture: &Architecture,
        contents: &Contents,
        own: &BTreeMap<String, Vec<u8>>,
        refresh: bool,
    ) -> Result<Made> {
        let (qemu, package) = architecture.qemu;
        packages::installed(qemu, package)?;
        packages::installed("xz", "xz-utils")?;
        let packages = image::unpacked(architecture, contents, refresh)?;
        let image = image::make(architecture, contents, &packages, own, &self.out)?;
        Ok(Made { packages, image })
    }

    /// Puts Lunar's programs into the guest.
    pub fn add_lunar(&self) -> Result<()> {
        let workspace = self.guest.ancestors().nth(3);
        lunar::add(workspace.context("this crate has no workspace")?, &target_folder()?, &self.out)
    }

    /// The versions of what the guest is made of.
    pub fn made_of(&self) -> String {
        let made = self.machine.iter().chain(&self.partition);
        made.flat_map(|made| made.packages.files.clone()).collect::<Vec<_>>().join("\n")
    }

    /// Runs a shell command in the guest; returns its exit code.
    pub fn command(&self, command: &str) -> Result<u8> {
        fs::write(self.out.join("command"), command)?;
        let mut machine = self.booted(&self.wanted("command", false, true)?)?;
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
        let mut machine = self.booted(&self.wanted("command", false, self.shown)?)?;
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
        Machine::start(&self.wanted(&names, true, true)?, 1)?.attend()
    }

    /// Runs the scenarios. One that fails takes its machine along; the next begins in a new one.
    pub fn scenarios(&self, scenarios: &[Scenario]) -> Result<Vec<Outcome>> {
        let mut results: Vec<Outcome> = Vec::new();
        let mut number = 0;
        while results.len() < scenarios.len() {
            number += 1;
            let left = &scenarios[results.len()..];
            let alike = left.iter().take_while(|next| next.place == left[0].place).count();
            let left = &left[..alike];
            if let (Place::Partition, Some(why)) = (left[0].place, &self.without_partition) {
                results.extend(left.iter().map(|scenario| skipped(scenario, why)));
                continue;
            }
            let mut booted = self.booted_for(left, number)?;
            for scenario in left {
                let result = follow(&mut booted, scenario);
                print(&result);
                let has_failed = result.outcome.is_failure();
                results.push(result);
                if has_failed {
                    booted.print_last_words();
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

    fn wanted<'a>(&'a self, run: &'a str, shell: bool, shown: bool) -> Result<Wanted<'a>> {
        Ok(Wanted {
            architecture: &X86_64,
            image: &self.machine.as_ref().context("no machine was prepared")?.image,
            guest: &self.guest,
            out: &self.out,
            share: self.share.as_deref(),
            run,
            shell,
            shown,
            memory: self.memory,
            around: Around::Nothing,
        })
    }

    /// A machine that is up.
    fn booted(&self, wanted: &Wanted<'_>) -> Result<Machine> {
        tried_twice(|| up(Machine::start(wanted, 1)?))
    }

    /// What scenarios of one place run in, up and with these scenarios to run.
    fn booted_for(&self, scenarios: &[Scenario], number: u32) -> Result<Booted> {
        let names = names(scenarios);
        match scenarios[0].place {
            Place::Alone => {
                let wanted = self.wanted(&names, false, self.shown)?;
                let machine = tried_twice(|| up(Machine::start(&wanted, number)?))?;
                Ok(Booted { machine, second: None, partition: None })
            }
            Place::FirstOfTwo => {
                let (first, second) = self.booted_two(&names, number)?;
                Ok(Booted { machine: first, second: Some(second), partition: None })
            }
            Place::Partition => tried_twice(|| self.booted_partition(&names, number)),
        }
    }

    /// Two machines on one wire that are up: the one that runs `names`, and the one that does what it is asked to.
    fn booted_two(&self, names: &str, number: u32) -> Result<(Machine, Machine)> {
        let around = Around::Wire(machine::Place::First);
        let first = Wanted { around, ..self.wanted(names, false, self.shown)? };
        let around = Around::Wire(machine::Place::Second);
        let second = Wanted { around, ..self.wanted("second", false, false)? };
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

    /// A partition that is up, with a server for its adapter.
    fn booted_partition(&self, names: &str, number: u32) -> Result<Booted> {
        let made = self.partition.as_ref().context("no partition was prepared")?;
        let partition = Partition::new(&made.image.kernel, &self.out, number)?;
        let wanted = Wanted {
            architecture: &POWERPC64LE,
            image: &made.image,
            guest: &self.guest,
            out: &self.out,
            share: None,
            run: names,
            shell: false,
            shown: self.shown,
            memory: partition::MEMORY_MIB,
            around: Around::Hypervisor(&partition),
        };
        let machine = Machine::start(&wanted, number)?;
        let mut running = partition.run()?;
        let machine = up(machine).map_err(|error| match running.complaint() {
            Some(why) => error.context(format!("the bridge: {why:#}")),
            None => error,
        })?;
        Ok(Booted { machine, second: None, partition: Some(running) })
    }
}

/// What scenarios run in.
struct Booted {
    machine: Machine,
    second: Option<Machine>,
    partition: Option<partition::Running>,
}

impl Booted {
    /// Does what the guest asks for.
    fn asked(&mut self, what: &str) -> Result<()> {
        match &mut self.partition {
            Some(partition) => partition.asked(what),
            None => bail!("the guest asks for `{what}`, and nobody is there to do it"),
        }
    }

    fn print_last_words(&mut self) {
        println!("--- the last lines of {}", self.machine.console.display());
        println!("{}\n---", self.machine.last_words(LAST_LINES));
        if let Some(second) = &self.second {
            println!("--- and of {}", second.console.display());
            println!("{}\n---", second.last_words(LAST_LINES));
        }
        if let Some(why) = self.partition.as_mut().and_then(partition::Running::complaint) {
            println!("--- and of the bridge: {why:#}");
        }
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
fn follow(booted: &mut Booted, scenario: &Scenario) -> Outcome {
    let started = Instant::now();
    let deadline = started + scenario.limit;
    let mut checks = 0;
    let mut measured = Vec::new();
    let outcome = loop {
        match booted.machine.report(deadline) {
            Ok(Some(Report::Asked(what))) => {
                if let Err(error) = booted.asked(&what) {
                    break Verdict::Failed(format!("{error:#}"));
                }
            }
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

fn skipped(scenario: &Scenario, why: &str) -> Outcome {
    let outcome = Verdict::Skipped(why.to_string());
    let name = scenario.name.clone();
    let result = Outcome { name, outcome, checks: 0, measured: Vec::new(), took: Duration::ZERO };
    print(&result);
    result
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
