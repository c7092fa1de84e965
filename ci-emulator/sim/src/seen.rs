//! What the initiators see, and what it means to the judges.

use lunar_initiator::oracle::WriteEnd;
use lunar_initiator::{Event, Tag};
use lunar_scsi::task_set::TaskManagementFunction;
use lunar_srp::iu::{Residual, logout_reason};
use lunar_srp::login::OtherChannels;

use crate::channel::{Channel, Purpose, Sent};
use crate::disk::BLOCK_BYTES;
use crate::laws::{Broken, Law};
use crate::reserving::Answer;
use crate::units::UNITS;
use crate::world::World;

/// SAM-6 statuses.
pub(crate) const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const BUSY: u8 = 8;
const RESERVATION_CONFLICT: u8 = 0x18;
const TASK_SET_FULL: u8 = 0x28;
/// SPC-6 sense keys.
const NOT_READY: u8 = 2;
const ILLEGAL_REQUEST: u8 = 5;
const UNIT_ATTENTION: u8 = 6;
const DATA_PROTECT: u8 = 7;
const MISCOMPARE: u8 = 0xe;
const COPY_ABORTED: u8 = 0xa;
const ABORTED_COMMAND: u8 = 0xb;
/// An outage explains answers for so long after it, in nanoseconds.
const OUTAGE_NS: u64 = 60_000_000;

/// Key, additional sense code and qualifier of fixed-format sense data.
fn sense_of(sense: Option<&[u8]>) -> (u8, u8, u8) {
    let byte = |at: usize| sense.and_then(|sense| sense.get(at)).copied().unwrap_or(0);
    (byte(2) & 0xf, byte(12), byte(13))
}

fn broken<T>(law: Law, text: String) -> Result<T, Broken> {
    Err(Broken { law, text })
}

impl World {
    /// Takes what arrived at channel `number`.
    pub(crate) fn see(&mut self, number: usize) -> Result<(), Broken> {
        let mut events = Vec::new();
        self.channels[number].poll(self.now, &mut events);
        for event in events {
            self.moment += 1;
            self.on_event(number, event)?;
        }
        match self.channels[number].initiator.violations().next() {
            Some(violation) => {
                let text = format!("channel {number}: {violation:x?}");
                broken(Law::Protocol, text)
            }
            None => Ok(()),
        }
    }

