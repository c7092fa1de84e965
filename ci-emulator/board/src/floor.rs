//! The floor: what two processes can do at most that move the same bytes with the same copies as the
//! emulated card and its initiator, and nothing else.
//!
//! One 4 KiB copy a command into a client memory of the same size as the initiator's, from a small
//! pool of hot buffers as the card's SGV cache gives; one 64-byte request and one 64-byte response
//! through rings in shared memory, written by one side and read by the other; a fixed number of
//! commands outstanding. No protocol, no checks, no clock but at the ends.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lunar_pcie::Segment;

use crate::cores::{self, Plan};
use crate::driver::DATA_BYTES;
use crate::pieces::{Piece, Role};

/// Bytes of one message; the last word says which round of the ring it belongs to.
const MESSAGE_BYTES: u64 = 64;
const ROUND_OFFSET: u64 = 60;
/// Messages a ring holds.
const SLOTS: u64 = 64;
/// Where the rings lie in their segment.
const REQUESTS: u64 = 0;
const RESPONSES: u64 = SLOTS * MESSAGE_BYTES;
const RINGS_BYTES: usize = (2 * SLOTS * MESSAGE_BYTES) as usize;
/// Bytes a command moves.
const TRANSFER_BYTES: usize = 4096;
/// Commands outstanding.
pub const DEPTH: u64 = 32;
/// A message with this place ends the server.
const END: u64 = u64::MAX;

/// What the serving half is told.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lunar-floor")]
pub struct Arguments {
    /// The rings.
    #[arg(long)]
    rings: PathBuf,
    /// The client's memory.
    #[arg(long)]
    memory: PathBuf,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
}

/// One direction: a sequence number on each side, and slots whose round word is written last.
struct Ring<'a> {
    segment: &'a Segment,
    base: u64,
    next: u64,
}

impl<'a> Ring<'a> {
    fn new(segment: &'a Segment, base: u64) -> Self {
        Self { segment, base, next: 0 }
    }

    fn slot(&self) -> (u64, u32) {
        let offset = self.base + self.next % SLOTS * MESSAGE_BYTES;
        // Fresh memory is zero, so rounds begin with 1.
        (offset, (self.next / SLOTS + 1) as u32)
    }

    fn send(&mut self, message: &[u8; ROUND_OFFSET as usize]) -> Option<()> {
        let (offset, round) = self.slot();
        self.segment.write(offset, message);
        self.segment.atomic_u32(offset + ROUND_OFFSET)?.store(round, Ordering::Release);
        self.next += 1;
        Some(())
    }

    fn receive(&mut self, message: &mut [u8; ROUND_OFFSET as usize]) -> bool {
        let (offset, round) = self.slot();
        let Some(word) = self.segment.atomic_u32(offset + ROUND_OFFSET) else { return false };
        if word.load(Ordering::Acquire) != round {
            return false;
        }
        self.segment.read(offset, message);
        self.next += 1;
        true
    }
}

fn place(message: &[u8; ROUND_OFFSET as usize]) -> u64 {
    message.first_chunk::<8>().map_or(END, |bytes| u64::from_le_bytes(*bytes))
}

/// The serving half: answers requests until one says that it was the last, or the parent is gone.
///
/// # Errors
/// When the shared memory cannot be mapped.
pub fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let map = |path: &PathBuf, bytes: usize| -> anyhow::Result<Segment> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Segment::from_fd(file.into(), bytes)?)
    };
    let rings = map(&arguments.rings, RINGS_BYTES).context("the rings")?;
    let memory = map(&arguments.memory, DATA_BYTES).context("the client's memory")?;
    let pool = Segment::anonymous(TRANSFER_BYTES * DEPTH as usize)?;
    if let Some(core) = arguments.core {
        cores::pin(core);
    }
    let stop = lunar_firmware::Stop::default();
    stop.with_parent()?;
    let mut requests = Ring::new(&rings, REQUESTS);
    let mut responses = Ring::new(&rings, RESPONSES);
    let mut message = [0; ROUND_OFFSET as usize];
    let mut buffer = 0;
    while !stop.is_requested() {
        if !requests.receive(&mut message) {
            std::hint::spin_loop();
            continue;
        }
        let to = place(&message);
        if to == END {
            break;
        }
        let from = buffer * TRANSFER_BYTES as u64;
        buffer = (buffer + 1) % DEPTH;
        ensure!(pool.copy_to(from, &memory, to, TRANSFER_BYTES), "a request points nowhere");
        responses.send(&message).context("the ring of responses")?;
    }
    Ok(())
}

