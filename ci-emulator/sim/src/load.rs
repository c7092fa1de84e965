//! What the initiators send.

use lunar_initiator::cdbs::{ByteCheck, Transfer};
use lunar_initiator::oracle::{Filling, WriteEnd};
use lunar_initiator::{Command, Data, Shape, Tag, cdbs};
use lunar_scsi::lun;
use lunar_scsi::reservations::{Class, class};
use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};

use crate::channel::{Purpose, Sent};
use crate::disk::BLOCK_BYTES;
use crate::units::{BLOCKS, LOAD_BLOCKS, UNITS};
use crate::world::World;

/// How long a function may take commands of others away after it was sent, in nanoseconds.
const TAKES_AWAY_NS: u64 = 30_000_000;
/// After this time a command that may have been taken away is aborted, in nanoseconds.
const PATIENCE_NS: u64 = 2_500_000;

/// The LUN field of LUN `number`.
pub(crate) fn field(number: usize) -> [u8; 8] {
    lun::encode(u16::try_from(number).unwrap_or(0))
}

/// A command descriptor block of any length.
struct Cdb {
    bytes: [u8; 16],
    length: usize,
}

impl<const N: usize> From<[u8; N]> for Cdb {
    fn from(from: [u8; N]) -> Self {
        let mut bytes = [0; 16];
        bytes[..N].copy_from_slice(&from);
        Self { bytes, length: N }
    }
}

impl Cdb {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl World {
    /// One step of channel `number`.
    pub(crate) fn run_channel(&mut self, number: usize) -> Result<(), crate::laws::Broken> {
        self.see(number)?;
        let channel = &mut self.channels[number];
        if channel.initiator.is_idle() {
            if channel.asking_since.is_none() && self.now >= channel.login_at {
                channel.asking_since = Some(self.now);
                channel.asked = self.moment;
                self.journal.note("login", [number as u64, 0, 0]);
                // It is idle, so it can.
                let _ = channel.initiator.login();
            }
            return Ok(());
        }
        if !channel.initiator.is_logged_in() || self.ending {
            return Ok(());
        }
        if self.random.chance(1, 6_000) {
            self.channels[number].pace = self.random.between(1, 24);
        }
        let pace = self.channels[number].pace;
        // Around a revoke more often, so that it meets functions and what they abort.
        let rarity = if self.faults.revoking { 60 } else { 900 };
        if self.random.chance(1, rarity) {
            self.send_function(number);
        } else if self.random.chance(1, pace) {
            self.send_command(number);
        }
        Ok(())
    }

    fn send_command(&mut self, number: usize) {
        let lun = match self.random.below(16) {
            0 => 0,
            1..=5 => 1,
            6..=9 => 2,
            10..=12 => 3,
            _ => 4,
        };
        if UNITS[lun].reserved && self.random.chance(1, 12) {
            return self.send_reserving(number, lun);
        }
        if UNITS[lun].reserved && self.random.chance(1, 24) {
            return self.send_copy(number, lun);
        }
        match self.random.below(100) {
            0..=42 => self.send_transfer(number, lun, false),
            43..=72 => self.send_transfer(number, lun, true),
            73..=87 if UNITS[lun].stores => self.send_medium_command(number, lun),
            73..=87 => self.send_transfer(number, lun, true),
            _ => self.send_other(number, lun),
        }
    }

    fn attribute(&mut self) -> TaskAttribute {
        match self.random.below(16) {
            0 => TaskAttribute::Ordered,
            1 => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        }
    }

    fn shape(&mut self) -> Shape {
        match self.random.below(16) {
            0 => Shape::Indirect { pieces: u8::try_from(self.random.between(36, 56)).unwrap_or(2) },
            1 => Shape::External {
                pieces: u8::try_from(self.random.between(3, 56)).unwrap_or(3),
                inline: u8::try_from(self.random.below(3)).unwrap_or(0),
            },
            2..=4 => {
                Shape::Indirect { pieces: u8::try_from(self.random.between(1, 9)).unwrap_or(2) }
            }
            _ => Shape::Direct,
        }
    }

