//! Lunar against real initiators: boots a Linux guest under emulation and runs scenarios in it, with the
//! kernel's own SCSI initiators. Nothing here knows SCSI or SRP; the scenarios are shell scripts in
//! `guest/`, and each check is theirs.

mod architecture;
mod cpio;
mod discontiguous;
mod elf;
mod image;
mod lunar;
mod machine;
mod modules;
mod packages;
mod run;
mod scenarios;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::run::Run;

/// Boots the guest and runs scenarios in it.
///
/// The guest is a Debian kernel with soft RoCE under QEMU's emulation. Its packages are downloaded once
/// and kept in lunar/vm in the user's cache directory, or where LUNAR_VM_CACHE says.
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
    /// Print the results as one JSON object at the end.
    #[arg(long)]
    json: bool,
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

/// The exit code that says: not run, for want of something.
const SKIPPED: u8 = 77;

fn main() -> Result<ExitCode> {
    let mut words = std::env::args();
    if words.next().is_some_and(|program| program.rsplit('/').next() == Some(discontiguous::NAME)) {
        discontiguous::run(&words.collect::<Vec<_>>())?;
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
    let wants_all = arguments.names.is_empty() && !arguments.shell && arguments.run.is_none();
    let chosen = if wants_all || !arguments.names.is_empty() {
        scenarios::named(&all, &arguments.names)?
    } else {
        Vec::new()
    };
    let mut run = match Run::prepare(&guest, arguments.refresh) {
        Ok(run) => run,
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return Ok(ExitCode::from(SKIPPED));
        }
    };
    run.share = arguments.share.map(std::path::absolute).transpose()?;
    if arguments.lunar || chosen.iter().any(|scenario| scenario.target.as_deref() == Some("lunar"))
    {
        run.add_lunar()?;
    }
    if arguments.prepare {
        println!("{}", run.made_of());
        return Ok(ExitCode::SUCCESS);
    }
    run.shown = arguments.verbose;
    run.memory = arguments.memory;
    if let Some(command) = arguments.run {
        return Ok(ExitCode::from(run.command(&command)?));
    }
    if arguments.shell {
        run.shell(&chosen)?;
        return Ok(ExitCode::SUCCESS);
    }
    let results = run.scenarios(&chosen)?;
    if arguments.json {
        println!("{}", run::json(&results));
    }
    let has_failed = results.iter().any(|result| result.outcome.is_failure());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
