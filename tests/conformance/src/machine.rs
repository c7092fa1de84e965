//! One running guest: QEMU's command line, the lines that the guest reports by, and its end.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::image::Image;
use crate::packages::on_path;
use crate::partition::Partition;

/// How often the guest's reports are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A line that the guest reports by, beyond the nonce that it begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The guest is up.
    Ready,
    /// A scenario begins.
    Begun(String),
    /// A scenario found something as it should be.
    Checked(String),
    /// A scenario measured something.
    Measured(String),
    /// A scenario passed.
    Passed(String),
    /// A scenario failed, and why.
    Failed(String, String),
    /// A scenario cannot be run, and why.
    Skipped(String, String),
    /// The guest wants something done outside of it.
    Asked(String),
    /// The command ended with this exit code.
    Ran(i32),
    /// The guest has nothing left to run.
    Over,
}

impl Report {
    /// Reads a line; `None` when it is not of this run or not understood.
    pub fn read(line: &str, nonce: &str) -> Option<Report> {
        let mut words = line.trim_end().splitn(4, ' ');
        if words.next()? != nonce {
            return None;
        }
        let kind = words.next()?;
        let first = words.next().unwrap_or_default().to_string();
        let rest = words.next().unwrap_or_default().to_string();
        let all = || format!("{first} {rest}").trim_end().to_string();
        Some(match kind {
            "READY" => Report::Ready,
            "BEGIN" => Report::Begun(first),
            "CHECK" => Report::Checked(all()),
            "MEASURE" => Report::Measured(all()),
            "ASK" => Report::Asked(all()),
            "PASS" => Report::Passed(first),
            "FAIL" => Report::Failed(first, rest),
            "SKIP" => Report::Skipped(first, rest),
            "RAN" => Report::Ran(first.parse().ok()?),
            "OVER" => Report::Over,
            _ => return None,
        })
    }
}

/// What a machine is to be.
pub struct Wanted<'a> {
    /// Its processor.
    pub architecture: &'a Architecture,
    /// What it starts from.
    pub image: &'a Image,
    /// The scenarios' directory, which it sees as /guest and cannot change.
    pub guest: &'a Path,
    /// The run's directory, which it sees as /out.
    pub out: &'a Path,
    /// A directory of the user, which it sees as /share.
    pub share: Option<&'a Path>,
    /// What it runs: names of scenarios, or the file /out/command.
    pub run: &'a str,
    /// Whether it ends in a shell on this terminal.
    pub shell: bool,
    /// Whether what its console prints is shown.
    pub shown: bool,
    /// Memory, in MiB.
    pub memory: u32,
    /// What it is connected to.
    pub around: Around<'a>,
}

/// What is around a machine.
#[derive(Clone, Copy)]
pub enum Around<'a> {
    /// Nothing but us.
    Nothing,
    /// A machine at the other end of a wire.
    Wire(Place),
    /// The hypervisor's half of a VSCSI adapter. The machine has nothing else: its scenarios are in its image.
    Hypervisor(&'a Partition),
}

/// A place on a wire between two machines, and nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where scenarios run.
    First,
    /// Where /guest/second.sh does what it is asked to by the first.
    Second,
}

impl Place {
    fn number(self) -> u32 {
        match self {
            Place::First => 1,
            Place::Second => 2,
        }
    }

    /// QEMU's words for the end of the wire: Ethernet frames as datagrams between two Unix sockets in its directory.
    fn network(self) -> [String; 4] {
        let own = self.number();
        let other = 3 - own;
        let wire = format!(
            "dgram,id=n0,local.type=unix,local.path=wire-{own},remote.type=unix,remote.path=wire-{other}"
        );
        let card = format!("virtio-net-pci,netdev=n0,mac=52:54:00:12:34:{:02x}", 0x55 + own);
        ["-netdev".into(), wire, "-device".into(), card]
    }
}

/// A running guest. It ends with this value.
pub struct Machine {
    qemu: Child,
    reports: PathBuf,
    read: u64,
    unread: Vec<String>,
    partial: String,
    nonce: String,
    /// When it was started.
    pub started: Instant,
    /// Where everything that its console printed is kept.
    pub console: PathBuf,
}

impl Machine {
    /// Starts it. It is not up yet.
    pub fn start(wanted: &Wanted<'_>, number: u32) -> Result<Machine> {
        let second =
            if matches!(wanted.around, Around::Wire(Place::Second)) { "-second" } else { "" };
        let console = wanted.out.join(format!("console-{number}{second}.log"));
        let reports = wanted.out.join(format!("reports-{number}{second}.txt"));
        File::create(&reports)?;
        let nonce = nonce()?;
        let mut command = command(wanted, &nonce, &console, &reports)?;
        let qemu = command.spawn().context("QEMU did not start")?;
        Ok(Machine {
            qemu,
            reports,
            read: 0,
            unread: Vec::new(),
            partial: String::new(),
            nonce,
            started: Instant::now(),
            console,
        })
    }