    fn send_transfer(&mut self, number: usize, lun: usize, is_write: bool) {
        let blocks = match self.random.below(10) {
            0..=6 => self.random.between(1, 8),
            7..=8 => self.random.between(1, 64),
            _ => self.random.between(65, 256),
        };
        let hot = if self.random.chance(1, 3) { 64 } else { LOAD_BLOCKS };
        let lba = self.random.below(hot).min(LOAD_BLOCKS - blocks);
        let blocks = u32::try_from(blocks).unwrap_or(1);
        let bytes = blocks * BLOCK_BYTES;
        let cdb = self.transfer_cdb(lba, blocks, is_write);
        let Some(place) = self.channels[number].take_place() else { return };
        let data = match is_write {
            true => Data::Out { offset: place, bytes },
            false => Data::In { offset: place, bytes },
        };
        let range = place..place + bytes as usize;
        let stores = UNITS[lun].stores;
        let nexus = self.channels[number].nexus;
        // Before the command is sent, because immediate data goes with it.
        let memory = self.channels[number].initiator.data_mut(range);
        let purpose = match (stores, is_write) {
            (true, true) => {
                let range = (lba, blocks);
                Purpose::Write(self.laws.begin_write(nexus, lun, range, Filling::Own, memory))
            }
            (true, false) => {
                memory.fill(0xee);
                Purpose::Read(self.laws.begin_read(lun, lba, blocks), bytes)
            }
            (false, _) => {
                Purpose::Other { ignores_attention: false, takes_attention: false, invalid: false }
            }
        };
        if let Some(tag) = self.submit(number, lun, cdb.bytes(), data, purpose, Some(place)) {
            self.journal.note(
                if is_write { "write: channel, tag, LBA" } else { "read: channel, tag, LBA" },
                [number as u64 * 10 + lun as u64, tag.to_wire(), lba],
            );
        }
    }

    fn transfer_cdb(&mut self, lba: u64, blocks: u32, is_write: bool) -> Cdb {
        let mut transfer = cdbs::Transfer::new(lba, blocks);
        transfer.fua = self.random.chance(1, 8);
        let short = blocks <= 255 && !transfer.fua;
        match (self.random.below(4), is_write) {
            (0, true) if short => {
                cdbs::write6(u32::try_from(lba).unwrap_or(0), u8::try_from(blocks).unwrap_or(1))
                    .into()
            }
            (0, false) if short => {
                cdbs::read6(u32::try_from(lba).unwrap_or(0), u8::try_from(blocks).unwrap_or(1))
                    .into()
            }
            (1, true) => cdbs::write12(transfer).into(),
            (1, false) => cdbs::read12(transfer).into(),
            (2, true) => cdbs::write16(transfer).into(),
            (2, false) => cdbs::read16(transfer).into(),
            (_, true) => cdbs::write10(transfer).into(),
            (_, false) => cdbs::read10(transfer).into(),
        }
    }

    /// What a command was to be, that could not be sent.
    fn never_sent(&mut self, lun: usize, purpose: Purpose) {
        match purpose {
            Purpose::Read(read, _) | Purpose::Compare(read, _) => self.laws.abandon_read(lun, read),
            Purpose::Write(write) => {
                self.laws.end_write(lun, write, WriteEnd::Refused, "it was never sent");
            }
            Purpose::CompareAndWrite(read, write, _) => {
                self.laws.abandon_read(lun, read);
                self.laws.end_write(lun, write, WriteEnd::Refused, "it was never sent");
            }
            Purpose::Reserving(name) => self.reserving.withdraw(lun, name, self.moment),
            Purpose::Copy(to) => self.copies[to] = None,
            Purpose::OrZeros | Purpose::Other { .. } | Purpose::Management(_) | Purpose::Over => {}
        }
    }