/// Measures the floor in so many windows of `duration`: commands a second of the best one, because
/// whatever else the machine does only lowers them.
///
/// # Errors
/// When the serving half cannot be started or ends.
pub fn measure(duration: Duration, windows: u32) -> anyhow::Result<f64> {
    let plan = Plan::for_this_machine(1);
    let rings = Segment::memfd("lunar-floor-rings", RINGS_BYTES)?;
    let memory = Segment::memfd("lunar-floor-memory", DATA_BYTES)?;
    // Every page is there before anything is timed.
    let page = [0xa5; 4096];
    for offset in (0..DATA_BYTES as u64).step_by(page.len()) {
        memory.write(offset, &page);
    }
    let path = |segment: &Segment| -> anyhow::Result<String> {
        use std::os::fd::AsRawFd as _;
        let descriptor = segment.fd().context("a memory file without a descriptor")?;
        Ok(format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd()))
    };
    let mut arguments =
        vec!["--rings".to_owned(), path(&rings)?, "--memory".to_owned(), path(&memory)?];
    if let Some(core) = plan.groups.first() {
        arguments.extend(["--core".to_owned(), core.to_string()]);
    }
    let mut server = Piece::start(Role::Floor, &arguments, false)?;
    // On a thread of its own, so that the pin ends with it.
    let iops = std::thread::scope(|scope| {
        let client = scope.spawn(|| drive(&rings, duration, windows, plan.initiator, &mut server));
        client.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the floor's client panicked")))
    })?;
    server.end()?;
    Ok(iops)
}

fn drive(
    rings: &Segment,
    duration: Duration,
    windows_wanted: u32,
    core: Option<usize>,
    server: &mut Piece,
) -> anyhow::Result<f64> {
    if let Some(core) = core {
        cores::pin(core);
    }
    let mut requests = Ring::new(rings, REQUESTS);
    let mut responses = Ring::new(rings, RESPONSES);
    let mut message = [0; ROUND_OFFSET as usize];
    let (mut sent, mut done, mut to) = (0_u64, 0_u64, 0_u64);
    let mut idle = 0_u32;
    // The first window warms up and does not count.
    let (mut clock, mut before, mut windows, mut best) = (Instant::now(), 0, 0, 0.0_f64);
    loop {
        while sent - done < DEPTH {
            message[..8].copy_from_slice(&to.to_le_bytes());
            requests.send(&message).context("the ring of requests")?;
            to = (to + TRANSFER_BYTES as u64) % DATA_BYTES as u64;
            sent += 1;
        }
        let count = done;
        while done < sent && responses.receive(&mut message) {
            done += 1;
        }
        if count != done {
            idle = 0;
            // Rarely, so that the clock costs nothing.
            if done % 1024 >= DEPTH {
                continue;
            }
        } else {
            idle = idle.wrapping_add(1);
            std::hint::spin_loop();
            if !idle.is_multiple_of(1 << 20) {
                continue;
            }
            server.check()?;
        }
        let elapsed = clock.elapsed();
        if elapsed < if windows == 0 { duration / 4 } else { duration } {
            continue;
        }
        if windows > 0 {
            best = best.max((done - before) as f64 / elapsed.as_secs_f64());
        }
        if windows >= windows_wanted {
            message[..8].copy_from_slice(&END.to_le_bytes());
            requests.send(&message).context("the ring of requests")?;
            return Ok(best);
        }
        (clock, before, windows) = (Instant::now(), done, windows + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_once_and_in_order_for_many_rounds() {
        let segment = Segment::anonymous(RINGS_BYTES).unwrap();
        let mut sender = Ring::new(&segment, RESPONSES);
        let mut receiver = Ring::new(&segment, RESPONSES);
        let mut message = [0; ROUND_OFFSET as usize];
        for number in 0..10 * SLOTS {
            assert!(!receiver.receive(&mut message));
            message[..8].copy_from_slice(&number.to_le_bytes());
            sender.send(&message).unwrap();
            message.fill(0);
            assert!(receiver.receive(&mut message));
            assert_eq!(place(&message), number);
        }
    }
}
