//! What initiators do with persistent reservations and with EXTENDED COPY, whose writes nobody sends, and what they
//! see of it. What reservations mean is judged in `crate::reserving`.

use lunar_initiator::{Data, cdbs};
use lunar_scsi::reservations::{Class, InAction, OutAction};

use super::World;
use crate::channel::{Purpose, Sent};
use crate::disk::{BLOCK_BYTES, Landing};
use crate::laws::{Broken, Law};
use crate::reserving::Answer;
use crate::seen::GOOD;
use crate::units::{BLOCKS, LOAD_BLOCKS, UNITS, naa};

/// Bytes of the parameter list of PERSISTENT RESERVE OUT.
const LIST_BYTES: u32 = 24;
/// ALLOCATION LENGTH of PERSISTENT RESERVE IN.
const ALLOCATION: u8 = 255;
/// Segments of an EXTENDED COPY.
const COPY_SEGMENTS_MAX: u64 = 16;
/// APTPL, in byte 20 of the list.
const APTPL: u8 = 0x01;
/// PERSISTENT RESERVE OUT's and IN's operation codes.
const OUT: u8 = 0x5F;
const IN: u8 = 0x5E;

/// An EXTENDED COPY on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copying {
    pub(crate) nexus: usize,
    /// Its channel died; the moment of that channel's login. It may go on until a SINGLE login.
    pub(crate) lost: Option<u64>,
}

impl World {
    /// An EXTENDED COPY to LUN `to` from the LUN that it is sent to, which nobody reserves.
    pub(crate) fn send_copy(&mut self, number: usize, to: usize) {
        const FROM: usize = 1;
        if self.copies[to].is_some() {
            return;
        }
        // Some of many segments, so that it lasts.
        let segments = self.random.between(1, COPY_SEGMENTS_MAX);
        let blocks = (BLOCKS - LOAD_BLOCKS) / segments;
        let from = self.random.below(LOAD_BLOCKS - blocks);
        let short = u16::try_from(blocks).unwrap_or(1);
        let segments: Vec<(u64, u64, u16)> =
            (0..segments).map(|each| (from, LOAD_BLOCKS + each * blocks, short)).collect();
        let disks = [naa(UNITS[FROM].unit), naa(UNITS[to].unit)];
        let list = cdbs::extended_copy_list(disks, BLOCK_BYTES, &segments);
        let Some(place) = self.channels[number].take_place() else { return };
        self.channels[number].initiator.data_mut(place..place + list.len()).copy_from_slice(&list);
        let bytes = u32::try_from(list.len()).unwrap_or(0);
        let nexus = self.channels[number].nexus;
        self.copies[to] = Some(Copying { nexus, lost: None });
        let (data, purpose) = (Data::Out { offset: place, bytes }, Purpose::Copy(to));
        let cdb = cdbs::extended_copy(bytes);
        if let Some(tag) = self.submit(number, FROM, &cdb, data, purpose, Some(place)) {
            let numbers = [number as u64 * 10 + to as u64, tag.to_wire(), blocks];
            self.journal.note("copy: channel and LUN, tag, blocks of a segment", numbers);
        }
    }

    /// The answer to an EXTENDED COPY to LUN `to`.
    pub(crate) fn on_copied(
        &mut self,
        number: usize,
        sent: &Sent,
        to: usize,
        status: u8,
    ) -> Result<(), Broken> {
        self.copies[to] = None;
        let nexus = self.channels[number].nexus;
        self.counts.copies += u64::from(status == GOOD);
        if status != GOOD || self.reserving.may_be_let_in(to, nexus, Class::WRITE, sent.moment) {
            return Ok(());
        }
        let text =
            format!("nexus {nexus}: a copy to LUN {to} was carried out, which had kept it out");
        Err(Broken { law: Law::Reservation, text })
    }

    /// A block landed where only copies write. Gives the LUN and the nexus of the copy.
    pub(crate) fn judge_copied(&self, landing: &Landing) -> Result<(usize, usize), Broken> {
        let lun = UNITS.iter().position(|unit| unit.unit == landing.unit).unwrap_or(0);
        match self.copies[lun] {
            Some(copy) => Ok((lun, copy.nexus)),
            None => {
                let lba = landing.lba;
                let text =
                    format!("LUN {lun} LBA {lba}: a copy's write landed after its end was known");
                Err(Broken { law: Law::LateWrite, text })
            }
        }
    }