    /// One of the commands about the medium besides READ and WRITE.
    fn send_medium_command(&mut self, number: usize, lun: usize) {
        let kind = self.random.below(11);
        let blocks = match (kind, self.random.below(4)) {
            // Few, so that a comparison has a chance.
            (0..=2, _) => self.random.between(1, 4),
            (_, 0) => self.random.between(9, 200),
            _ => self.random.between(1, 8),
        };
        let hot = if self.random.chance(2, 3) { 64 } else { LOAD_BLOCKS };
        let lba = self.random.below(hot).min(LOAD_BLOCKS - blocks);
        let blocks = u32::try_from(blocks).unwrap_or(1);
        let bytes = blocks * BLOCK_BYTES;
        let differs = self.random.chance(1, 4);
        let fua = self.random.chance(1, 8);
        let long = self.random.chance(1, 2);
        let unmap = self.random.chance(1, 2);
        let Some(place) = self.channels[number].take_place() else { return };
        let nexus = self.channels[number].nexus;
        let range = (lba, blocks);
        let transfer = Transfer { fua, ..Transfer::new(lba, blocks) };
        let short = u32::try_from(lba).unwrap_or(0);
        let memory = |bytes: u32| place..place + bytes as usize;
        let initiator = &mut self.channels[number].initiator;
        let (cdb, sent_bytes, purpose): (Cdb, u32, Purpose) = match kind {
            0..=1 => {
                let memory = initiator.data_mut(memory(2 * bytes));
                let (expected, new) = memory.split_at_mut(bytes as usize);
                self.laws.guess(lun, lba, expected);
                expected[0] ^= u8::from(differs);
                let read = self.laws.begin_read(lun, lba, blocks);
                let write = self.laws.begin_write(nexus, lun, range, Filling::Own, new);
                let purpose = Purpose::CompareAndWrite(read, write, bytes);
                (cdbs::compare_and_write(transfer).into(), 2 * bytes, purpose)
            }
            2..=3 => {
                let memory = initiator.data_mut(memory(bytes));
                self.laws.guess(lun, lba, memory);
                memory[bytes as usize - 1] ^= u8::from(differs);
                let purpose = Purpose::Compare(self.laws.begin_read(lun, lba, blocks), bytes);
                let transfer = Transfer::new(lba, blocks);
                let cdb: Cdb = match long {
                    true => cdbs::verify16(transfer, ByteCheck::Blocks).into(),
                    false => cdbs::verify10(transfer, ByteCheck::Blocks).into(),
                };
                (cdb, bytes, purpose)
            }
            4 => {
                // One block for all: they often are zeros, because the commands below make them so.
                let memory = initiator.data_mut(memory(BLOCK_BYTES));
                memory.fill(u8::from(differs));
                let purpose = Purpose::Compare(self.laws.begin_read(lun, lba, blocks), BLOCK_BYTES);
                let transfer = Transfer::new(lba, blocks);
                (cdbs::verify16(transfer, ByteCheck::OneBlock).into(), BLOCK_BYTES, purpose)
            }
            5..=6 => {
                initiator.data_mut(memory(bytes)).fill(0);
                (cdbs::orwrite16(transfer).into(), bytes, Purpose::OrZeros)
            }
            7 => {
                let memory = initiator.data_mut(memory(bytes));
                let write = self.laws.begin_write(nexus, lun, range, Filling::Own, memory);
                let transfer = Transfer::new(lba, blocks);
                let cdb: Cdb = match long {
                    true => cdbs::write_and_verify16(transfer).into(),
                    false => cdbs::write_and_verify10(transfer).into(),
                };
                (cdb, bytes, Purpose::Write(write))
            }
            8 => {
                let memory = initiator.data_mut(memory(BLOCK_BYTES));
                let write = self.laws.begin_write(nexus, lun, range, Filling::Same, memory);
                let cdb: Cdb = match (long, u16::try_from(blocks)) {
                    (false, Ok(blocks)) => cdbs::write_same10(short, blocks, unmap).into(),
                    _ => cdbs::write_same16(lba, blocks, unmap, false).into(),
                };
                (cdb, BLOCK_BYTES, Purpose::Write(write))
            }
            9 => {
                let write = self.laws.begin_write(nexus, lun, range, Filling::Zeros, &mut []);
                (cdbs::write_same16(lba, blocks, unmap, true).into(), 0, Purpose::Write(write))
            }
            _ => {
                let write = self.laws.begin_write(nexus, lun, range, Filling::Zeros, &mut []);
                let (first, rest) = (blocks / 2, blocks - blocks / 2);
                let ranges = [(lba + u64::from(first), rest), (lba, first)];
                let list = initiator.data_mut(memory(40));
                let list_bytes = cdbs::unmap_list(&ranges, list);
                let cdb = cdbs::unmap(u16::try_from(list_bytes).unwrap_or(0)).into();
                (cdb, u32::try_from(list_bytes).unwrap_or(0), Purpose::Write(write))
            }
        };
        let data = match sent_bytes {
            0 => Data::None,
            bytes => Data::Out { offset: place, bytes },
        };
        if let Some(tag) = self.submit(number, lun, cdb.bytes(), data, purpose, Some(place)) {
            self.journal.note(
                "medium command: channel, tag, kind and LBA",
                [number as u64 * 10 + lun as u64, tag.to_wire(), kind << 32 | lba],
            );
        }
    }

