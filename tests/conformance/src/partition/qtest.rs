//! QEMU's test protocol, as much of it as stores a word at an address of the guest's bus, where devices are.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How long QEMU may take for a word.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that takes words.
pub struct Qtest(BufReader<UnixStream>);

impl Qtest {
    /// The machine at the other end of `stream`.
    pub fn over(stream: UnixStream) -> Result<Qtest> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Qtest(BufReader::new(stream)))
    }

    /// Stores `value` at `address`.
    pub fn store(&mut self, address: u64, value: u64) -> Result<()> {
        self.0.get_mut().write_all(format!("writeq {address:#x} {value:#x}\n").as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer).context("QEMU does not answer")?;
        ensure!(answer.trim_end() == "OK", "QEMU says `{}`", answer.trim_end());
        Ok(())
    }
}
