//! The processes of the demonstration: how this program becomes one of them, starts them, and ends
//! them.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser as _;

/// A process of the demonstration, by the name it goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The card.
    Firmware,
    /// The keeper of the memory that card and agent share.
    Keeper,
    /// The host agent.
    Agent,
    /// The SRP initiator.
    Initiator,
    /// The serving half of the floor program.
    Floor,
}

impl Role {
    /// All of them.
    const ALL: [Self; 5] =
        [Self::Firmware, Self::Keeper, Self::Agent, Self::Initiator, Self::Floor];

    /// Name of the process, and the word that makes this program one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "lunar-firmware",
            Self::Keeper => "lunar-arena",
            Self::Agent => "lunar-agent",
            Self::Initiator => "lunar-initiator",
            Self::Floor => "lunar-floor",
        }
    }

    /// The role that a program called `name` has.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Is that process: `arguments` begin with the program's name.
    ///
    /// # Errors
    /// What the process cannot do.
    pub fn run(self, arguments: &[String]) -> anyhow::Result<()> {
        if let Ok(name) = std::ffi::CString::new(self.name()) {
            // What ps(1) shows; without it the process works as well.
            let _ = rustix::thread::set_name(&name);
        }
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
        match self {
            Self::Firmware => crate::card::run(&crate::card::Arguments::parse_from(arguments)),
            Self::Keeper => lunar_keeper::run(&lunar_keeper::Options::parse_from(arguments)),
            Self::Agent => lunar_agent::run(&lunar_agent::Options::parse_from(arguments)),
            Self::Initiator => crate::driver::run(),
            Self::Floor => crate::floor::serve(&crate::floor::Arguments::parse_from(arguments)),
        }
    }
}

/// Lines of a process's standard error that are kept.
const TAIL_LINES: usize = 20;
/// How long a process may take to end when it is asked to.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A started process. It ends when its standard input closes, so also when this process is killed;
/// dropping it ends it and waits.
#[derive(Debug)]
pub struct Piece {
    role: Role,
    child: Child,
    stdin: Option<ChildStdin>,
    tail: Arc<Mutex<VecDeque<String>>>,
    log: Option<JoinHandle<()>>,
    ended: bool,
}

impl Piece {
    /// Starts `role` with `arguments`. With `verbose` its log goes to standard error.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(role: Role, arguments: &[String], verbose: bool) -> anyhow::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0(role.name())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(if role == Role::Initiator { Stdio::piped() } else { Stdio::null() })
            .stderr(Stdio::piped())
            // Ctrl-C is for the demonstration, which ends the others in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", role.name()))?;
        let stdin = child.stdin.take();
        let stderr = child.stderr.take().context("a started process has no standard error")?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&tail);
        let log = std::thread::Builder::new().name(role.name().to_owned()).spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { break };
                if verbose {
                    eprintln!("{}: {line}", role.name());
                }
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == TAIL_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        })?;
        Ok(Self { role, child, stdin, tail, log: Some(log), ended: false })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Which process it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Both ends of the conversation with it, once.
    pub(crate) fn take_conversation(&mut self) -> Option<(ChildStdin, std::process::ChildStdout)> {
        Some((self.stdin.take()?, self.child.stdout.take()?))
    }

    /// An error when the process has ended, with what it said last.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                self.ended = true;
                bail!("{}", self.obituary(status, "ended on its own"))
            }
        }
    }

    /// Asks the process to end and waits until it has.
    ///
    /// # Errors
    /// It did not end in time and was killed, or it ended with an error.
    pub fn end(&mut self) -> anyhow::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        drop(self.stdin.take());
        let deadline = Instant::now() + END_PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                let status = self.child.wait()?;
                let late = format!("did not end within {END_PATIENCE:?} and was killed");
                bail!("{}", self.obituary(status, &late));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if !status.success() {
            bail!("{}", self.obituary(status, "ended with an error"));
        }
        Ok(())
    }

    fn obituary(&mut self, status: ExitStatus, how: &str) -> String {
        if let Some(log) = self.log.take() {
            // The thread ends with the pipe, which ended with the process.
            let _ = log.join();
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = tail.iter().map(|line| format!("  {line}")).collect();
        let said = if lines.is_empty() { "  (nothing)".to_owned() } else { lines.join("\n") };
        format!("{} {how} ({status}); it said last:\n{said}", self.role.name())
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // A failure has been reported by whoever dropped it early, or is of no interest any more.
        let _ = self.end();
    }
}
