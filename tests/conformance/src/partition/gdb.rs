//! The remote protocol of GDB, as much of it as stops a guest at one instruction, looks at its registers and lets it go
//! on elsewhere. The stub is QEMU's, for one processor of 64 bits that runs little-endian; nothing here knows what the
//! instruction is.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long the stub may take to answer while the guest stands still.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first argument and the result of a call.
const RESULT: usize = 3;
/// The stub's number of the next instruction's address.
const NEXT_INSTRUCTION: usize = 64;

/// A stub that stops a guest.
///
/// Packets of the stub are not acknowledged one by one: to QEMU's, the next packet acknowledges the one before it, and
/// anything that reaches it while the guest runs stops the guest.
pub struct Gdb {
    stream: UnixStream,
    inbox: Vec<u8>,
}

impl Gdb {
    /// The stub at the other end of `stream`, whose guest stands still.
    pub fn over(stream: UnixStream) -> Result<Gdb> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut gdb = Gdb { stream, inbox: Vec::new() };
        // QEMU's gives single registers only to those who asked what there are.
        gdb.send(&["qXfer:features:read:target.xml:0,ffb".to_string()])?;
        gdb.answer()?;
        Ok(gdb)
    }

    /// Becomes readable when the guest has stopped, among other things.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// From now on the guest stops before it executes what lies at `address`.
    pub fn set_breakpoint(&mut self, address: u64) -> Result<()> {
        self.send(&[format!("Z0,{address:x},4")])?;
        self.expect_ok().context("a breakpoint")
    }

    /// Lets the guest go on where it stopped.
    pub fn resume(&mut self) -> Result<()> {
        self.send(&["c".to_string()])
    }

    /// Lets the guest go on at `address`, with `result` in the register for it.
    pub fn resume_at(&mut self, address: u64, result: Option<i64>) -> Result<()> {
        let set = |register: usize, value: u64| {
            let bytes = value.to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
            format!("P{register:x}={bytes}")
        };
        let mut packets = vec![set(NEXT_INSTRUCTION, address)];
        packets.extend(result.map(|result| set(RESULT, result as u64)));
        let answers = packets.len();
        packets.push("c".to_string());
        self.send(&packets)?;
        (0..answers).try_for_each(|_| self.expect_ok().context("a register"))
    }

    /// What a call that the guest is about to make is given: the registers from the first argument on.
    pub fn arguments<const COUNT: usize>(&mut self) -> Result<[u64; COUNT]> {
        // One by one: QEMU's stub may die of being asked for all registers at once.
        let packets: Vec<String> =
            (0..COUNT).map(|place| format!("p{:x}", RESULT + place)).collect();
        self.send(&packets)?;
        let mut arguments = [0; COUNT];
        for argument in &mut arguments {
            let answer = self.answer()?;
            let value = u64::from_str_radix(&answer, 16).ok().filter(|_| answer.len() == 16);
            *argument = value.with_context(|| format!("a register of `{answer}`"))?.swap_bytes();
        }
        Ok(arguments)
    }

    /// Reads what there is, once; false when the guest and its stub have ended.
    pub fn receive(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        let count = match self.stream.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error).context("the stub does not answer"),
        };
        self.inbox.extend(&bytes[..count]);
        Ok(count > 0)
    }

    /// Takes what was received up to the next stop; whether there is one, and whether it is at the breakpoint.
    pub fn take_stop(&mut self) -> Result<Option<bool>> {
        // SIGTRAP is 5.
        Ok(self.take()?.map(|said| matches!(said.get(..3), Some("T05" | "S05"))))
    }

    fn send(&mut self, packets: &[String]) -> Result<()> {
        let framed: String = packets.iter().map(|packet| frame(packet)).collect();
        self.stream.write_all(framed.as_bytes()).context("the stub is gone")
    }

    fn expect_ok(&mut self) -> Result<()> {
        let answer = self.answer()?;
        ensure!(answer == "OK", "the stub says `{answer}`");
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        loop {
            if let Some(packet) = self.take()? {
                return Ok(packet);
            }
            ensure!(self.receive()?, "the stub ended in the middle");
        }
    }

    /// The first whole packet that has come. Acknowledgements before it are passed over.
    fn take(&mut self) -> Result<Option<String>> {
        let Some(start) = self.inbox.iter().position(|byte| *byte == b'$') else {
            self.inbox.clear();
            return Ok(None);
        };
        let Some(length) = self.inbox[start..].iter().position(|byte| *byte == b'#') else {
            return Ok(None);
        };
        let end = start + length;
        let Some(sum) = self.inbox.get(end + 1..end + 3) else { return Ok(None) };
        let said = String::from_utf8_lossy(&self.inbox[start + 1..end]).into_owned();
        if String::from_utf8_lossy(sum) != checksum(&said) {
            bail!("a packet from the stub that does not add up: `{said}`");
        }
        self.inbox.drain(..end + 3);
        Ok(Some(said))
    }
}

fn frame(packet: &str) -> String {
    format!("${packet}#{}", checksum(packet))
}

fn checksum(packet: &str) -> String {
    let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
    format!("{sum:02x}")
}
