//! `lunar-initiator`: the process that logs in, verifies and measures. It does what the
//! demonstration says on standard input and answers on standard output.

use std::io::{BufRead as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use lunar_hca::{DeviceConfig, EmulatedDevice, Fabric};
use lunar_initiator::{Command, Config, Data, Event, Initiator, Tag, cdbs};
use lunar_srp::login::PortId;
use sha2::{Digest as _, Sha256};

use crate::conversation::{Content, Range, Reply, Request, Unit};
use crate::measure;

/// Bytes of the initiator's data memory: more than any cache of the machines this runs on, so that
/// the payload of a measurement is not served from a cache.
pub(crate) const DATA_BYTES: usize = 128 << 20;
/// How long the target may take for one command.
pub(crate) const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// Transfer length of whole-LUN reads and writes.
const STREAM_BYTES: u64 = 128 << 10;
/// Commands outstanding in them.
const STREAM_DEPTH: u64 = 8;

/// SAM-6 5.3.1.
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;

/// Serves the conversation until it ends.
///
/// # Errors
/// When the conversation's pipes fail. What a request cannot do is answered, not returned.
pub fn run() -> anyhow::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (requests, incoming) = mpsc::channel();
    let over = Arc::clone(&interrupted);
    std::thread::Builder::new().name("lunar-parent".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if requests.send(line).is_err() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    })?;
    let mut driver = Driver { initiator: None, interrupted, told: Instant::now() };
    while let Ok(line) = incoming.recv() {
        let request: Request =
            serde_json::from_str(&line).context("a request of another version")?;
        let last = request == Request::Logout;
        let reply =
            driver.serve(request).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        say(&reply)?;
        if last {
            break;
        }
    }
    Ok(())
}

fn say(reply: &Reply) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Where a command's data goes in [`Session::execute`].
enum Transfer {
    None,
    In(u32),
}

struct Driver {
    initiator: Option<Initiator>,
    interrupted: Arc<AtomicBool>,
    /// When progress was reported last.
    told: Instant,
}

impl Driver {
    fn serve(&mut self, request: Request) -> anyhow::Result<Reply> {
        match request {
            Request::Login { fabric, address, initiator_port, target_port, core } => {
                if let Some(core) = core {
                    crate::cores::pin(core);
                }
                self.log_in(&fabric, &address, PortId(initiator_port), PortId(target_port))
            }
            Request::Luns => self.luns(),
            Request::Inspect { lun } => self.inspect(lun),
            Request::Hash { lun } => self.hash(lun),
            Request::Write { lun, range, content } => self.write(lun, range, content),
            Request::Measure(workload) => {
                let interrupted = Arc::clone(&self.interrupted);
                let unit = self.capacity(workload.lun)?;
                let initiator = self.initiator()?;
                measure::run(initiator, &workload, unit.block_bytes, &interrupted, |thousandths| {
                    say(&Reply::Progress(thousandths))
                })
                .map(Reply::Measured)
            }
            Request::Logout => self.log_out(),
        }
    }

    fn initiator(&mut self) -> anyhow::Result<&mut Initiator> {
        self.initiator.as_mut().context("not logged in")
    }