    fn on_event(&mut self, number: usize, event: Event) -> Result<(), Broken> {
        let at = number as u64;
        let is_end = matches!(event, Event::Lost { .. } | Event::Disconnected);
        if self.channels[number].logged_out && !is_end {
            let text = format!("channel {number}: {event:?} after the target's logout");
            return broken(Law::Protocol, text);
        }
        match event {
            Event::LoggedIn { others, .. } => {
                self.counts.logins += 1;
                self.journal.note("logged in: channel", [at, 0, 0]);
                self.on_login(number, others);
            }
            Event::LoginRejected { code, .. } => {
                self.counts.rejects += 1;
                self.journal.note("login rejected: channel, code", [at, code.into(), 0]);
                self.ask_again(number);
            }
            Event::LoginFailed => {
                self.journal.note("login failed: channel", [at, 0, 0]);
                self.ask_again(number);
            }
            Event::Response { tag, status, sense, data_in_residual, response_code, .. } => {
                let key = sense_of(sense.as_deref());
                self.journal.note(
                    "response: channel, tag, status",
                    [at, tag.to_wire(), u64::from(status) << 8 | u64::from(key.0)],
                );
                let Some(mut sent) = self.channels[number].finish(tag) else {
                    return broken(
                        Law::Protocol,
                        format!("channel {number}: a response for nothing"),
                    );
                };
                if response_code.is_some_and(|code| code != 0) {
                    let text =
                        format!("channel {number}: a command got response code {response_code:?}");
                    return broken(Law::Status, text);
                }
                let place = sent.place.take();
                let result = self.on_response(number, sent, status, key, data_in_residual, place);
                self.channels[number].give_place(place);
                return result;
            }
            Event::Aborted { tag } => {
                self.counts.aborted += 1;
                self.journal.note("aborted: channel, tag", [at, tag.to_wire(), 0]);
                self.close(number, tag, "its abort was answered with FUNCTION COMPLETE");
            }
            Event::TaskManagementResponse { tag, code } => {
                self.journal.note(
                    "function answered: channel, tag, code",
                    [at, tag.to_wire(), code.into()],
                );
                self.on_function(number, tag, code);
            }
            Event::Lost { tag } => {
                self.counts.lost += 1;
                self.journal.note("lost: channel, tag", [at, tag.to_wire(), 0]);
                self.on_lost(number, tag);
            }
            Event::Disconnected => {
                self.journal.note("disconnected: channel", [at, 0, 0]);
                self.channels[number].logged_out = false;
                self.ask_again(number);
            }
            Event::AsynchronousEvent { ref sense, .. } => {
                let key = sense_of(Some(sense));
                self.journal.note("event: channel, code", [at, key.1.into(), key.2.into()]);
                // INQUIRY and REPORTED LUNS DATA HAS CHANGED; RESERVATIONS PREEMPTED and RELEASED, REGISTRATIONS
                // PREEMPTED, ASYMMETRIC ACCESS STATE CHANGED, CAPACITY DATA HAS CHANGED.
                let is_told = matches!((key.1, key.2), (0x3f, 0x03 | 0x0e) | (0x2a, 3..=6 | 9));
                if key.0 != UNIT_ATTENTION || !is_told {
                    return broken(Law::Protocol, format!("channel {number}: {event:?}"));
                }
            }
            Event::TargetLogout { reason } => {
                self.journal.note("target's logout: channel, reason", [at, reason.into(), 0]);
                self.channels[number].logged_out = true;
                let allowed = [logout_reason::NOT_SPECIFIED, logout_reason::MULTI_CHANNEL_ACTION];
                if !allowed.contains(&reason) {
                    return broken(Law::Protocol, format!("channel {number}: {event:?}"));
                }
            }
        }
        Ok(())
    }

    fn ask_again(&mut self, number: usize) {
        let wait = if self.random.chance(1, 2) {
            self.random.between(1_000, 20_000)
        } else {
            self.random.between(20_000, 600_000)
        };
        let channel = &mut self.channels[number];
        channel.asking_since = None;
        if channel.login_at != u64::MAX {
            channel.login_at = self.now + wait;
        }
    }

    fn on_login(&mut self, number: usize, others: OtherChannels) {
        let channel = &mut self.channels[number];
        channel.asking_since = None;
        channel.logged_in = self.moment;
        if self.taken_away[channel.nexus].iter().any(|until| *until >= self.now) {
            channel.initiator.expect_silent_ends();
        }
        let (nexus, single, asked) = (channel.nexus, channel.single, channel.asked);
        if !single {
            return;
        }
        let _ = others;
        // A SINGLE login's response says that everything older of the nexus is over. A channel that
        // logged in while this one asked may be the younger one to the target: nobody here knows.
        self.nexus_since[nexus] = self.moment;
        for (lun, write, _) in
            self.limbo[nexus].extract_if(.., |(_, _, logged_in)| *logged_in < asked)
        {
            let how = "a SINGLE login of its nexus was accepted after its channel had died";
            self.laws.end_write(lun, write, WriteEnd::Unknown, how);
        }
        // What is over may have come to anything.
        let _ = self.reserving.on_single_login(nexus, asked, self.moment);
        for copy in &mut self.copies {
            copy.take_if(|copy| {
                copy.nexus == nexus && copy.lost.is_some_and(|logged_in| logged_in < asked)
            });
        }
        self.laws.forget_nexus(nexus);
        let mut alone = true;
        for other in 0..self.channels.len() {
            if other == number || self.channels[other].nexus != nexus {
                continue;
            }
            alone = false;
            if self.channels[other].logged_in >= asked {
                continue;
            }
            let tags: Vec<Tag> =
                self.channels[other].sent.iter().flatten().map(|sent| sent.tag).collect();
            for tag in tags {
                let how = "a SINGLE login of its nexus was accepted on another channel";
                let Some(mut sent) = self.channels[other].finish(tag) else { continue };
                let purpose = std::mem::replace(&mut sent.purpose, Purpose::Over);
                // An answer that was on its way may still come.
                let kept = Sent { abort_sent: None, ..sent };
                self.end(kept.lun, purpose, how);
                self.channels[other].sent[tag.index()] = Some(kept);
            }
        }
        if alone {
            for (lun, unit) in UNITS.iter().enumerate().filter(|(_, unit)| !unit.comes_and_goes) {
                let _ = unit;
                self.laws.owe(nexus, lun, self.moment, self.moment, "the login of a new nexus");
            }
        }
    }

