//! Lunar against real initiators: boots a Linux guest under emulation and runs scenarios in it, with the
//! kernel's own SCSI initiators. The scenarios are shell scripts in `guest/`, and each check is theirs. What no tool of
//! the guest can do, this program does there under other names ([`IN_THE_GUEST`]), or beside it ([`BESIDE_THE_GUEST`]);
//! nothing else here knows SCSI or SRP.

mod architecture;
mod cpio;
mod discontiguous;
mod elf;
mod image;
mod lunar;
mod machine;
mod measure;
mod modules;
mod packages;
mod partition;
mod rdma;
mod run;
mod scenarios;
mod srp_initiator;
mod verbs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::measure::Figures;
use crate::run::Run;
use crate::scenarios::{Place, Scenario};

/// Boots the guest and runs scenarios in it.
///
/// The guest is a Debian kernel with soft RoCE under QEMU's emulation, or one for POWER with a VSCSI adapter.
/// Its packages are downloaded once and kept in lunar/vm in the user's cache directory, or where
/// LUNAR_VM_CACHE says.
#[derive(Parser)]
#[command(name = "cargo xtask vm", bin_name = "cargo xtask vm")]
struct Arguments {
    /// The scenarios to run: `lio:files`, all of a target (`lunar`), one against every target (`files`).
    /// All of them when none is named.
    names: Vec<String>,
    /// List the scenarios and what each proves.
    #[arg(long)]
    list: bool,
    /// Keep the guest for a shell on this terminal: at once, or after the named scenarios.
    #[arg(long)]
    shell: bool,
    /// Run this shell command in the guest, show what its console prints, and end with its exit code.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["names", "shell"])]
    run: Option<String>,
    /// Have Lunar's programs in the guest, in /out/bin, though no named scenario needs them.
    #[arg(long)]
    lunar: bool,
    /// A directory that the guest mounts, writable, at /share.
    #[arg(long, value_name = "DIRECTORY")]
    share: Option<PathBuf>,
    /// Show what the console prints.
    #[arg(long)]
    verbose: bool,
    /// Measure Lunar against Linux's own target, turn by turn in one guest, and print the figures.
    #[arg(long, conflicts_with_all = ["names", "shell", "run", "list"])]
    measure: bool,
    /// How many turns each target has with --measure.
    #[arg(long, value_name = "COUNT", default_value_t = 5, requires = "measure")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write the results as one JSON object to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fetch what the guest is made of, build what runs in it, and boot nothing. Exit code 77 says that
    /// the guest cannot be had.
    #[arg(long)]
    prepare: bool,
    /// Fetch newer packages.
    #[arg(long)]
    refresh: bool,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 1536)]
    memory: u32,
}

/// Where this crate lies: as cargo says when it runs this program, else where it was when built.
fn this_crate() -> PathBuf {
    let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let is_this = |folder: &PathBuf| folder.join("guest/scenarios").is_dir();
    said.filter(is_this).unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

fn write_json(file: Option<&Path>, results: &serde_json::Value) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    fs::write(file, format!("{results:#}\n")).with_context(|| file.display().to_string())
}

/// Takes the words behind its name.
type Program = fn(&[String]) -> Result<()>;

/// What this program is in the guest, by the name that it is called by.
const IN_THE_GUEST: &[(&str, Program)] = &[
    (discontiguous::NAME, discontiguous::run),
    (srp_initiator::NAME, srp_initiator::run),
    (verbs::NAME, verbs::run),
];

/// What it is outside of the guest, as a process of its own.
const BESIDE_THE_GUEST: &[(&str, Program)] = &[(partition::server::NAME, partition::server::run)];

/// The exit code that says: not run, for want of something.
const SKIPPED: u8 = 77;

fn main() -> Result<ExitCode> {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next();
    let mut named = IN_THE_GUEST.iter().chain(BESIDE_THE_GUEST);
    if let Some((_, run)) = named.find(|(called, _)| Some(*called) == name) {
        run(&words.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse();
    let guest = this_crate().join("guest");
    let all = scenarios::all(&guest)?;
    if arguments.list {
        for scenario in all {
            println!("{:<24} {}", scenario.name, scenario.proves);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let asks_else = arguments.shell || arguments.measure || arguments.run.is_some();
    let wants_all = arguments.names.is_empty() && !asks_else;
    let chosen = if wants_all || !arguments.names.is_empty() {
        scenarios::named(&all, &arguments.names)?
    } else {
        Vec::new()
    };
    let is_partition = |scenario: &Scenario| scenario.place == Place::Partition;
    let mut run = Run::new(&guest)?;
    let mut missing = None;
    if chosen.is_empty() || !chosen.iter().all(is_partition) {
        missing = run.prepare_machine(arguments.refresh).err();
    }
    if missing.is_none() && chosen.iter().any(is_partition) {
        missing = run.prepare_partition(arguments.refresh).err();
        // The others need none.
        if let Some(error) = missing.take_if(|_| !chosen.iter().all(is_partition)) {
            run.without_partition = Some(format!("{error:#}"));
        }
    }
    if let Some(error) = missing {
        eprintln!("skipped: {error:#}");
        return Ok(ExitCode::from(SKIPPED));
    }
    run.share = arguments.share.map(std::path::absolute).transpose()?;
    let needs_lunar = |scenario: &Scenario| scenario.target.as_deref() == Some("lunar");
    if arguments.lunar || arguments.measure || chosen.iter().any(needs_lunar) {
        run.add_lunar()?;
    }
    if arguments.prepare {
        println!("{}", run.made_of());
        if let Some(why) = &run.without_partition {
            println!("no partition: {why}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    run.shown = arguments.verbose;
    run.memory = arguments.memory;
    if arguments.measure {
        let mut figures = Figures::default();
        let measured = run.measure(arguments.runs, &mut figures);
        // What was measured before something failed was measured.
        print!("{}", figures.tables());
        write_json(arguments.json.as_deref(), &figures.json())?;
        return measured.map(|()| ExitCode::SUCCESS);
    }
    if let Some(command) = arguments.run {
        return Ok(ExitCode::from(run.command(&command)?));
    }
    if arguments.shell {
        if let Some(other) = chosen.iter().find(|scenario| scenario.place != Place::Alone) {
            bail!("{} needs more than the machine that --shell has: leave --shell out", other.name);
        }
        run.shell(&chosen)?;
        return Ok(ExitCode::SUCCESS);
    }
    let results = run.scenarios(&chosen)?;
    write_json(arguments.json.as_deref(), &run::json(&results))?;
    let has_failed = results.iter().any(|result| result.outcome.is_failure());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
