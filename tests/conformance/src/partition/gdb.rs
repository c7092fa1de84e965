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
/// General purpose registers.
const REGISTERS: usize = 32;

/// A stub that stops a guest.
///
/// Packets of the stub are not acknowledged one by one: to QEMU's, the next packet acknowledges the one before it, and
/// anything that reaches it while the guest runs stops the guest.
pub struct Gdb {
    stream: UnixStream,
    inbox: Vec<u8>,
}

impl Gdb {
    /// A stub at the other end of `stream`, whose guest stands still.
    pub fn over(stream: UnixStream) -> Result<Gdb> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Gdb { stream, inbox: Vec::new() })
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

    /// The general purpose registers of the guest, which stands still.
    pub fn registers(&mut self) -> Result<[u64; REGISTERS]> {
        self.send(&["g".to_string()])?;
        let answer = self.answer()?;
        let mut registers = [0; REGISTERS];
        for (register, digits) in registers.iter_mut().zip(answer.as_bytes().chunks(16)) {
            let digits = std::str::from_utf8(digits)?;
            let value = u64::from_str_radix(digits, 16).with_context(|| format!("`{answer}`"))?;
            *register = value.swap_bytes();
        }
        ensure!(answer.len() >= 16 * REGISTERS, "registers from the stub: `{answer}`");
        Ok(registers)
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
