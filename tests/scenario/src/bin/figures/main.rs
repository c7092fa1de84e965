//! `figures`: what one command costs the card, in instructions and in counts. docs/performance.md says
//! what each figure means; tests/scenario/figures.txt holds the exact ones.
//!
//! Here live the command line, the table and the bound. No clock: nothing here measures time.

mod allocations;
mod bare;
mod callgrind;
mod case;
mod emulated;

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use lunar_platform::{Nanoseconds, Platform};
use lunar_target::PollGroup;

use case::{BYTES, Case};

/// Instructions that a 4 KiB READ or WRITE is to take at most without the provider. Whether it does is
/// an exact figure; how many it takes depends on the compiler, and is told, not compared.
const INSTRUCTIONS_MAX: u64 = 1000;

/// The exact figures as committed.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");

/// What is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// Prepared completions; nothing is moved.
    Bare,
    /// The emulated HCA.
    Emulated,
}

impl Provider {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Emulated => "emulated",
        }
    }
}

/// Prints what a command costs the card.
#[derive(Parser)]
struct Arguments {
    /// Print only the exact figures, as they are committed.
    #[arg(long)]
    exact: bool,
    /// Commands to average over.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    commands: u64,
    /// Write the exact figures to where they are committed.
    #[arg(long, conflicts_with = "commands")]
    write: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Carry out commands and print nothing: what valgrind looks at.
    Drive {
        /// Which.
        case: Case,
        /// On what.
        provider: Provider,
        /// How many.
        commands: u64,
    },
}

/// The name by which callgrind knows [`card_turn`].
const TURN: &str = "card_turn";

/// One tick, under a name of its own: instructions are counted from its entry to its return.
#[inline(never)]
fn card_turn<P: Platform>(group: &mut PollGroup<P>, now: Nanoseconds) {
    // Something must follow the call, or it would become a jump out of this function.
    std::hint::black_box(group.tick(now));
}

/// All that is known of one case.
struct Figures {
    case: Case,
    bare: bare::Counted,
    emulated: emulated::Counted,
    /// `None` without valgrind: without and with the provider.
    executed: Option<(callgrind::Executed, callgrind::Executed)>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Part::Drive { case, provider, commands }) = arguments.part {
        match provider {
            Provider::Bare => drop(bare::run(case, commands)),
            Provider::Emulated => drop(emulated::run(case, commands)),
        }
        return Ok(());
    }
    let commands = arguments.commands;
    let counts_instructions = callgrind::is_here();
    if !counts_instructions {
        if arguments.exact || arguments.write {
            bail!("valgrind is not here: without it instructions cannot be counted");
        }
        eprintln!("valgrind is not here: instructions and locks are left out");
    }
    let mut all = Vec::new();
    for case in Case::ALL {
        all.push(measure(case, commands, counts_instructions)?);
    }
    if arguments.write {
        std::fs::write(COMMITTED, exact(&all, commands)).context(COMMITTED)?;
    }
    if arguments.exact {
        print!("{}", exact(&all, commands));
    } else {
        print!("{}", table(&all, commands));
    }
    for figures in &all {
        let Some((bare, _)) = figures.executed else { continue };
        let each = bare.instructions.div_ceil(commands);
        if is_bounded(figures.case) && each > INSTRUCTIONS_MAX {
            eprintln!(
                "{}: {each} instructions a command, {INSTRUCTIONS_MAX} are the most",
                figures.case.title()
            );
        }
    }
    Ok(())
}

/// The bound is about one direct descriptor.
fn is_bounded(case: Case) -> bool {
    case != Case::ReadIndirect
}

fn measure(case: Case, commands: u64, counts_instructions: bool) -> Result<Figures> {
    let bare = bare::run(case, commands);
    let emulated = emulated::run(case, commands);
    // A figure of commands that failed would be worth nothing.
    let answered: u64 = bare.unit.commands.iter().sum();
    if answered != commands
        || bare.unit.check_conditions != 0
        || bare.payload_bytes != commands * u64::from(BYTES)
        || emulated.copied_bytes != commands * u64::from(BYTES)
    {
        bail!("{case:?}: the card did not do what was asked of it");
    }
    let executed = if counts_instructions {
        Some((
            callgrind::count(case, Provider::Bare, commands)?,
            callgrind::count(case, Provider::Emulated, commands)?,
        ))
    } else {
        None
    };
    Ok(Figures { case, bare, emulated, executed })
}

/// The figures that are the same on every machine, one `name = integer` a line.
fn exact(all: &[Figures], commands: u64) -> String {
    let mut text = format!("commands = {commands}\n");
    for figures in all {
        let mut line = |what: &str, value: u64| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}.{what} = {value}", figures.case.name());
        };
        let Figures { case, bare, emulated, executed } = figures;
        line("allocator_calls", bare.allocator_calls);
        line("payload_bytes_touched", bare.payload_bytes_touched);
        line("doorbells_per_tick_max", bare.doorbells_per_tick_max);
        line("work_requests", bare.group.work_requests);
        line("completions", bare.group.completions);
        line("emulated.allocator_calls", emulated.allocator_calls);
        line("emulated.payload_copies", emulated.copies);
        if let Some((bare, _)) = executed {
            line("locked_instructions", bare.locked);
            if is_bounded(*case) {
                let within = bare.instructions.div_ceil(commands) <= INSTRUCTIONS_MAX;
                line("instructions_within_1000", u64::from(within));
            }
        }
    }
    text
}

/// The figures for people, per command.
fn table(all: &[Figures], commands: u64) -> String {
    let each = |total: u64| {
        let hundredths = (total * 100 + commands / 2) / commands;
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    };
    type Cell<'a> = Box<dyn Fn(&Figures) -> String + 'a>;
    let counted = |count: fn(&callgrind::Executed) -> u64, bare: bool| -> Cell<'_> {
        Box::new(move |figures| match &figures.executed {
            None => "-".into(),
            Some((without, with)) => each(count(if bare { without } else { with })),
        })
    };
    let rows: [(&str, Cell<'_>); 11] = [
        ("instructions without the provider", counted(|e| e.instructions, true)),
        ("instructions with the emulated provider", counted(|e| e.instructions, false)),
        ("locked instructions without the provider", counted(|e| e.locked, true)),
        ("allocator calls", Box::new(|f| each(f.bare.allocator_calls))),
        ("allocator calls with the emulated provider", {
            Box::new(|f| each(f.emulated.allocator_calls))
        }),
        ("payload bytes the card's cores touch", Box::new(|f| each(f.bare.payload_bytes_touched))),
        ("payload copies by the emulated provider", Box::new(|f| each(f.emulated.copies))),
        ("work requests", Box::new(|f| each(f.bare.group.work_requests))),
        ("completions", Box::new(|f| each(f.bare.group.completions))),
        ("doorbells", Box::new(|f| each(f.bare.group.doorbells))),
        ("doorbells per tick and queue pair, at most", {
            Box::new(|f| f.bare.doorbells_per_tick_max.to_string())
        }),
    ];
    let mut text = format!(
        "The card's cost of one command of {} KiB from card-null at depth {}, over {commands} commands\n\n",
        BYTES / 1024,
        case::DEPTH,
    );
    let mut line = |what: &str, cells: Vec<String>| {
        let _ = write!(text, "{what:<45}");
        for cell in cells {
            let _ = write!(text, "{cell:>17}");
        }
        text.push('\n');
    };
    line("", all.iter().map(|figures| figures.case.title().to_owned()).collect());
    for (what, cell) in rows {
        line(what, all.iter().map(&cell).collect());
    }
    text
}
