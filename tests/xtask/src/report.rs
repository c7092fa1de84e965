//! What the stages came to: the table at the end and the line that counts.

use std::time::Duration;

use crate::child::Counts;

/// How one stage ended.
pub enum Outcome {
    /// Everything it checks holds.
    Passed {
        /// The tests it ran; none for a stage that is one check as a whole.
        counts: Counts,
        /// What is worth knowing besides.
        note: String,
    },
    /// Something it checks does not hold, or could not be run although it should.
    Failed {
        /// The tests it ran.
        counts: Counts,
        /// What did not hold, in one line.
        reason: String,
    },
    /// It could not run here, for this reason.
    Skipped(String),
}

/// A stage that has ended.
pub struct Line {
    /// The stage.
    pub stage: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Prints the table, what failed with the command that repeats it, and the line that counts.
/// Returns whether nothing failed.
pub fn print(lines: &[Line], long: bool) -> bool {
    let total: Duration = lines.iter().map(|line| line.took).sum();
    println!("\n{:<10} {:<8} {:>7}  {:>11}", "stage", "result", "time", "tests");
    for line in lines {
        let (result, tests, note) = columns(&line.outcome);
        let took = line.took.as_secs_f64();
        println!("{:<10} {result:<8} {took:>6.1}s  {tests:>11}  {note}", line.stage);
    }
    println!("{:<10} {:<8} {:>6.1}s", "total", "", total.as_secs_f64());
    let failed: Vec<&Line> =
        lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed { .. })).collect();
    if !failed.is_empty() {
        println!();
    }
    for line in &failed {
        let flag = if long { " --long" } else { "" };
        println!("{} failed; repeat it with: cargo xtask test {}{flag}", line.stage, line.stage);
    }
    println!("\n{}", count(lines));
    failed.is_empty()
}

fn columns(outcome: &Outcome) -> (&'static str, String, &str) {
    let tests = |counts: &Counts| match (counts.passed, counts.failed) {
        (0, 0) => String::new(),
        (passed, 0) => format!("{passed}"),
        (passed, failed) => format!("{failed} of {}", passed + failed),
    };
    match outcome {
        Outcome::Passed { counts, note } => ("passed", tests(counts), note),
        Outcome::Failed { counts, reason } => ("FAILED", tests(counts), reason),
        Outcome::Skipped(reason) => ("skipped", String::new(), reason),
    }
}

/// Tests count singly; a stage that is one check counts as one, and so does a stage that failed
/// without a test failing (it did not compile, say) or that was skipped.
fn count(lines: &[Line]) -> String {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for line in lines {
        match &line.outcome {
            Outcome::Passed { counts, .. } => {
                passed += counts.passed.max(1);
                skipped += counts.left_out;
            }
            Outcome::Failed { counts, .. } => {
                passed += counts.passed;
                failed += counts.failed.max(1);
                skipped += counts.left_out;
            }
            Outcome::Skipped(_) => skipped += 1,
        }
    }
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(outcome: Outcome) -> Line {
        Line { stage: "stage", outcome, took: Duration::ZERO }
    }

    #[test]
    fn tests_count_singly_and_checks_as_one() {
        let counts = |passed, failed, left_out| Counts { passed, failed, left_out };
        let lines = [
            line(Outcome::Passed { counts: counts(10, 0, 2), note: String::new() }),
            line(Outcome::Passed { counts: counts(0, 0, 0), note: String::new() }),
            line(Outcome::Failed { counts: counts(5, 3, 0), reason: String::new() }),
            line(Outcome::Failed { counts: counts(0, 0, 0), reason: String::new() }),
            line(Outcome::Skipped(String::new())),
        ];
        assert_eq!(count(&lines), "16 passed, 4 failed, 3 skipped");
    }

    #[test]
    fn a_run_without_stages_counts_nothing() {
        assert_eq!(count(&[]), "0 passed, 0 failed, 0 skipped");
    }
}