    /// Ends `purpose` without an answer.
    fn end(&mut self, lun: usize, purpose: Purpose, how: &'static str) {
        match purpose {
            Purpose::Read(read, _) | Purpose::Compare(read, _) => self.laws.abandon_read(lun, read),
            Purpose::Write(write) => self.laws.end_write(lun, write, WriteEnd::Unknown, how),
            Purpose::CompareAndWrite(read, write, _) => {
                self.laws.abandon_read(lun, read);
                self.laws.end_write(lun, write, WriteEnd::Unknown, how);
            }
            Purpose::Reserving(name) => {
                // What is over may have come to anything.
                let _ = self.reserving.end(lun, name, Answer::Over, self.moment);
            }
            Purpose::Copy(to) => self.copies[to] = None,
            Purpose::OrZeros | Purpose::Other { .. } | Purpose::Management(_) | Purpose::Over => {}
        }
    }

    fn close(&mut self, number: usize, tag: Tag, how: &'static str) {
        let Some(sent) = self.channels[number].finish(tag) else { return };
        self.channels[number].give_place(sent.place);
        self.end(sent.lun, sent.purpose, how);
    }

    fn on_lost(&mut self, number: usize, tag: Tag) {
        let Channel { nexus, logged_in, .. } = self.channels[number];
        let Some(sent) = self.channels[number].finish(tag) else { return };
        self.channels[number].give_place(sent.place);
        match sent.purpose {
            // It may still land, until a SINGLE login says that it will not.
            Purpose::Write(write) => self.limbo[nexus].push((sent.lun, write, logged_in)),
            Purpose::CompareAndWrite(read, write, _) => {
                self.laws.abandon_read(sent.lun, read);
                self.limbo[nexus].push((sent.lun, write, logged_in));
            }
            Purpose::Reserving(name) => self.reserving.lose(sent.lun, name, logged_in),
            Purpose::Copy(to) => {
                if let Some(copy) = &mut self.copies[to] {
                    copy.lost = Some(logged_in);
                }
            }
            purpose => self.end(sent.lun, purpose, "its channel died"),
        }
    }

    fn on_function(&mut self, number: usize, tag: Tag, code: u8) {
        let Some(sent) = self.channels[number].finish(tag) else { return };
        let Purpose::Management(function) = sent.purpose else { return };
        if code != 0 {
            let aborted: Vec<Tag> = self.channels[number]
                .sent
                .iter()
                .flatten()
                .filter(|sent| sent.abort_sent.is_some())
                .map(|sent| sent.tag)
                .collect();
            // What an initiator does next: it gives the channel up.
            if !aborted.is_empty() && !self.ending || self.random.chance(1, 4) {
                self.channels[number].initiator.disconnect();
            }
            for tag in aborted {
                if let Some(sent) = self.channels[number].sent[tag.index()].as_mut() {
                    sent.abort_sent = None;
                }
            }
            return;
        }
        self.counts.functions += 1;
        if function != TaskManagementFunction::LogicalUnitReset || UNITS[sent.lun].comes_and_goes {
            return;
        }
        let nexus = self.channels[number].nexus;
        for other in 0..self.limbo.len() {
            let channels = self.channels.iter().filter(|channel| channel.nexus == other);
            // Answers on two channels overtake each other, so nothing can be said of their order.
            if other == nexus || channels.count() != 1 || self.nexus_since[other] == 0 {
                continue;
            }
            if self.nexus_since[other] < sent.moment {
                self.laws.owe(other, sent.lun, sent.moment, self.moment, "a LOGICAL UNIT RESET");
            }
        }
    }

