//! A logical partition whose disks are Lunar's: a guest of QEMU's POWER machine, the bridge that is the hypervisor of
//! its VSCSI adapter, and the server that it speaks to, as a process that can be killed and started again.
//!
//! The machine has an empty adapter of QEMU's own: a node of its device tree, a TCE table and an interrupt. All that
//! goes over it passes through the bridge.

mod bridge;
mod client;
mod gdb;
mod link;
mod qtest;
pub mod server;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use lunar_pcie::Segment;

use crate::elf;
use bridge::{Adapter, Bridge, Fault, Faults};
use client::Client;
use gdb::Gdb;
use qtest::Qtest;

/// The partition's memory, in MiB.
pub const MEMORY_MIB: u32 = 512;
/// The adapter's unit address. QEMU gives the ones before to what every machine has.
const UNIT: u64 = 0x7100_0010;
/// The adapter's interrupt: QEMU derives it so from such an address.
const INTERRUPT: u64 = 0x1100 | (UNIT & 0xff);
/// Where a store triggers interrupt 0, and how far interrupts are apart (XIVE's event state buffers).
const INTERRUPTS: u64 = 0x6_0100_0000_0000;
const INTERRUPT_SHIFT: u32 = 17;
/// Bytes of the adapter's I/O window.
const WINDOW_BYTES: u64 = 256 << 20;
/// Where the kernel calls its hypervisor without wanting more than a return code.
const CALLER: &str = "plpar_hcall_norets";
/// How far behind that the call may be.
const CALLER_BYTES_MAX: usize = 256;
/// The instruction that calls the hypervisor, and the one before it.
const CALL: [u8; 4] = 0x4400_0022_u32.to_le_bytes();
const NOTHING: [u8; 4] = 0x6000_0000_u32.to_le_bytes();
/// The socket between bridge and server, in the run's directory.
const SOCKET: &str = "vscsi.sock";

/// What of a partition is outside of its machine. Made before the machine is started, by which it is given its ends.
pub struct Partition {
    out: PathBuf,
    adapter: Adapter,
    memory: Segment,
    gdb: UnixStream,
    qtest: UnixStream,
    /// The machine's ends of the two.
    machines: [UnixStream; 2],
    listener: UnixListener,
    journal: File,
}

impl Partition {
    /// The surroundings of a machine that is to run `kernel`, with its logs in `out`.
    pub fn new(kernel: &Path, out: &Path, number: u32) -> Result<Partition> {
        let content = fs::read(kernel).with_context(|| kernel.display().to_string())?;
        let before_call = before_call(&content).with_context(|| kernel.display().to_string())?;
        let interrupt = INTERRUPTS + (INTERRUPT << INTERRUPT_SHIFT);
        let adapter = Adapter { unit: UNIT, before_call, interrupt };
        let memory = Segment::memfd("partition", (MEMORY_MIB as usize) << 20)?;
        let (gdb, machines_gdb) = UnixStream::pair()?;
        let (qtest, machines_qtest) = UnixStream::pair()?;
        let machines = [machines_gdb, machines_qtest];
        // QEMU inherits its ends. Nobody else is started before it has them and we have not.
        for end in &machines {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::empty())?;
        }
        let _ = fs::remove_file(out.join(SOCKET));
        // By way of the directory's descriptor: the whole path may be longer than a socket's may.
        let folder = File::open(out)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
            .context("the bridge's socket")?;
        let journal = File::create(out.join(format!("bridge-{number}.log")))?;
        let out = out.to_path_buf();
        Ok(Partition { out, adapter, memory, gdb, qtest, machines, listener, journal })
    }

    /// QEMU's words for it.
    pub fn words(&self) -> Result<Vec<String>> {
        let [gdb, qtest] = self.machines.each_ref().map(AsRawFd::as_raw_fd);
        let memory = self.memory.fd().context("memory without a file")?.as_fd().as_raw_fd();
        // QEMU opens it while we hold it.
        let memory = format!("/proc/{}/fd/{memory}", std::process::id());
        Ok([
            "-object",
            &format!("memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={memory},share=on"),
            "-chardev",
            &format!("socket,id=gdb,fd={gdb}"),
            "-gdb",
            "chardev:gdb",
            "-chardev",
            &format!("socket,id=qtest,fd={qtest}"),
            "-qtest",
            "chardev:qtest",
            "-qtest-log",
            "/dev/null",
            "-device",
            &format!("spapr-vscsi,reg={UNIT:#x}"),
            // It stands still until the bridge lets it go.
            "-S",
        ]
        .map(str::to_string)
        .to_vec())
    }

    /// Lets the machine, which was started, go, and starts a server.
    pub fn run(self) -> Result<Running> {
        drop(self.machines);
        let client = Client::new(self.memory, WINDOW_BYTES);
        let (gdb, qtest) = (Gdb::over(self.gdb)?, Qtest::over(self.qtest)?);
        let (faults, asked) = Faults::new()?;
        let (listener, journal) = (self.listener, self.journal);
        let bridge = Bridge::new(self.adapter, gdb, qtest, client, listener, asked, journal);
        let bridge = std::thread::spawn(move || bridge.run());
        let mut running = Running { out: self.out, faults, bridge: Some(bridge), server: None };
        running.start_server()?;
        Ok(running)
    }
}

/// A partition whose machine runs.
pub struct Running {
    out: PathBuf,
    faults: Faults,
    bridge: Option<JoinHandle<Result<()>>>,
    server: Option<Child>,
}

impl Running {
    /// Does what the guest asks for.
    pub fn asked(&mut self, what: &str) -> Result<()> {
        match what {
            "server killed" => {
                self.kill_server();
                Ok(())
            }
            "server started" => self.start_server(),
            _ => {
                let fault = match what {
                    "migration" => Fault::Migration,
                    "lost command" => Fault::LostCommand,
                    "refusals" => Fault::Refusals,
                    _ => bail!("the guest asks for `{what}`, which nobody knows"),
                };
                self.faults.ask(fault);
                Ok(())
            }
        }
    }

    /// What the bridge failed of, where it did.
    pub fn complaint(&mut self) -> Option<anyhow::Error> {
        let ended = self.bridge.take_if(|bridge| bridge.is_finished())?;
        match ended.join() {
            Ok(result) => result.err(),
            Err(_) => Some(anyhow::anyhow!("the bridge panicked")),
        }
    }

    /// The one place that knows what the server is.
    fn start_server(&mut self) -> Result<()> {
        self.kill_server();
        let log = File::options().create(true).append(true).open(self.out.join("server.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0(server::NAME).arg(SOCKET).current_dir(&self.out);
        command.stdout(log.try_clone()?).stderr(log);
        self.server = Some(command.spawn().context("the server did not start")?);
        Ok(())
    }

    fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_server();
    }
}

/// The address of the instruction before the one by which `kernel` calls the hypervisor.
fn before_call(kernel: &[u8]) -> Result<u64> {
    let (address, code) = elf::symbol(kernel, CALLER)?;
    let code = &code[..code.len().min(CALLER_BYTES_MAX)];
    let pair = [NOTHING, CALL].concat();
    let place = (0..code.len()).step_by(4).find(|at| code[*at..].starts_with(&pair));
    Ok(address + place.with_context(|| format!("{CALLER} is not as expected"))? as u64)
}