    /// One of the commands about reservations, mostly one that makes sense.
    pub(crate) fn send_reserving(&mut self, number: usize, lun: usize) {
        if !self.reserving.has_room(lun) {
            return;
        }
        let nexus = self.channels[number].nexus;
        let Some(place) = self.channels[number].take_place() else { return };
        let memory = place..place + usize::from(ALLOCATION);
        let (held, keys) = self.reserving.guess(lun);
        if self.reserving.is_unclear(lun) || self.random.chance(1, 4) {
            let action = InAction::ALL[self.random.index(InAction::ALL.len())] as u8;
            let cdb = [IN, action, 0, 0, 0, 0, 0, 0, ALLOCATION, 0];
            self.channels[number].initiator.data_mut(memory).fill(0xEE);
            let data = Data::In { offset: place, bytes: ALLOCATION.into() };
            return self.send_about_reservations(number, lun, &cdb, &[], data, place);
        }
        let own = keys[nexus];
        let other = keys[self.random.index(keys.len())];
        // All registrants types are preempted with key zero.
        let preempted = if held >= 7 && self.random.chance(1, 2) { 0 } else { other };
        // Mostly one that leaves others something to do.
        let any = [1, 3, 5, 5, 5, 6, 7, 7, 7, 8][self.random.index(10)];
        let is_wrong = self.random.chance(1, 24);
        // What is not registered registers first; so that nobody is kept out for long, there is much releasing.
        let (action, kind, action_key) = match self.random.below(if own == 0 { 3 } else { 16 }) {
            0 => (OutAction::Register, 0, 1 + self.random.below(3)),
            1 => (OutAction::RegisterAndIgnore, 0, 1 + self.random.below(4)),
            2..=4 => (OutAction::Reserve, any, 0),
            5..=6 => (OutAction::Register, 0, 0),
            7..=10 => (OutAction::Release, if is_wrong { any } else { held }, 0),
            11 => (OutAction::Clear, 0, 0),
            12..=13 => (OutAction::Preempt, any, preempted),
            _ => (OutAction::PreemptAndAbort, any, preempted),
        };
        let mut list = [0; LIST_BYTES as usize];
        list[..8].copy_from_slice(&(own ^ u64::from(is_wrong)).to_be_bytes());
        list[8..16].copy_from_slice(&action_key.to_be_bytes());
        list[20] = if self.random.chance(1, 2) { APTPL } else { 0 };
        let cdb = [OUT, action as u8, kind, 0, 0, 0, 0, 0, LIST_BYTES as u8, 0];
        self.channels[number].initiator.data_mut(memory)[..list.len()].copy_from_slice(&list);
        let data = Data::Out { offset: place, bytes: LIST_BYTES };
        self.send_about_reservations(number, lun, &cdb, &list, data, place);
    }

    fn send_about_reservations(
        &mut self,
        number: usize,
        lun: usize,
        cdb: &[u8],
        list: &[u8],
        data: Data,
        place: usize,
    ) {
        let nexus = self.channels[number].nexus;
        let name = self.reserving.begin(lun, nexus, cdb, list, self.moment);
        let purpose = Purpose::Reserving(name);
        if let Some(tag) = self.submit(number, lun, cdb, data, purpose, Some(place)) {
            self.journal.note(
                "about reservations: channel, tag, action",
                [number as u64 * 10 + lun as u64, tag.to_wire(), cdb[1].into()],
            );
            if self.reserving.may_abort(lun) {
                self.expect_aborts(lun);
            }
        }
    }

    /// The answer to such a command.
    pub(crate) fn on_reserving(
        &mut self,
        number: usize,
        sent: &Sent,
        name: u64,
        (status, sense): (u8, (u8, u8, u8)),
        place: Option<usize>,
    ) -> Result<(), Broken> {
        self.counts.reserving += 1;
        let lun = sent.lun;
        let start = place.unwrap_or(0);
        let data = self.channels[number].initiator.data(start..start + usize::from(ALLOCATION));
        let answer = Answer::Response(status, sense, data);
        let told = self.reserving.end(lun, name, answer, self.moment)?;
        for nexus in told {
            let channels = self.channels.iter().filter(|channel| channel.nexus == nexus);
            // Answers on two channels overtake each other, so nothing can be said of their order.
            if channels.count() == 1 && self.nexus_since[nexus] < sent.moment {
                self.laws.owe(nexus, lun, sent.moment, self.moment, "a change of reservations");
            }
        }
        Ok(())
    }
}
