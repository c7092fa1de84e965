//! Counts instructions: runs this program again under valgrind, with so many commands and with twice
//! as many, so that the difference holds no start. What to count is told by function names.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::case::Case;
use crate::{Provider, TURN};

/// Functions of the bare provider, whose instructions are not the card's.
const PROVIDER: &str = "*provider_*";

/// What the card's core executed for some commands.
#[derive(Clone, Copy, Debug)]
pub struct Executed {
    /// Instructions.
    pub instructions: u64,
    /// Locked (atomic read-modify-write) instructions among them. Taking any lock needs one.
    pub locked: u64,
}

/// Whether valgrind can be run.
pub fn is_here() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// What `commands` commands of `case` execute, start and end left out.
pub fn count(case: Case, provider: Provider, commands: u64) -> Result<Executed> {
    let once = total(case, provider, commands)?;
    let twice = total(case, provider, 2 * commands)?;
    Ok(Executed {
        instructions: twice.instructions - once.instructions,
        locked: twice.locked - once.locked,
    })
}

/// A file that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn total(case: Case, provider: Provider, commands: u64) -> Result<Executed> {
    let name = format!("lunar-figures-{}-{}.callgrind", std::process::id(), case.name());
    let profile = Scratch(std::env::temp_dir().join(name));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--collect-bus=yes", "--demangle=no"]);
    // Counting goes on and off each time a function of such a name is entered or left.
    valgrind.arg(format!("--toggle-collect=*{TURN}*"));
    if provider == Provider::Bare {
        valgrind.arg(format!("--toggle-collect={PROVIDER}"));
    }
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(&profile.0);
    valgrind.arg(file).arg(std::env::current_exe().context("where this program is")?);
    valgrind.args(["drive", case.name(), provider.name(), &commands.to_string()]);
    let output = valgrind.output().context("valgrind did not start")?;
    if !output.status.success() {
        bail!(
            "valgrind ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = std::fs::read_to_string(&profile.0).context("callgrind's result")?;
    totals(&text)
        .with_context(|| format!("callgrind's result holds no totals of Ir and Ge: {case:?}"))
}

/// The sums in a profile: `events:` names the columns of `totals:`.
fn totals(profile: &str) -> Option<Executed> {
    let line = |name| profile.lines().find_map(|line| line.strip_prefix(name));
    let (events, sums) = (line("events: ")?, line("totals: ")?);
    let of = |event| -> Option<u64> {
        let column = events.split_whitespace().position(|name| name == event)?;
        // Columns at the end that are zero are left out.
        sums.split_whitespace().nth(column).map_or(Some(0), |sum| sum.parse().ok())
    };
    Some(Executed { instructions: of("Ir")?, locked: of("Ge")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found_by_the_names_of_their_columns() {
        let executed = totals("version: 1\nevents: Ir Ge\nfn=a\n1 2\ntotals: 77 5\n").unwrap();
        assert_eq!((executed.instructions, executed.locked), (77, 5));
        let executed = totals("events: Ir Ge\ntotals: 77\n").unwrap();
        assert_eq!((executed.instructions, executed.locked), (77, 0));
        assert!(totals("events: Ir\ntotals: 77\n").is_none());
        assert!(totals("events: Ir Ge\n").is_none());
    }
}
