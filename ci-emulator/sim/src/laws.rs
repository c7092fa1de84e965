//! What must hold in every run, judged from what initiators see and from what lands on the media.
//! Knows nothing of the target.

use std::collections::BTreeMap;
use std::fmt;

use lunar_initiator::oracle::{
    Content, Filling, Initial, ModelDisk, Read, Version, Write, WriteEnd,
};

use crate::disk::{BLOCK_BYTES, Landing};
use crate::units::UNITS;

/// A law that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which checker found it.
    pub law: Law,
    /// What happened, in words.
    pub text: String,
}

/// The checkers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Law {
    /// Every read gives data that some order of the writes explains.
    ReadData,
    /// A write whose end was reported does not land any more.
    LateWrite,
    /// Once a LUN is read-only or in standby in force, no write through it lands.
    ReadOnly,
    /// Reservation commands take effect one after another and for good; once a change is answered, no write of
    /// those that it keeps out lands, and none of their commands is let in.
    Reservation,
    /// A reset, a new nexus or a change of reservations is told by a unit attention before anything else.
    UnitAttention,
    /// SRP: credits, one response a command, residuals, sense.
    Protocol,
    /// Statuses and sense that have no cause.
    Status,
    /// SAM-6 8: what runs together of a task set.
    Order,
    /// Everything is answered in bounded time, unless somebody took it away.
    Liveness,
    /// At the end nothing is left.
    Leak,
    /// The agent found the card hostile, or the card the agent.
    Trust,
    /// The target's own assertions.
    Invariant,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadData => "read data",
            Self::LateWrite => "late write",
            Self::ReadOnly => "read only",
            Self::Reservation => "reservation",
            Self::UnitAttention => "unit attention",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Order => "order",
            Self::Liveness => "liveness",
            Self::Leak => "leak",
            Self::Trust => "trust",
            Self::Invariant => "invariant",
        })
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.text)
    }
}

/// A write that runs, as the judges see it.
#[derive(Clone, Copy, Debug)]
struct Running {
    lun: usize,
    nexus: usize,
}

/// When a LUN must have shown a unit attention.
#[derive(Clone, Copy, Debug)]
struct Owed {
    /// Commands sent after this moment may not see anything else first.
    since: u64,
    why: &'static str,
}

/// The judges' memory.
pub struct Laws {
    /// By LUN; the content names the unit.
    models: Vec<ModelDisk>,
    running: BTreeMap<(u32, Version), Running>,
    ended: BTreeMap<(u32, Version), &'static str>,
    /// By LUN: writes through it may not land now.
    pub fenced: [bool; UNITS.len()],
    /// By nexus and LUN.
    owed: Vec<[Option<Owed>; UNITS.len()]>,
    /// By nexus and LUN: when a unit attention was seen last.
    seen: Vec<[u64; UNITS.len()]>,
    /// Writes that landed.
    pub landed: u64,
}

impl Laws {
    /// Judges of `nexuses` nexuses.
    #[must_use]
    pub fn new(nexuses: usize) -> Self {
        let models = UNITS.iter().map(|unit| {
            let number = u16::try_from(unit.unit).unwrap_or(0);
            ModelDisk::new(number, BLOCK_BYTES as usize, Initial::Zeros)
        });
        Self {
            models: models.collect(),
            running: BTreeMap::new(),
            ended: BTreeMap::new(),
            fenced: [false; UNITS.len()],
            owed: vec![[None; UNITS.len()]; nexuses],
            seen: vec![[0; UNITS.len()]; nexuses],
            landed: 0,
        }
    }

    /// A write is about to be sent; fills `data` with its content, unless it leaves zeros.
    pub fn begin_write(
        &mut self,
        nexus: usize,
        lun: usize,
        (lba, blocks): (u64, u32),
        filling: Filling,
        data: &mut [u8],
    ) -> Write {
        let model = &mut self.models[lun];
        let write = model.begin_filling(lba, blocks, filling);
        if filling != Filling::Zeros {
            model.fill(&write, data);
        }
        self.running.insert((UNITS[lun].unit, write.version()), Running { lun, nexus });
        write
    }

    /// A write ended; `how` in words.
    pub fn end_write(&mut self, lun: usize, write: Write, end: WriteEnd, how: &'static str) {
        let name = (UNITS[lun].unit, write.version());
        self.running.remove(&name);
        self.ended.insert(name, how);
        self.models[lun].end_write(write, end);
    }

    /// A read is about to be sent.
    pub fn begin_read(&mut self, lun: usize, lba: u64, blocks: u32) -> Read {
        self.models[lun].begin_read(lba, blocks)
    }