    fn send_other(&mut self, number: usize, lun: usize) {
        let kind = self.random.below(10);
        let (cdb, bytes): (Cdb, u32) = match kind {
            0 => (cdbs::inquiry(None, 96).into(), 96),
            1 => (cdbs::request_sense(false, 252).into(), 252),
            2 => (cdbs::report_luns(0, 256).into(), 256),
            3 => (cdbs::read_capacity16(32).into(), 32),
            4 => (
                cdbs::mode_sense10(
                    cdbs::ModePage { page: 0x3f, subpage: 0, control: 0, dbd: false },
                    false,
                    255,
                )
                .into(),
                255,
            ),
            5 => (cdbs::test_unit_ready().into(), 0),
            // Unknown to the card: forwarded, and refused by the agent.
            6 => ([0xc5, 0, 0, 0, 0, 0].into(), 0),
            7 => (cdbs::read10(cdbs::Transfer::new(BLOCKS - 1, 2)).into(), 2 * BLOCK_BYTES),
            _ => (cdbs::synchronize_cache10(0, 0, false).into(), 0),
        };
        let purpose = Purpose::Other {
            ignores_attention: kind <= 2,
            takes_attention: kind == 1,
            invalid: matches!(kind, 6 | 7),
        };
        let place = if bytes == 0 { None } else { self.channels[number].take_place() };
        let data = match (bytes, place) {
            (0, _) => Data::None,
            (_, Some(offset)) => Data::In { offset, bytes },
            (_, None) => return,
        };
        if let Some(tag) = self.submit(number, lun, cdb.bytes(), data, purpose, place) {
            self.journal.note(
                "other command: channel, tag, kind",
                [number as u64 * 10 + lun as u64, tag.to_wire(), kind],
            );
        }
    }

    /// Sends a command; `None`: it could not be sent, and is forgotten.
    pub(crate) fn submit(
        &mut self,
        number: usize,
        lun: usize,
        cdb: &[u8],
        data: Data,
        purpose: Purpose,
        place: Option<usize>,
    ) -> Option<Tag> {
        let attribute = self.attribute();
        let shape = if data == Data::None { Shape::Direct } else { self.shape() };
        let command = Command { attribute, shape, ..Command::new(field(lun), cdb, data) };
        let Ok(tag) = self.channels[number].initiator.submit(&command) else {
            self.channels[number].give_place(place);
            self.never_sent(lun, purpose);
            return None;
        };
        self.order.sent(tag.to_wire(), self.channels[number].nexus, lun, attribute);
        self.commands += 1;
        self.remember(number, lun, tag, purpose, class(cdb), place);
        Some(tag)
    }

    fn remember(
        &mut self,
        number: usize,
        lun: usize,
        tag: Tag,
        purpose: Purpose,
        class: Class,
        place: Option<usize>,
    ) {
        self.moment += 1;
        let (moment, at) = (self.moment, self.now);
        let sent = Sent { tag, lun, purpose, class, moment, at, place, abort_sent: None };
        self.channels[number].sent[tag.index()] = Some(sent);
    }

    fn send_function(&mut self, number: usize) {
        let lun = self.random.index(UNITS.len());
        let function = match self.random.below(16) {
            0..=9 => TaskManagementFunction::AbortTask,
            10..=12 => TaskManagementFunction::AbortTaskSet,
            13..=14 => TaskManagementFunction::ClearTaskSet,
            _ => TaskManagementFunction::LogicalUnitReset,
        };
        if function != TaskManagementFunction::AbortTask {
            return self.manage(number, function, lun, None);
        }
        let commands: Vec<(usize, Tag)> = self.channels[number]
            .sent
            .iter()
            .flatten()
            .filter(|sent| !matches!(sent.purpose, Purpose::Management(_) | Purpose::Over))
            .map(|sent| (sent.lun, sent.tag))
            .collect();
        if commands.is_empty() {
            return;
        }
        let (lun, tag) = commands[self.random.index(commands.len())];
        self.manage(number, function, lun, Some(tag));
    }