    fn on_response(
        &mut self,
        number: usize,
        sent: Sent,
        status: u8,
        sense: (u8, u8, u8),
        residual: Residual,
        place: Option<usize>,
    ) -> Result<(), Broken> {
        match status {
            GOOD => self.counts.good += 1,
            BUSY | TASK_SET_FULL => self.counts.refused += 1,
            RESERVATION_CONFLICT => self.counts.conflicts += 1,
            _ => self.counts.check_conditions += 1,
        }
        let Sent { lun, ref purpose, moment, .. } = sent;
        if matches!(purpose, Purpose::Over) {
            return Ok(());
        }
        self.judge_attention(number, lun, purpose, moment, status, sense)?;
        self.judge_status(number, &sent, status, sense)?;
        if let Purpose::Reserving(name) = *purpose {
            return self.on_reserving(number, &sent, name, (status, sense), place);
        }
        self.judge_access(number, &sent, status, sense)?;
        if let Purpose::Copy(to) = *purpose {
            return self.on_copied(number, &sent, to, status);
        }
        let purpose = sent.purpose;
        match purpose {
            Purpose::Write(write) => {
                let (end, how) = write_end(status, sense);
                self.laws.end_write(lun, write, end, how);
                Ok(())
            }
            Purpose::CompareAndWrite(read, write, bytes) => {
                let (end, how) = write_end(status, sense);
                // What it was compared with was there before what it wrote.
                let start = place.unwrap_or(0);
                let data = self.channels[number].initiator.data(start..start + bytes as usize);
                let judged = match (status, sense.0) {
                    (GOOD, _) => self.laws.end_read(lun, read, data),
                    (CHECK_CONDITION, MISCOMPARE) => {
                        self.laws.end_write(lun, write, end, how);
                        return self.laws.end_miscompare(lun, read, data);
                    }
                    _ => {
                        self.laws.abandon_read(lun, read);
                        Ok(())
                    }
                };
                self.laws.end_write(lun, write, end, how);
                judged
            }
            Purpose::Compare(read, bytes) => {
                let start = place.unwrap_or(0);
                let data = self.channels[number].initiator.data(start..start + bytes as usize);
                let all = usize::try_from(read.blocks()).unwrap_or(0) * BLOCK_BYTES as usize;
                let data: Vec<u8> = data.iter().copied().cycle().take(all).collect();
                match (status, sense.0) {
                    (GOOD, _) => self.laws.end_read(lun, read, &data),
                    (CHECK_CONDITION, MISCOMPARE) => self.laws.end_miscompare(lun, read, &data),
                    _ => {
                        self.laws.abandon_read(lun, read);
                        Ok(())
                    }
                }
            }
            Purpose::Read(read, bytes) if status == GOOD => {
                if residual != Residual::None {
                    let text = format!("channel {number}: a whole read has residual {residual:?}");
                    return broken(Law::Protocol, text);
                }
                let start = place.unwrap_or(0);
                let data = self.channels[number].initiator.data(start..start + bytes as usize);
                self.laws.end_read(lun, read, data)
            }
            Purpose::Read(read, _) => {
                self.laws.abandon_read(lun, read);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn judge_attention(
        &mut self,
        number: usize,
        lun: usize,
        purpose: &Purpose,
        moment: u64,
        status: u8,
        sense: (u8, u8, u8),
    ) -> Result<(), Broken> {
        let nexus = self.channels[number].nexus;
        let is_attention = status == CHECK_CONDITION && sense.0 == UNIT_ATTENTION;
        let took = matches!(purpose, Purpose::Other { takes_attention: true, .. });
        if is_attention || took {
            self.laws.on_attention(nexus, lun, self.moment);
            return Ok(());
        }
        let ignores = matches!(purpose, Purpose::Other { ignores_attention: true, .. });
        let absent = status == CHECK_CONDITION && (sense.0, sense.1) == (ILLEGAL_REQUEST, 0x25);
        // A command that was held too long is refused before it is looked at (SAM-6 5.3.3: BUSY goes
        // before a unit attention, which stays).
        let refused = matches!(status, BUSY | RESERVATION_CONFLICT);
        if ignores || absent || refused { Ok(()) } else { self.laws.on_answer(nexus, lun, moment) }
    }

    /// Who is kept out by reservations gets a conflict, and who is let in gets none.
    fn judge_access(
        &self,
        number: usize,
        sent: &Sent,
        status: u8,
        sense: (u8, u8, u8),
    ) -> Result<(), Broken> {
        let &Sent { lun, class, moment, .. } = sent;
        let nexus = self.channels[number].nexus;
        let (fits, how) = match (status, sense.0) {
            (RESERVATION_CONFLICT, _) => {
                let fits = self.reserving.may_be_kept_out(lun, nexus, class, moment);
                (fits, "ended with RESERVATION CONFLICT although nothing kept it out")
            }
            (GOOD, _) | (CHECK_CONDITION, MISCOMPARE) => {
                let fits = self.reserving.may_be_let_in(lun, nexus, class, moment);
                (fits, "was carried out although a reservation had kept it out since before")
            }
            _ => (true, ""),
        };
        if fits {
            return Ok(());
        }
        let (purpose, ways) = (&sent.purpose, self.reserving.words(lun));
        let text = format!("nexus {nexus} LUN {lun}: a command {how}: {purpose:?}; {ways}");
        broken(Law::Reservation, text)
    }

    /// Every answer but GOOD has a cause.
    fn judge_status(
        &mut self,
        number: usize,
        sent: &Sent,
        status: u8,
        sense: (u8, u8, u8),
    ) -> Result<(), Broken> {
        let &Sent { lun, ref purpose, at, .. } = sent;
        let outage = self
            .faults
            .last_outage
            .is_none_or(|outage| outage >= at || self.now - outage < OUTAGE_NS);
        let invalid = matches!(purpose, Purpose::Other { invalid: true, .. });
        let explained = match (status, sense.0) {
            (GOOD, _) => !invalid,
            // Conflicts are judged by themselves.
            (TASK_SET_FULL | RESERVATION_CONFLICT, _) | (CHECK_CONDITION, UNIT_ATTENTION) => true,
            // A unit that is being removed.
            (BUSY, _) if UNITS[lun].comes_and_goes => true,
            // TARGET PORT IN STANDBY STATE.
            (CHECK_CONDITION, NOT_READY) if (sense.1, sense.2) == (0x04, 0x0B) => {
                self.active_at[lun] >= at
            }
            (BUSY, _) | (CHECK_CONDITION, NOT_READY | ABORTED_COMMAND) => {
                outage && UNITS[lun].stores
            }
            (CHECK_CONDITION, ILLEGAL_REQUEST) => {
                // Those about reservations are judged by themselves, as conflicts are.
                invalid || UNITS[lun].comes_and_goes || matches!(purpose, Purpose::Reserving(_))
            }
            (CHECK_CONDITION, DATA_PROTECT) => matches!(
                purpose,
                Purpose::Write(_)
                    | Purpose::CompareAndWrite(..)
                    | Purpose::OrZeros
                    | Purpose::Copy(_)
            ),
            (CHECK_CONDITION, COPY_ABORTED) => matches!(purpose, Purpose::Copy(_)),
            (CHECK_CONDITION, MISCOMPARE) => {
                matches!(purpose, Purpose::Compare(..) | Purpose::CompareAndWrite(..))
            }
            _ => false,
        };
        if explained {
            return Ok(());
        }
        let (key, code, qualifier) = sense;
        let text = format!(
            "channel {number} LUN {lun}: status {status:#04x}, sense {key:x}/{code:02x}/{qualifier:02x} \
             without a cause, for {purpose:?}"
        );
        broken(Law::Status, text)
    }
}

/// How a write that was answered ended.
fn write_end(status: u8, sense: (u8, u8, u8)) -> (WriteEnd, &'static str) {
    match (status, sense.0) {
        (GOOD, _) => (WriteEnd::Done, "it was answered with GOOD"),
        (CHECK_CONDITION, ABORTED_COMMAND) => {
            (WriteEnd::Unknown, "it was answered with ABORTED COMMAND")
        }
        _ => (WriteEnd::Refused, "it was refused"),
    }
}