    /// Fills `data` with what the blocks from `lba` on probably hold.
    pub fn guess(&self, lun: usize, lba: u64, data: &mut [u8]) {
        self.models[lun].guess(lba, data);
    }

    /// A comparison with `data` found a difference.
    ///
    /// # Errors
    /// There was none.
    pub fn end_miscompare(&mut self, lun: usize, read: Read, data: &[u8]) -> Result<(), Broken> {
        self.models[lun].end_miscompare(read, data).map_err(|mismatch| {
            let text = format!("MISCOMPARE where nothing differed: {mismatch}");
            Broken { law: Law::ReadData, text }
        })
    }

    /// A read ended without data.
    pub fn abandon_read(&mut self, lun: usize, read: Read) {
        self.models[lun].abandon_read(read);
    }

    /// A read ended with `data`.
    ///
    /// # Errors
    /// Data that no order of the writes explains.
    pub fn end_read(&mut self, lun: usize, read: Read, data: &[u8]) -> Result<(), Broken> {
        self.models[lun]
            .end_read(read, data)
            .map_err(|mismatch| Broken { law: Law::ReadData, text: mismatch.to_string() })
    }

    /// A block landed on a medium. Gives the LUN and the nexus that its write came through and from.
    ///
    /// # Errors
    /// It may not have.
    pub fn on_landing(&mut self, landing: &Landing) -> Result<(usize, usize), Broken> {
        self.landed += 1;
        let (unit, lba) = (landing.unit, landing.lba);
        let Content::Block { lun: of_unit, lba: of_lba, version } = landing.content else {
            let text = format!("unit {unit} LBA {lba}: bytes landed that nobody wrote");
            return Err(Broken { law: Law::ReadData, text });
        };
        if (u32::from(of_unit), of_lba) != (unit, lba) {
            let text = format!(
                "unit {unit} LBA {lba}: the content of unit {of_unit} LBA {of_lba} landed there"
            );
            return Err(Broken { law: Law::ReadData, text });
        }
        let Some(running) = self.running.get(&(unit, version)) else {
            let how = self.ended.get(&(unit, version)).copied().unwrap_or("never began");
            let text = format!(
                "unit {unit} LBA {lba}: the write with version {} landed after its end was known: {how}",
                version.0
            );
            return Err(Broken { law: Law::LateWrite, text });
        };
        if self.fenced[running.lun] {
            let text = format!(
                "unit {unit} LBA {lba}: a write of nexus {} landed through LUN {} after the configuration \
                 that closed it to writes was reported as applied",
                running.nexus, running.lun
            );
            return Err(Broken { law: Law::ReadOnly, text });
        }
        Ok((running.lun, running.nexus))
    }

    /// `nexus` owes us a unit attention on `lun` before anything else that is sent after `since`,
    /// unless it showed one since `from`.
    pub fn owe(&mut self, nexus: usize, lun: usize, from: u64, since: u64, why: &'static str) {
        if self.seen[nexus][lun] < from {
            self.owed[nexus][lun] = Some(Owed { since, why });
        }
    }

    /// Nobody owes `nexus` anything: it ended.
    pub fn forget_nexus(&mut self, nexus: usize) {
        self.owed[nexus] = [None; UNITS.len()];
    }

    /// `nexus` saw a unit attention (or asked for it) on `lun`.
    pub fn on_attention(&mut self, nexus: usize, lun: usize, moment: u64) {
        self.owed[nexus][lun] = None;
        self.seen[nexus][lun] = moment;
    }

    /// `nexus` saw another answer on `lun`, to a command sent at `sent`.
    ///
    /// # Errors
    /// A unit attention was due.
    pub fn on_answer(&mut self, nexus: usize, lun: usize, sent: u64) -> Result<(), Broken> {
        match self.owed[nexus][lun] {
            Some(owed) if owed.since < sent => Err(Broken {
                law: Law::UnitAttention,
                text: format!(
                    "nexus {nexus} LUN {lun}: a command got another answer before the unit attention for {}",
                    owed.why
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Writes that run.
    #[must_use]
    pub fn writes_running(&self) -> usize {
        self.running.len()
    }

    /// Compares everything that was ever written with the medium, once nothing runs.
    ///
    /// # Errors
    /// A block that no order of the writes explains.
    pub fn judge_medium(
        &mut self,
        lun: usize,
        mut peek: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), Broken> {
        let blocks: Vec<u64> = self.models[lun].written().collect();
        let mut block = vec![0; BLOCK_BYTES as usize];
        for lba in blocks {
            peek(lba, &mut block);
            let read = self.begin_read(lun, lba, 1);
            self.end_read(lun, read, &block)?;
        }
        Ok(())
    }
}
