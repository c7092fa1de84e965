//! Who this agent is: its epoch, which grows with every start, and the machine's boot.
//!
//! What one agent leaves for the next stands in the keeper's notes, so it lives exactly as long as the rings it is
//! about. With a state directory the epoch also survives the keeper and a clock that was set back.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};

/// What an agent leaves for its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Epoch of the agent that wrote them.
    pub agent_epoch: u64,
    /// Epoch of the card that uses the rings; 0 while none ever did.
    pub card_epoch: u64,
    /// The last configuration generation that was used.
    pub configuration_generation: u32,
}

const NOTES_MAGIC: [u8; 4] = *b"LNT1";
const NOTES_BYTES: usize = 28;

impl Notes {
    /// What stands in the keeper's notes; all zero in new ones.
    pub(crate) fn load(file: &OwnedFd) -> anyhow::Result<Self> {
        let mut bytes = [0; NOTES_BYTES];
        let read = rustix::io::pread(file, &mut bytes, 0).context("the keeper's notes")?;
        ensure!(read == NOTES_BYTES, "the keeper's notes are cut off after {read} bytes");
        Ok(Self::parse(&bytes).unwrap_or_default())
    }

    /// Writes them in one call, so that a kill leaves the old ones or the new ones.
    pub(crate) fn store(&self, file: &OwnedFd) -> anyhow::Result<()> {
        let bytes = self.encode();
        let written = rustix::io::pwrite(file, &bytes, 0).context("the keeper's notes")?;
        ensure!(written == NOTES_BYTES, "only {written} bytes of the keeper's notes were written");
        Ok(())
    }

    fn encode(&self) -> [u8; NOTES_BYTES] {
        let mut bytes = [0; NOTES_BYTES];
        bytes[..4].copy_from_slice(&NOTES_MAGIC);
        bytes[4..12].copy_from_slice(&self.agent_epoch.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.card_epoch.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.configuration_generation.to_le_bytes());
        let check = lunar_mgmt::tree::crc32(&bytes[..24]);
        bytes[24..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; NOTES_BYTES]) -> Option<Self> {
        let word = |at: usize| bytes[at..].first_chunk().map(|chunk| u32::from_le_bytes(*chunk));
        let long = |at: usize| bytes[at..].first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
        let whole =
            bytes[..4] == NOTES_MAGIC && word(24) == Some(lunar_mgmt::tree::crc32(&bytes[..24]));
        whole.then_some(())?;
        Some(Self {
            agent_epoch: long(4)?,
            card_epoch: long(12)?,
            configuration_generation: word(20)?,
        })
    }
}

/// The epoch of this start: greater than that of the last one, by whatever still knows it. The clock (in microseconds)
/// stands in where nothing does.
pub(crate) fn next(notes: &Notes, state_dir: Option<&Path>) -> anyhow::Result<u64> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let clock = u64::try_from(clock).unwrap_or(0);
    let kept = match state_dir {
        Some(directory) => load(&directory.join("epoch"))?,
        None => 0,
    };
    let epoch = clock.max(notes.agent_epoch.saturating_add(1)).max(kept.saturating_add(1));
    if let Some(directory) = state_dir {
        store(directory, epoch)?;
    }
    Ok(epoch)
}

fn load(path: &Path) -> anyhow::Result<u64> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => text
            .trim()
            .parse()
            .with_context(|| format!("`{shown}` holds no number: remove it if it is not needed")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("`{shown}` cannot be read")),
    }
}

/// Write, fsync, rename, fsync of the directory: a crash leaves the old number or the new one.
fn store(directory: &Path, epoch: u64) -> anyhow::Result<()> {
    let new: PathBuf = directory.join("epoch.new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        std::fs::rename(&new, directory.join("epoch"))?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| {
        format!(
            "the state directory `{}` cannot be written: see that it exists",
            directory.display()
        )
    })
}

/// Names the boot of this machine; zeroes where the kernel does not tell.
pub(crate) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.trim().chars().filter(|character| *character != '-').collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_back_and_torn_ones_are_no_notes() {
        let notes = Notes { agent_epoch: 7, card_epoch: u64::MAX, configuration_generation: 3 };
        let bytes = notes.encode();
        assert_eq!(Notes::parse(&bytes), Some(notes));
        for index in 0..NOTES_BYTES {
            let mut torn = bytes;
            torn[index] ^= 1;
            assert_eq!(Notes::parse(&torn), None, "byte {index}");
        }
        assert_eq!(Notes::parse(&[0; NOTES_BYTES]), None);
    }

    #[test]
    fn epochs_grow_whatever_the_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let future = u64::MAX / 2;
        let notes = Notes { agent_epoch: future, ..Notes::default() };
        let first = next(&notes, Some(directory.path())).unwrap();
        assert_eq!(first, future + 1);
        // The keeper is gone and its notes with it; the state directory still knows.
        let second = next(&Notes::default(), Some(directory.path())).unwrap();
        assert_eq!(second, future + 2);
        std::fs::write(directory.path().join("epoch"), "x").unwrap();
        let error = next(&Notes::default(), Some(directory.path())).unwrap_err().to_string();
        assert!(error.contains("holds no number"), "{error}");
    }
}