    /// The next report, waited for no longer than until `deadline`. `None` when there was none by
    /// then; an error when the machine has ended.
    pub fn report(&mut self, deadline: Instant) -> Result<Option<Report>> {
        let parent = std::os::unix::process::parent_id();
        loop {
            let ended = self.qemu.try_wait()?;
            self.fetch()?;
            while !self.unread.is_empty() {
                if let Some(report) = Report::read(&self.unread.remove(0), &self.nonce) {
                    return Ok(Some(report));
                }
            }
            if let Some(status) = ended {
                bail!("the machine ended ({status})");
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // Whoever started us may have been killed without a word to us.
            if std::os::unix::process::parent_id() != parent {
                bail!("the process that started this one is gone");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until a machine that powers itself off has done so.
    pub fn end(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.qemu.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                bail!("the machine did not power off within {} s", limit.as_secs());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the user has left the shell.
    pub fn attend(mut self) -> Result<()> {
        self.qemu.wait()?;
        Ok(())
    }

    /// The last lines that the console printed.
    pub fn last_words(&self, lines: usize) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn fetch(&mut self) -> Result<()> {
        let mut file = File::open(&self.reports)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.partial.split_once('\n') {
            self.unread.push(line.to_string());
            self.partial = rest.to_string();
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn command(wanted: &Wanted<'_>, nonce: &str, console: &Path, reports: &Path) -> Result<Command> {
    let architecture = wanted.architecture;
    let (qemu, _) = architecture.qemu;
    // QEMU is to end with us, however we end; setpriv is part of every Debian.
    let mut command = if on_path("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", qemu]);
        command
    } else {
        Command::new(qemu)
    };
    command.args(architecture.machine);
    let processors = architecture.processors.to_string();
    command.args(["-smp", &processors, "-m", &format!("{}M", wanted.memory)]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&wanted.image.kernel);
    command.arg("-initrd").arg(&wanted.image.initramfs);
    command.arg("-append").arg(kernel_arguments(wanted, nonce));
    let mux = if wanted.shell { "on" } else { "off" };
    let log = console.display();
    command.arg("-chardev");
    command.arg(format!("stdio,id=console,mux={mux},signal=off,logfile={log}"));
    command.args(["-serial", "chardev:console"]);
    command.arg("-chardev").arg(format!("file,id=reports,path={}", reports.display()));
    command.args(["-serial", "chardev:reports"]);
    if wanted.shell {
        command.args(["-mon", "chardev=console,mode=readline"]);
        command.stdin(Stdio::inherit());
    } else {
        command.stdin(Stdio::null());
    }
    if !wanted.shown {
        command.stdout(Stdio::null());
    }
    match wanted.around {
        Around::Hypervisor(partition) => {
            command.args(partition.words()?);
            return Ok(command);
        }
        // A network with nobody else on it.
        Around::Nothing => command.args([
            "-netdev",
            "user,id=n0,restrict=on",
            "-device",
            "virtio-net-pci,netdev=n0",
        ]),
        // Where the sockets of the wire are: their whole path may be longer than a socket's may.
        Around::Wire(place) => command.args(place.network()).current_dir(wanted.out),
    };
    let mut share = |name: &str, folder: &Path, access: &str| {
        let folder = folder.display();
        let device = format!("local,id={name},path={folder},security_model=none{access}");
        command.arg("-fsdev").arg(device);
        command.arg("-device").arg(format!("virtio-9p-pci,fsdev={name},mount_tag={name}"));
    };
    share("guest", wanted.guest, ",readonly=on");
    share("out", wanted.out, "");
    if let Some(folder) = wanted.share {
        share("share", folder, "");
    }
    Ok(command)
}

fn kernel_arguments(wanted: &Wanted<'_>, nonce: &str) -> String {
    let (console, reports) = wanted.architecture.lines;
    let mut arguments = format!(
        "console={console} quiet panic=-1 {} lunar.reports={reports} lunar.nonce={nonce}",
        wanted.architecture.kernel_arguments
    );
    if !wanted.run.is_empty() {
        arguments.push_str(&format!(" lunar.run={}", wanted.run));
    }
    if wanted.shell {
        arguments.push_str(&format!(" lunar.shell={console}"));
    }
    if let Around::Wire(place) = wanted.around {
        arguments.push_str(&format!(" lunar.machine={}", place.number()));
    }
    arguments
}

/// A word that no other run's guest knows.
fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_and_those_of_another_run_are_not() {
        let read = |line| Report::read(line, "abc");
        assert_eq!(read("abc READY\r"), Some(Report::Ready));
        assert_eq!(read("abc PASS boot\r"), Some(Report::Passed("boot".into())));
        let why = "no disk after 30 s".to_string();
        assert_eq!(
            read("abc FAIL lio:files no disk after 30 s"),
            Some(Report::Failed("lio:files".into(), why))
        );
        assert_eq!(read("abc CHECK rxe0 is up"), Some(Report::Checked("rxe0 is up".into())));
        assert_eq!(read("abc ASK server killed"), Some(Report::Asked("server killed".into())));
        assert_eq!(read("abc RAN 3"), Some(Report::Ran(3)));
        assert_eq!(read("xyz PASS boot"), None);
        assert_eq!(read("[   1.2] Kernel panic"), None);
        assert_eq!(read("abc RAN away"), None);
        assert_eq!(read(""), None);
    }
}