    fn log_in(
        &mut self,
        fabric: &str,
        address: &str,
        initiator_port: PortId,
        target_port: PortId,
    ) -> anyhow::Result<Reply> {
        let device = EmulatedDevice::new(DeviceConfig::new(address));
        let fabric = Fabric::unix(std::path::Path::new(fabric));
        let mut config = Config::new(initiator_port, target_port);
        config.data_bytes = DATA_BYTES;
        let mut initiator = Initiator::new(&device, &fabric, crate::card::SERVICE, config)
            .context("the initiator's memory cannot be claimed")?;
        // Every page is there before anything is timed.
        initiator.data_mut(0..DATA_BYTES).fill(0xa5);
        initiator.login().map_err(|error| anyhow!("login: {error:?}"))?;
        let mut events = Vec::new();
        let deadline = Instant::now() + COMMAND_PATIENCE;
        loop {
            initiator.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::LoggedIn { request_limit, it_iu_bytes_max, .. } => {
                        self.initiator = Some(initiator);
                        return Ok(Reply::LoggedIn { request_limit, it_iu_bytes_max });
                    }
                    Event::LoginRejected { reason, code } => {
                        bail!("the target rejected the login: {reason:?} (code {code:#x})")
                    }
                    Event::LoginFailed => bail!("no SRP target answered the login"),
                    _ => {}
                }
            }
            ensure!(Instant::now() < deadline, "no answer to the login in {COMMAND_PATIENCE:?}");
            self.check_interrupt()?;
        }
    }

    fn log_out(&mut self) -> anyhow::Result<Reply> {
        let Some(initiator) = self.initiator.as_mut() else { return Ok(Reply::LoggedOut) };
        initiator.logout()?;
        let mut events = Vec::new();
        let deadline = Instant::now() + COMMAND_PATIENCE;
        while !events.contains(&Event::Disconnected) {
            initiator.poll(&mut events);
            ensure!(Instant::now() < deadline, "the target does not close the channel");
        }
        let violations: Vec<String> =
            initiator.violations().take(4).map(|breach| format!("{breach:?}")).collect();
        ensure!(
            violations.is_empty(),
            "the target broke the protocol {} times: {}",
            initiator.violation_count(),
            violations.join("; ")
        );
        Ok(Reply::LoggedOut)
    }

    fn check_interrupt(&self) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Runs one command to its end; its data-in. Unit attentions are taken note of and passed.
    fn execute(&mut self, lun: u16, cdb: &[u8], transfer: &Transfer) -> anyhow::Result<Vec<u8>> {
        for _ in 0..8 {
            let bytes = match *transfer {
                Transfer::None => 0,
                Transfer::In(bytes) => bytes,
            };
            let data = if bytes == 0 { Data::None } else { Data::In { offset: 0, bytes } };
            let initiator = self.initiator()?;
            initiator.data_mut(0..bytes as usize).fill(0);
            let submitted = initiator.submit(&Command::new(encode(lun), cdb, data))?;
            let (status, sense) = self.wait_for(submitted)?;
            match (status, sense.as_deref()) {
                (GOOD, _) => {
                    return Ok(self.initiator()?.data(0..bytes as usize).to_vec());
                }
                // Sense key UNIT ATTENTION, in both sense formats (SPC-6 4.4).
                (CHECK_CONDITION, Some([format, key, ..]))
                    if format & 0x7f >= 0x72 && key & 0xf == 6 => {}
                (CHECK_CONDITION, Some([format, _, key, ..]))
                    if format & 0x7f < 0x72 && key & 0xf == 6 => {}
                (status, sense) => bail!(
                    "LUN {lun} answered CDB {cdb:02x?} with status {status:#04x}, sense {sense:02x?}"
                ),
            }
        }
        bail!("LUN {lun} reports one unit attention after the other")
    }

    fn wait_for(&mut self, wanted: Tag) -> anyhow::Result<(u8, Option<Box<[u8]>>)> {
        let mut events = Vec::new();
        let deadline = Instant::now() + COMMAND_PATIENCE;
        loop {
            self.initiator()?.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Response { tag, status, sense, .. } if tag == wanted => {
                        return Ok((status, sense));
                    }
                    Event::Disconnected | Event::TargetLogout { .. } => {
                        bail!("the target closed the channel")
                    }
                    _ => {}
                }
            }
            ensure!(Instant::now() < deadline, "no response in {COMMAND_PATIENCE:?}");
            self.check_interrupt()?;
        }
    }

    fn luns(&mut self) -> anyhow::Result<Reply> {
        let list = self.execute(0, &cdbs::report_luns(0, 4096), &Transfer::In(4096))?;
        // SPC-6 6.33: length of the list, reserved, entries of 8 bytes.
        let bytes = u32::from_be_bytes(list[..4].try_into()?) as usize;
        let entries =
            list.get(8..8 + bytes).context("REPORT LUNS: the list is longer than its room")?;
        let luns = entries
            .chunks_exact(8)
            .map(|entry| {
                let entry: [u8; 8] = entry.try_into()?;
                lunar_scsi::lun::decode(entry)
                    .with_context(|| format!("a LUN in no known form: {entry:02x?}"))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Reply::Luns(luns))
    }

    fn inspect(&mut self, lun: u16) -> anyhow::Result<Reply> {
        self.execute(lun, &cdbs::test_unit_ready(), &Transfer::None)?;
        let inquiry = self.execute(lun, &cdbs::inquiry(None, 96), &Transfer::In(96))?;
        ensure!(inquiry[0] == 0, "LUN {lun} is no connected disk: byte 0 is {:#04x}", inquiry[0]);
        let serial = self.execute(lun, &cdbs::inquiry(Some(0x80), 252), &Transfer::In(252))?;
        let serial_bytes = usize::from(u16::from_be_bytes([serial[2], serial[3]])).min(248);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let capacity = self.capacity(lun)?;
        Ok(Reply::Unit(Unit {
            vendor: text(&inquiry[8..16]),
            product: text(&inquiry[16..32]),
            revision: text(&inquiry[32..36]),
            serial: text(&serial[4..4 + serial_bytes]),
            block_bytes: capacity.block_bytes,
            blocks: capacity.blocks,
        }))
    }

    fn capacity(&mut self, lun: u16) -> anyhow::Result<Capacity> {
        let data = self.execute(lun, &cdbs::read_capacity16(32), &Transfer::In(32))?;
        let last = u64::from_be_bytes(data[..8].try_into()?);
        let block_bytes = u32::from_be_bytes(data[8..12].try_into()?);
        ensure!(block_bytes.is_power_of_two(), "LUN {lun} has blocks of {block_bytes} bytes");
        Ok(Capacity { block_bytes, blocks: last + 1 })
    }

    fn hash(&mut self, lun: u16) -> anyhow::Result<Reply> {
        let capacity = self.capacity(lun)?;
        let bytes = capacity.blocks * u64::from(capacity.block_bytes);
        let mut digest = Sha256::new();
        let range = Range { offset: 0, bytes };
        self.stream(
            lun,
            capacity.block_bytes,
            range,
            &mut Direction::Read(&mut |data| digest.update(data)),
        )?;
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Reply::Hash { sha256, bytes })
    }

    fn write(&mut self, lun: u16, range: Range, content: Content) -> anyhow::Result<Reply> {
        let capacity = self.capacity(lun)?;
        self.stream(lun, capacity.block_bytes, range, &mut Direction::Write(content))?;
        let flush = cdbs::synchronize_cache16(0, 0, false);
        self.execute(lun, &flush, &Transfer::None)?;
        Ok(Reply::Written)
    }

    /// Reads or writes `range` in order, with several commands outstanding.
    fn stream(
        &mut self,
        lun: u16,
        block_bytes: u32,
        range: Range,
        direction: &mut Direction<'_>,
    ) -> anyhow::Result<()> {
        let block_bytes = u64::from(block_bytes);
        ensure!(
            range.offset.is_multiple_of(block_bytes) && range.bytes.is_multiple_of(block_bytes),
            "{range:?} does not lie on blocks of {block_bytes} bytes"
        );
        let chunks = range.bytes.div_ceil(STREAM_BYTES);
        let length = |chunk: u64| STREAM_BYTES.min(range.bytes - chunk * STREAM_BYTES);
        // A place holds its chunk from submission until all earlier chunks are consumed.
        let place = |chunk: u64| (chunk % STREAM_DEPTH * STREAM_BYTES) as usize;
        let mut chunk_of = vec![0; self.initiator()?.slots()];
        let mut arrived = [false; STREAM_DEPTH as usize];
        let (mut submitted, mut consumed) = (0, 0);
        let mut events = Vec::new();
        let mut deadline = Instant::now() + COMMAND_PATIENCE;
        while consumed < chunks {
            self.check_interrupt()?;
            let initiator = self.initiator()?;
            while submitted < chunks && submitted - consumed < STREAM_DEPTH {
                let at = place(submitted);
                let bytes = length(submitted);
                let offset = range.offset + submitted * STREAM_BYTES;
                let transfer =
                    cdbs::Transfer::new(offset / block_bytes, (bytes / block_bytes) as u32);
                let (cdb, data) = match direction {
                    Direction::Read(_) => {
                        (cdbs::read16(transfer), Data::In { offset: at, bytes: bytes as u32 })
                    }
                    Direction::Write(content) => {
                        content.fill(offset, initiator.data_mut(at..at + bytes as usize));
                        (cdbs::write16(transfer), Data::Out { offset: at, bytes: bytes as u32 })
                    }
                };
                let tag = initiator.submit(&Command::new(encode(lun), &cdb, data))?;
                chunk_of[tag.index()] = submitted;
                submitted += 1;
            }
            initiator.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Response { tag, status: GOOD, .. } => {
                        arrived[(chunk_of[tag.index()] % STREAM_DEPTH) as usize] = true;
                        deadline = Instant::now() + COMMAND_PATIENCE;
                    }
                    Event::Response { tag, status, sense, .. } => bail!(
                        "LUN {lun}, byte {}: status {status:#04x}, sense {sense:02x?}",
                        range.offset + chunk_of[tag.index()] * STREAM_BYTES
                    ),
                    Event::Disconnected | Event::TargetLogout { .. } => {
                        bail!("the target closed the channel")
                    }
                    _ => {}
                }
            }
            while std::mem::take(&mut arrived[(consumed % STREAM_DEPTH) as usize]) {
                if let Direction::Read(sink) = direction {
                    let at = place(consumed);
                    sink(initiator.data(at..at + length(consumed) as usize));
                }
                consumed += 1;
            }
            ensure!(Instant::now() < deadline, "no response in {COMMAND_PATIENCE:?}");
            if self.told.elapsed() >= Duration::from_millis(50) {
                self.told = Instant::now();
                say(&Reply::Progress((consumed * 1000 / chunks.max(1)) as u32))?;
            }
        }
        Ok(())
    }
}

struct Capacity {
    block_bytes: u32,
    blocks: u64,
}

enum Direction<'a> {
    Read(&'a mut dyn FnMut(&[u8])),
    Write(Content),
}

pub(crate) fn encode(lun: u16) -> [u8; 8] {
    lunar_scsi::lun::encode(lun)
}