    /// Sends a task management function, unless the channel has one under way.
    pub(crate) fn manage(
        &mut self,
        number: usize,
        function: TaskManagementFunction,
        lun: usize,
        task: Option<Tag>,
    ) {
        let channel = &mut self.channels[number];
        let busy = |sent: &Sent| matches!(sent.purpose, Purpose::Management(_));
        if channel.sent.iter().flatten().any(busy) {
            return;
        }
        let Ok(tag) = channel.initiator.task_management(function, field(lun), task) else { return };
        let nexus = channel.nexus;
        let aborted = task.and_then(|task| channel.sent[task.index()].as_mut());
        if let Some(sent) = aborted {
            sent.abort_sent = Some(self.now);
        }
        let everybody = function == TaskManagementFunction::LogicalUnitReset
            || (function == TaskManagementFunction::ClearTaskSet && lun == 3);
        if function != TaskManagementFunction::AbortTask {
            for (other, taken) in self.taken_away.iter_mut().enumerate() {
                if everybody || other == nexus {
                    taken[lun] = self.now + TAKES_AWAY_NS;
                }
            }
            for channel in &mut self.channels {
                if everybody || channel.nexus == nexus {
                    channel.initiator.expect_silent_ends();
                }
            }
        }
        self.journal.note(
            match function {
                TaskManagementFunction::AbortTask => "ABORT TASK: channel, tag, task",
                TaskManagementFunction::AbortTaskSet => "ABORT TASK SET: channel, tag",
                TaskManagementFunction::ClearTaskSet => "CLEAR TASK SET: channel, tag",
                TaskManagementFunction::LogicalUnitReset => "LOGICAL UNIT RESET: channel, tag",
                TaskManagementFunction::ClearAca => "CLEAR ACA: channel, tag",
            },
            [number as u64 * 10 + lun as u64, tag.to_wire(), task.map_or(0, Tag::to_wire)],
        );
        self.remember(number, lun, tag, Purpose::Management(function), Class::ALWAYS, None);
    }

    /// Commands of every nexus on LUN `lun` may end without an answer, for a while.
    pub(crate) fn expect_aborts(&mut self, lun: usize) {
        for taken in &mut self.taken_away {
            taken[lun] = self.now + TAKES_AWAY_NS;
        }
        for channel in &mut self.channels {
            channel.initiator.expect_silent_ends();
        }
    }

    /// Aborts commands that somebody may have taken away, and finds those that nobody did.
    pub(crate) fn look_for_forgotten(&mut self) -> Result<(), crate::laws::Broken> {
        for lun in 0..UNITS.len() {
            if self.reserving.may_abort(lun) {
                self.expect_aborts(lun);
            }
        }
        for number in 0..self.channels.len() {
            let nexus = self.channels[number].nexus;
            let mut patience = None;
            for sent in self.channels[number].sent.iter().flatten() {
                let age = self.now - sent.at;
                let taken = sent.at <= self.taken_away[nexus][sent.lun];
                let management = matches!(sent.purpose, Purpose::Management(_));
                let waiting = sent.abort_sent.map_or(age, |at| self.now - at);
                if waiting > crate::world::ANSWER_NS {
                    let text = format!(
                        "channel {number}: the request with tag {:x} on LUN {} has no answer after {} ms",
                        sent.tag.to_wire(),
                        sent.lun,
                        age / 1_000_000
                    );
                    return Err(crate::laws::Broken { law: crate::laws::Law::Liveness, text });
                }
                if taken && !management && age > PATIENCE_NS && sent.abort_sent.is_none() {
                    patience.get_or_insert((sent.lun, sent.tag));
                }
            }
            if let Some((lun, tag)) = patience {
                self.manage(number, TaskManagementFunction::AbortTask, lun, Some(tag));
            }
        }
        Ok(())
    }
}
