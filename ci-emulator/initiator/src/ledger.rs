//! The initiator's account of one channel: tags, credits, and what the target may answer. Decides
//! and touches nothing: bytes of replies come in, events and breaches of the protocol come out.
//!
//! On the path of a command nothing allocates and nothing is hashed: a tag is an index and the
//! generation of that index.

use std::collections::VecDeque;
use std::fmt;

use lunar_srp::iu::{self, Malformed, Reply, Residual, Response, SolicitedNotification};
use lunar_srp::login::{LoginReject, OtherChannels};

/// SAM-6 status CHECK CONDITION.
const CHECK_CONDITION: u8 = 2;
/// Violations kept with their details; all are counted.
const VIOLATIONS_KEPT: usize = 64;

/// Names one request. Its wire form is the SRP tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    index: u32,
    generation: u32,
}

impl Tag {
    /// A dense number, below the initiator's `slots()`, that no other outstanding request has: an
    /// index for the caller's own records.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The SRP tag.
    #[must_use]
    pub fn to_wire(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The tag of an SRP tag.
    #[must_use]
    pub fn from_wire(tag: u64) -> Self {
        Self { index: tag as u32, generation: (tag >> 32) as u32 }
    }
}

/// What the initiator learns by polling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The target accepted the login; commands may be submitted.
    LoggedIn {
        /// Requests that may be outstanding.
        request_limit: u32,
        /// Longest IU in bytes that the target takes.
        it_iu_bytes_max: u32,
        /// What became of the nexus's other channels.
        others: OtherChannels,
    },
    /// The target refused the login.
    LoginRejected {
        /// The reason; `None` for a code that SRP does not define.
        reason: Option<LoginReject>,
        /// The reason's code.
        code: u32,
    },
    /// There was no answer to the login from an SRP target: nobody listens, the connection manager
    /// refused, or the accept carried nonsense (a violation; [`Event::Disconnected`] follows then).
    LoginFailed,
    /// A command ended.
    Response {
        /// The command.
        tag: Tag,
        /// SCSI status.
        status: u8,
        /// Sense data; allocates only when there is some.
        sense: Option<Box<[u8]>>,
        /// Residual of the data-out buffer.
        data_out_residual: Residual,
        /// Residual of the data-in buffer.
        data_in_residual: Residual,
        /// For a command that SRP refused ([`iu::response_code`]).
        response_code: Option<u8>,
    },
    /// A task management function ended.
    TaskManagementResponse {
        /// The function's request.
        tag: Tag,
        /// How ([`iu::response_code`]).
        code: u8,
    },
    /// A task management function reported success, and this command was in its scope: it is over
    /// and will not be answered. Comes before that function's [`Event::TaskManagementResponse`].
    Aborted {
        /// The command.
        tag: Tag,
    },
    /// The target reports an asynchronous event.
    AsynchronousEvent {
        /// The logical unit it is about.
        lun: [u8; 8],
        /// Sense data.
        sense: Box<[u8]>,
    },
    /// The target announces that it closes the channel.
    TargetLogout {
        /// Why (SRP 6.6).
        reason: u32,
    },
    /// The channel went down while this request was outstanding: whether it was carried out is not
    /// known. Comes before [`Event::Disconnected`].
    Lost {
        /// The request.
        tag: Tag,
    },
    /// The channel is gone, and nothing of it touches the initiator's memory any more.
    Disconnected,
}

/// Why a request was not sent. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// There is no live channel.
    NotLoggedIn,
    /// The target's credits are used up (one is kept for task management).
    NoCredit,
    /// As many commands as the configured queue depth are outstanding, or the send queue is full.
    QueueFull,
    /// The data range does not lie in the initiator's data memory.
    OutOfRange,
    /// The IU is longer than the target takes, or cannot be encoded.
    TooLong,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLoggedIn => "the initiator has no live channel; log in first",
            Self::NoCredit => "the target's request limit is used up; poll for responses",
            Self::QueueFull => "the queue depth is used up; poll for responses",
            Self::OutOfRange => "the data range is not inside the initiator's data memory",
            Self::TooLong => "the information unit is longer than the target takes",
        })
    }
}

impl std::error::Error for SubmitError {}

