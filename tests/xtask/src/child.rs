//! Runs a command for a stage: its output streams through while its test counts are read from it.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How many tests ran, as the test runners' summary lines say.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that the runner left out: ignored, or filtered away.
    pub left_out: u32,
}

/// How a command ended.
pub struct Ended {
    /// `None` when it succeeded, else why it did not.
    pub failure: Option<String>,
    /// The tests it ran, if it was a test runner.
    pub counts: Counts,
}

/// Runs `command` to its end, or kills it and everything it started once `limit` has passed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let line = written(command);
    println!("$ {line}");
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("`{line}` did not start"))?;
    let counts = Arc::new(Mutex::new(Counts::default()));
    let readers = [
        child.stdout.take().map(|out| pass_on(out, std::io::stdout(), counts.clone())),
        child.stderr.take().map(|err| pass_on(err, std::io::stderr(), counts.clone())),
    ];
    let failure = wait(&mut child, limit)?;
    if !is_over_limit(&failure) {
        for reader in readers.into_iter().flatten() {
            let _ = reader.join();
        }
    }
    let counts = *counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(Ended { failure, counts })
}

/// Runs `command` to its end as [`run`] does, but keeps what it printed instead of passing it on.
/// Returns why it failed, if it did, and its output, errors first.
pub fn captured(command: &mut Command, limit: Duration) -> Result<(Option<String>, String)> {
    let line = written(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("`{line}` did not start"))?;
    let readers = [child.stderr.take().map(keep), child.stdout.take().map(keep)];
    let failure = wait(&mut child, limit)?;
    let mut printed = String::new();
    if is_over_limit(&failure) {
        return Ok((failure, printed));
    }
    for reader in readers.into_iter().flatten() {
        printed.push_str(&reader.join().unwrap_or_default());
    }
    Ok((failure, printed))
}

/// Runs `command` silently; its standard output when it succeeded, else what it complained about.
pub fn output(command: &mut Command) -> Result<Result<String, String>> {
    let line = written(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("`{line}` did not start"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}", output.status, text(&output.stderr).trim()))
    })
}

/// The command as one would type it, with the variables it sets.
pub fn written(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())));
        }
    }
    let program = command.get_program().to_string_lossy();
    // Cargo is found by its full path; people type its name.
    words.push(program.rsplit('/').next().unwrap_or(&program).to_string());
    words.extend(command.get_args().map(|argument| quoted(&argument.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<String>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| format!("{status}")));
        }
        if started.elapsed() >= limit {
            kill_with_descendants(child);
            child.wait()?;
            return Ok(Some(format!("{OVER_LIMIT} {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How the reason begins for a command that was killed at its limit.
const OVER_LIMIT: &str = "killed: not over after";

/// A reader of a pipe ends with the last process that holds the pipe. When the command had to be
/// killed, that may be one that outlived it, so nobody waits for the readers then.
fn is_over_limit(failure: &Option<String>) -> bool {
    failure.as_ref().is_some_and(|reason| reason.starts_with(OVER_LIMIT))
}

/// Cargo does not take its children along when it is killed. Each is stopped before its own children
/// are looked up, so that it cannot start more meanwhile.
fn kill_with_descendants(child: &mut Child) {
    let signal = |name: &str, process: u32| {
        let _ = Command::new("kill").args([name, &process.to_string()]).status();
    };
    let mut doomed = vec![child.id()];
    let mut next = 0;
    while next < doomed.len() {
        signal("-STOP", doomed[next]);
        doomed.extend(children_of(doomed[next]));
        next += 1;
    }
    doomed.into_iter().for_each(|process| signal("-KILL", process));
}

/// Linux keeps the list of children by the thread that started them.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|listed| {
            listed.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

fn keep(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn pass_on(
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    counts: Arc<Mutex<Counts>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let _ = to.write_all(&line).and_then(|()| to.flush());
            if let Some(more) = summary(&String::from_utf8_lossy(&line)) {
                let mut counts = counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                counts.passed += more.passed;
                counts.failed += more.failed;
                counts.left_out += more.left_out;
            }
            line.clear();
        }
    })
}

/// Reads a summary line of nextest or of cargo test:
/// `Summary [ 0.1s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 2 skipped`,
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s`.
fn summary(line: &str) -> Option<Counts> {
    let line = without_colours(line);
    let line = line.trim();
    let rest = match line.strip_prefix("test result:") {
        Some(rest) => rest.split_once(". ")?.1,
        None if line.starts_with("Summary [") => line.split_once("run:")?.1,
        None => return None,
    };
    let mut counts = Counts::default();
    for part in rest.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u32>), words.next())
        else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            "skipped" | "ignored" => counts.left_out += number,
            _ => {}
        }
    }
    Some(counts)
}

/// Drops terminal colour sequences: ESC, `[`, up to the letter that ends them.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            for inside in characters.by_ref() {
                if inside.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_summaries_are_read() {
        let nextest = "     Summary [   0.1s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 2 skipped";
        assert_eq!(summary(nextest), Some(Counts { passed: 3, failed: 2, left_out: 2 }));
        let cargo = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        assert_eq!(summary(cargo), Some(Counts { passed: 3, failed: 2, left_out: 1 }));
        assert_eq!(summary("test a::b ... ok"), None);
    }

    #[test]
    fn colours_do_not_hide_a_summary() {
        let line = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped";
        assert_eq!(summary(line), Some(Counts { passed: 2, failed: 0, left_out: 0 }));
    }

    #[test]
    fn a_command_past_its_limit_is_killed_with_what_it_started() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000; true"]);
        let ended = run(&mut command, Duration::ZERO).unwrap();
        assert!(ended.failure.unwrap().starts_with("killed"));
    }

    #[test]
    fn a_command_is_written_so_that_it_can_be_typed() {
        let mut command = Command::new("/opt/bin/cargo");
        command.env("RUSTFLAGS", "--cfg loom").args(["test", "-p", "x"]);
        assert_eq!(written(&command), "RUSTFLAGS='--cfg loom' cargo test -p x");
    }
}