/// What the target did against the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Bytes that are no IU a target may send.
    Malformed(Malformed),
    /// A response with a tag that was never given out, was answered before, or whose request was
    /// reported as aborted.
    UnknownTag(u64),
    /// More credits than the login granted.
    CreditsExceeded {
        /// What the initiator could send now.
        available: i64,
        /// What it has outstanding.
        outstanding: u32,
        /// What the login granted.
        limit: i64,
    },
    /// A residual that the command's buffer does not allow.
    Residual {
        /// The command.
        tag: Tag,
        /// What was said.
        residual: Residual,
        /// What was offered in that direction, in bytes.
        offered_bytes: u32,
    },
    /// CHECK CONDITION without sense data (SAM-6 5.3.1).
    NoSense(Tag),
    /// A task management response without a response code (SRP 6.9).
    NoResponseCode(Tag),
    /// Solicited notification that was not asked for, or is missing (SRP 5.2).
    SolicitedNotification(Tag),
    /// A login response that is none, has another tag, or grants nothing.
    LoginResponse(&'static str),
}

/// What is told to the target in answer to one of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// SRP_CRED_RSP with this tag.
    Credit(u64),
    /// SRP_AER_RSP with this tag.
    Event(u64),
}

/// What a command offered, to check its response by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The LUN field.
    pub lun: [u8; 8],
    /// Bytes of the data-out buffer.
    pub out_bytes: u32,
    /// Bytes of the data-in buffer.
    pub in_bytes: u32,
    /// Wish for solicited events.
    pub solicited: SolicitedNotification,
}

/// Which commands a task management function ends when it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One task.
    Task(Tag),
    /// Every task of this channel on the logical unit that was sent before.
    LogicalUnit([u8; 8]),
    /// None (CLEAR ACA, unknown codes).
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Command(Offer),
    TaskManagement {
        scope: Scope,
        solicited: SolicitedNotification,
    },
    /// Not answered by the target: logout, answers to the target, raw bytes.
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// The target owes an answer.
    Waiting,
    /// Nothing more will come; the slot is kept until its SEND completed.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u32,
    state: State,
    /// The SEND was posted and did not complete.
    sending: bool,
    /// Order of submission.
    sequence: u64,
    purpose: Purpose,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: bool,
    limit: i64,
    available: i64,
    /// Requests that hold a credit and were not answered.
    outstanding: u32,
    /// Commands among them.
    commands: u32,
    commands_max: u32,
    /// Commands may have ended without an answer, so that their credits are back already.
    silent_ends: bool,
    sequence: u64,
    violations: VecDeque<Violation>,
    violation_count: u64,
}

impl Ledger {
    /// An account for at most `commands_max` outstanding commands and `spare` other requests.
    #[must_use]
    pub fn new(commands_max: u32, spare: u32) -> Self {
        let count = commands_max + spare;
        let slot = Slot {
            generation: 1,
            state: State::Free,
            sending: false,
            sequence: 0,
            purpose: Purpose::Unanswered,
        };
        Self {
            slots: vec![slot; count as usize],
            free: (0..count).rev().collect(),
            live: false,
            limit: 0,
            available: 0,
            outstanding: 0,
            commands: 0,
            commands_max,
            silent_ends: false,
            sequence: 0,
            violations: VecDeque::new(),
            violation_count: 0,
        }
    }

    /// Chooses which tags are given out, before the first one is: those of different spaces are
    /// different. The tags of all channels of a nexus must be (SAM-6 4.8: a command identifier is
    /// unique in its I_T_L nexus).
    pub fn choose_tags(&mut self, space: u8) {
        for slot in &mut self.slots {
            slot.generation = u32::from(space) << 24 | 1;
        }
    }

    /// Slots, free or not: tags' indexes are below.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Requests the target may still be sent.
    #[must_use]
    pub fn available(&self) -> i64 {
        self.available
    }

    /// Requests that were not answered.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// The first breaches, oldest first.
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.violations.iter()
    }

    /// How many breaches there were.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.violation_count
    }

    /// Records a breach.
    pub fn accuse(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push_back(violation);
        }
    }

    /// A login was accepted with `limit` credits.
    pub fn open(&mut self, limit: i32) {
        self.live = true;
        self.limit = limit.into();
        self.available = limit.into();
        self.silent_ends = false;
    }

    /// From now on, and until the next login, somebody else may end commands of this channel without
    /// an answer: task management over another channel or nexus.
    pub fn expect_silent_ends(&mut self) {
        self.silent_ends = true;
    }

    /// No more requests may be sent; those outstanding stay so.
    pub fn close(&mut self) {
        self.live = false;
    }

    /// The channel is gone: every outstanding request is lost, oldest first, and every slot free.
    pub fn lose_all(&mut self, events: &mut Vec<Event>) {
        self.live = false;
        let mut lost: Vec<_> = self.waiting().collect();
        lost.sort_unstable();
        events.extend(lost.into_iter().map(|(_, tag)| Event::Lost { tag }));
        for index in 0..self.slots.len() {
            if self.slots[index].state != State::Free {
                self.finish(index);
                self.sent(index);
            }
        }
    }

    /// Outstanding requests that the target owes an answer, with their order of submission.
    fn waiting(&self) -> impl Iterator<Item = (u64, Tag)> {
        (0_u32..).zip(&self.slots).filter_map(|(index, slot)| {
            let answerable = slot.purpose != Purpose::Unanswered;
            (slot.state == State::Waiting && answerable)
                .then_some((slot.sequence, Tag { index, generation: slot.generation }))
        })
    }

    /// Takes a credit and a slot for a command. One credit stays for task management unless the
    /// target granted just one.
    ///
    /// # Errors
    /// [`SubmitError::NotLoggedIn`], [`SubmitError::NoCredit`], [`SubmitError::QueueFull`].
    #[inline]
    pub fn claim_command(&mut self, offer: Offer) -> Result<Tag, SubmitError> {
        if self.commands >= self.commands_max {
            return Err(SubmitError::QueueFull);
        }
        let reserve = i64::from(self.limit > 1);
        let tag = self.claim(Purpose::Command(offer), 1 + reserve)?;
        self.commands += 1;
        Ok(tag)
    }

    /// Takes a credit and a slot for a task management function.
    ///
    /// # Errors
    /// As [`Self::claim_command`].
    pub fn claim_task_management(
        &mut self,
        scope: Scope,
        solicited: SolicitedNotification,
    ) -> Result<Tag, SubmitError> {
        let tag = self.claim(Purpose::TaskManagement { scope, solicited }, 1)?;
        self.silent_ends = true;
        Ok(tag)
    }

    /// Takes a slot for something that needs no credit and gets no answer.
    ///
    /// # Errors
    /// As [`Self::claim_command`].
    pub fn claim_unanswered(&mut self) -> Result<Tag, SubmitError> {
        self.claim(Purpose::Unanswered, 0)
    }

    /// Takes a slot, and a credit if at least `credits_needed` (when not 0) are there.
    #[inline]
    fn claim(&mut self, purpose: Purpose, credits_needed: i64) -> Result<Tag, SubmitError> {
        if !self.live {
            return Err(SubmitError::NotLoggedIn);
        }
        if credits_needed > 0 && self.available < credits_needed {
            return Err(SubmitError::NoCredit);
        }
        let index = self.free.pop().ok_or(SubmitError::QueueFull)?;
        if credits_needed > 0 {
            self.available -= 1;
            self.outstanding += 1;
        }
        self.sequence += 1;
        let slot = &mut self.slots[index as usize];
        slot.state = State::Waiting;
        slot.sending = true;
        slot.sequence = self.sequence;
        slot.purpose = purpose;
        Ok(Tag { index, generation: slot.generation })
    }

    /// The request could not be sent: its slot and credit come back.
    pub fn withdraw(&mut self, tag: Tag) {
        if self.slots[tag.index()].purpose != Purpose::Unanswered {
            self.available += 1;
        }
        self.finish(tag.index());
        self.sent(tag.index());
    }

    /// The SEND of slot `index` completed (or was flushed).
    #[inline]
    pub fn sent(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if !slot.sending {
            return;
        }
        slot.sending = false;
        match (slot.state, slot.purpose) {
            (State::Over, _) | (State::Waiting, Purpose::Unanswered) => self.release(index),
            _ => {}
        }
    }

    /// Nothing more will come for slot `index`.
    #[inline]
    fn finish(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.state != State::Waiting {
            return;
        }
        slot.state = State::Over;
        match slot.purpose {
            Purpose::Command(_) => {
                self.commands -= 1;
                self.outstanding -= 1;
            }
            Purpose::TaskManagement { .. } => self.outstanding -= 1,
            Purpose::Unanswered => {}
        }
        if !slot.sending {
            self.release(index);
        }
    }

    #[inline]
    fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index as u32);
    }

    /// The target sent something. Gives what it wants to be told, if anything.
    #[inline]
    pub fn on_reply(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Option<Answer> {
        match iu::parse_reply(bytes) {
            Ok(Reply::Response(response)) => {
                self.on_response(&response, events);
                None
            }
            Ok(Reply::CredRequest { tag, request_limit_delta, .. }) => {
                self.grant(request_limit_delta);
                Some(Answer::Credit(tag))
            }
            Ok(Reply::AerRequest(event)) => {
                self.grant(event.request_limit_delta);
                events.push(Event::AsynchronousEvent { lun: event.lun, sense: event.sense.into() });
                Some(Answer::Event(event.tag))
            }
            Ok(Reply::Logout { reason, .. }) => {
                events.push(Event::TargetLogout { reason });
                None
            }
            Err(malformed) => {
                self.accuse(Violation::Malformed(malformed));
                None
            }
        }
    }

    #[inline]
    fn on_response(&mut self, response: &Response<'_>, events: &mut Vec<Event>) {
        let tag = Tag::from_wire(response.tag);
        let purpose = match self.slots.get(tag.index()) {
            Some(slot) if slot.generation == tag.generation && slot.state == State::Waiting => {
                slot.purpose
            }
            _ => Purpose::Unanswered,
        };
        match purpose {
            Purpose::Command(offer) => {
                self.finish(tag.index());
                self.judge_command(tag, &offer, response);
                events.push(Event::Response {
                    tag,
                    status: response.status,
                    sense: (!response.sense.is_empty()).then(|| response.sense.into()),
                    data_out_residual: response.data_out_residual,
                    data_in_residual: response.data_in_residual,
                    response_code: response.response_code,
                });
            }
            Purpose::TaskManagement { scope, solicited } => {
                let sequence = self.slots[tag.index()].sequence;
                self.finish(tag.index());
                let code = response.response_code.unwrap_or_else(|| {
                    self.accuse(Violation::NoResponseCode(tag));
                    iu::response_code::FUNCTION_FAILED
                });
                let success = code == iu::response_code::NO_FAILURE;
                if success {
                    self.abort(scope, sequence, events);
                }
                if response.solicited != solicited.wanted(success) {
                    self.accuse(Violation::SolicitedNotification(tag));
                }
                events.push(Event::TaskManagementResponse { tag, code });
            }
            Purpose::Unanswered => self.accuse(Violation::UnknownTag(response.tag)),
        }
        self.grant(response.request_limit_delta);
    }

    #[inline]
    fn judge_command(&mut self, tag: Tag, offer: &Offer, response: &Response<'_>) {
        for (residual, offered_bytes) in [
            (response.data_out_residual, offer.out_bytes),
            (response.data_in_residual, offer.in_bytes),
        ] {
            if let Residual::Under(bytes) = residual
                && bytes > offered_bytes
            {
                self.accuse(Violation::Residual { tag, residual, offered_bytes });
            }
        }
        if response.status == CHECK_CONDITION && response.sense.is_empty() {
            self.accuse(Violation::NoSense(tag));
        }
        let success = response.status == 0 && response.response_code.unwrap_or(0) == 0;
        if response.solicited != offer.solicited.wanted(success) {
            self.accuse(Violation::SolicitedNotification(tag));
        }
    }

    /// The commands in `scope` that were sent before `sequence` are over.
    fn abort(&mut self, scope: Scope, sequence: u64, events: &mut Vec<Event>) {
        let mut over: Vec<(u64, Tag)> = self
            .waiting()
            .filter(|(sent, tag)| match (self.slots[tag.index()].purpose, scope) {
                (Purpose::Command(_), Scope::Task(wanted)) => *tag == wanted,
                (Purpose::Command(offer), Scope::LogicalUnit(lun)) => {
                    offer.lun == lun && *sent < sequence
                }
                _ => false,
            })
            .collect();
        over.sort_unstable();
        for (_, tag) in over {
            self.finish(tag.index());
            events.push(Event::Aborted { tag });
        }
    }

    #[inline]
    fn grant(&mut self, delta: i32) {
        self.available += i64::from(delta);
        // The credit of a command that an abort ended comes back with the next response, which may
        // be ahead of the abort's own.
        let outstanding = if self.silent_ends { 0 } else { i64::from(self.outstanding) };
        if self.available + outstanding > self.limit {
            self.accuse(Violation::CreditsExceeded {
                available: self.available,
                outstanding: self.outstanding,
                limit: self.limit,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lunar_srp::iu::{RESPONSE_BYTES_MAX, response_code};

    const LUN: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
    const QUIET: SolicitedNotification = SolicitedNotification::new(false, false);
    const OFFER: Offer = Offer { lun: LUN, out_bytes: 0, in_bytes: 4096, solicited: QUIET };

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(4, 2);
        ledger.open(4);
        ledger
    }

    fn reply(ledger: &mut Ledger, response: &Response<'_>) -> Vec<Event> {
        let mut bytes = [0; RESPONSE_BYTES_MAX];
        let length = iu::encode_response(response, &mut bytes).expect("fits");
        let mut events = Vec::new();
        assert_eq!(ledger.on_reply(&bytes[..length], &mut events), None);
        events
    }

    fn good(tag: Tag) -> Response<'static> {
        Response { tag: tag.to_wire(), request_limit_delta: 1, ..Response::default() }
    }

    fn function_complete(tag: Tag, request_limit_delta: i32) -> Response<'static> {
        let response_code = Some(response_code::NO_FAILURE);
        Response { request_limit_delta, response_code, ..good(tag) }
    }

    fn accused(ledger: &Ledger) -> Vec<Violation> {
        ledger.violations().cloned().collect()
    }

    #[test]
    fn one_credit_is_kept_for_task_management() {
        let mut ledger = ledger();
        for _ in 0..3 {
            ledger.claim_command(OFFER).unwrap();
        }
        assert_eq!(ledger.claim_command(OFFER), Err(SubmitError::NoCredit));
        ledger.claim_task_management(Scope::Nothing, QUIET).unwrap();
        assert_eq!(ledger.claim_task_management(Scope::Nothing, QUIET), Err(SubmitError::NoCredit));
        ledger.claim_unanswered().unwrap();
    }

    #[test]
    fn a_slot_is_used_again_only_after_answer_and_send_completion() {
        let mut ledger = Ledger::new(1, 0);
        ledger.open(8);
        let tag = ledger.claim_command(OFFER).unwrap();
        assert_eq!(reply(&mut ledger, &good(tag)).len(), 1);
        assert_eq!(ledger.claim_command(OFFER), Err(SubmitError::QueueFull));
        ledger.sent(tag.index());
        let again = ledger.claim_command(OFFER).unwrap();
        assert_eq!(again.index(), tag.index());
        assert_ne!(again, tag);
    }

    #[test]
    fn a_second_response_and_a_made_up_tag_are_breaches() {
        let mut ledger = ledger();
        let tag = ledger.claim_command(OFFER).unwrap();
        reply(&mut ledger, &good(tag));
        let mut second = good(tag);
        second.request_limit_delta = 0;
        assert_eq!(reply(&mut ledger, &second), []);
        ledger.sent(tag.index());
        reply(&mut ledger, &second);
        second.tag = 0x7777_0000_7777;
        reply(&mut ledger, &second);
        let unknown = Violation::UnknownTag;
        let expected = [unknown(tag.to_wire()), unknown(tag.to_wire()), unknown(second.tag)];
        assert_eq!(accused(&ledger), expected);
    }

    #[test]
    fn credits_beyond_the_grant_are_a_breach() {
        let mut ledger = ledger();
        let tag = ledger.claim_command(OFFER).unwrap();
        reply(&mut ledger, &Response { request_limit_delta: 2, ..good(tag) });
        let expected = Violation::CreditsExceeded { available: 5, outstanding: 0, limit: 4 };
        assert_eq!(accused(&ledger), [expected]);
    }

    #[test]
    fn residuals_sense_and_notification_are_checked() {
        let mut ledger = ledger();
        let tag = ledger.claim_command(OFFER).unwrap();
        let under = Residual::Under(4097);
        reply(
            &mut ledger,
            &Response { data_in_residual: under, status: 2, solicited: true, ..good(tag) },
        );
        let expected = [
            Violation::Residual { tag, residual: under, offered_bytes: 4096 },
            Violation::NoSense(tag),
            Violation::SolicitedNotification(tag),
        ];
        assert_eq!(accused(&ledger), expected);
    }

    #[test]
    fn abort_task_set_ends_what_was_sent_before_it_on_its_unit_and_nothing_else() {
        let mut ledger = Ledger::new(8, 2);
        ledger.open(10);
        let before = ledger.claim_command(OFFER).unwrap();
        let elsewhere = ledger.claim_command(Offer { lun: [0; 8], ..OFFER }).unwrap();
        let function = ledger.claim_task_management(Scope::LogicalUnit(LUN), QUIET).unwrap();
        let after = ledger.claim_command(OFFER).unwrap();
        let events = reply(&mut ledger, &function_complete(function, 2));
        let code = response_code::NO_FAILURE;
        let expected =
            [Event::Aborted { tag: before }, Event::TaskManagementResponse { tag: function, code }];
        assert_eq!(events, expected);
        assert_eq!(ledger.outstanding(), 2);
        reply(&mut ledger, &good(elsewhere));
        reply(&mut ledger, &good(after));
        assert_eq!((ledger.violation_count(), ledger.available()), (0, 10));
        // A late answer of the aborted command is exactly what must not happen.
        reply(&mut ledger, &Response { request_limit_delta: 0, ..good(before) });
        assert_eq!(accused(&ledger), [Violation::UnknownTag(before.to_wire())]);
    }

    #[test]
    fn failed_function_ends_nothing_but_itself() {
        let mut ledger = ledger();
        let command = ledger.claim_command(OFFER).unwrap();
        let function = ledger.claim_task_management(Scope::Task(command), QUIET).unwrap();
        let code = response_code::FUNCTION_FAILED;
        let events = reply(&mut ledger, &Response { response_code: Some(code), ..good(function) });
        assert_eq!(events, [Event::TaskManagementResponse { tag: function, code }]);
        assert_eq!(ledger.outstanding(), 1);
    }

    #[test]
    fn lost_requests_come_oldest_first_and_leave_every_slot_free() {
        let mut ledger = ledger();
        let first = ledger.claim_command(OFFER).unwrap();
        let second = ledger.claim_command(OFFER).unwrap();
        reply(&mut ledger, &good(first));
        ledger.sent(first.index());
        let third = ledger.claim_command(OFFER).unwrap();
        assert_eq!(third.index(), first.index());
        let mut events = Vec::new();
        ledger.lose_all(&mut events);
        assert_eq!(events, [Event::Lost { tag: second }, Event::Lost { tag: third }]);
        assert_eq!(ledger.claim_command(OFFER), Err(SubmitError::NotLoggedIn));
        ledger.open(6);
        for _ in 0..4 {
            ledger.claim_command(OFFER).unwrap();
        }
        ledger.claim_unanswered().unwrap();
        ledger.claim_unanswered().unwrap();
        assert_eq!(ledger.claim_unanswered(), Err(SubmitError::QueueFull));
    }

    #[test]
    fn credit_request_grants_and_is_answered() {
        let mut ledger = ledger();
        let command = ledger.claim_command(OFFER).unwrap();
        let function = ledger.claim_task_management(Scope::Task(command), QUIET).unwrap();
        reply(&mut ledger, &function_complete(function, 1));
        assert_eq!(ledger.available(), 3, "the aborted command's credit is still owed");
        let mut bytes = [0; 16];
        iu::encode_credit_request(99, 1, false, &mut bytes).expect("fits");
        let answer = ledger.on_reply(&bytes, &mut Vec::new());
        assert_eq!(answer, Some(Answer::Credit(99)));
        assert_eq!((ledger.available(), ledger.violation_count()), (4, 0));
    }

    #[test]
    fn noise_is_a_breach_and_nothing_else() {
        let mut ledger = ledger();
        let mut events = Vec::new();
        for bytes in [&[][..], &[0x02; 48], &[0xc1; 36], &[0xc1]] {
            assert_eq!(ledger.on_reply(bytes, &mut events), None);
        }
        assert_eq!((ledger.violation_count(), events.len()), (4, 0));
    }
}
