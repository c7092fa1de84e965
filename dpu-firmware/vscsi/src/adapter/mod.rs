//! The life of one adapter (PAPR, virtual SCSI): from registering its queue over the handshake, the login
//! and the client's requests to draining, and again from the start.
//!
//! A state machine and nothing else: [`Adapter::on_event`] gets what happened and says what to do.
//! Who keeps requests and calls the hypervisor is the caller; its part of the contract:
//!
//! * It carries out [`Action`]s in their order, and reports the outcome of each hypervisor call before
//!   entries that arrived later.
//! * Each [`Action::Fetch`] becomes one request, and each request ends with one
//!   [`Event::RequestEnded`], after its last copy and its answer. Nothing of the client's memory is
//!   touched for it after that.
//! * What waits to be sent goes in order. An entry that found the client's queue full is sent again when
//!   [`Action::SendAgain`] says, and all others wait behind it.
//!
//! What SCST and ibmvscsis call this: NO_QUEUE and WAIT_ENABLED are [`State::Disabled`];
//! WAIT_CONNECTION, CONNECTED and SRP_PROCESSING are [`State::WaitConnection`], [`State::Connected`] and
//! [`State::LoggedIn`]; UNCONFIGURING, WAIT_IDLE, ERR_DISCONNECT and ERR_DISCONNECT_RECONNECT are
//! [`State::Draining`] with what comes after it; ERR_DISCONNECTED is [`State::Freeing`].

mod reason;

use lunar_srp::channel::Credit;
use lunar_srp::iu::{self, CommandHead, IuError, Malformed, TaskManagement};
use lunar_srp::login::{LoginReject, LoginRequest, LoginResponse};
use lunar_srp::wire::opcode;

use crate::crq::{Entry, Incoming, IuKind, Request, TransportEvent};
use crate::hcall::{Copied, Freed, Registered, Sent};
use crate::mad::{AdapterInformation, Mad, MadKind, MadStatus, OsType, ServerPartition, Step};
use crate::{IU_BYTES_MAX, login};

pub use reason::Reason;

/// Nanoseconds between two tries to send an entry to a client whose queue is full.
pub const SEND_RETRY_NS: u64 = 5_000;
/// Nanoseconds for which a client may leave its queue full.
pub const SEND_PATIENCE_NS: u64 = 30_000_000_000;
/// Nanoseconds that a suspension leaves for what is in flight; then the hypervisor gives it up.
pub const SUSPEND_NS: u64 = 30_000_000_000;
/// Most nanoseconds between two tries of a call to which the hypervisor says that it is busy.
pub const CALL_RETRY_NS_MAX: u64 = 1_000_000_000;
/// Nanoseconds for which the hypervisor may be busy; it may itself ask for a hundred seconds.
pub const CALL_PATIENCE_NS: u64 = 300_000_000_000;
/// Nanoseconds before a queue is registered again that came to no connection.
pub const REGISTER_PAUSE_NS: u64 = 1_000_000_000;
/// Most entries of the adapter's own (handshake and PING RESPONSE) that wait to be sent.
pub const OWN_SENDS_MAX: u32 = 3;

/// States of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no queue, and none is wanted.
    Disabled,
    /// H_REG_CRQ is under way, or waits to be called again.
    Registering,
    /// The queue is registered. The client has none, or the handshake is not over.
    WaitConnection,
    /// The handshake is over: datagrams are answered, and a login is.
    Connected,
    /// The client has logged in: commands run.
    LoggedIn,
    /// The connection is over. What is in flight ends, without answers.
    Draining(After),
    /// H_FREE_CRQ is under way, or waits to be called again.
    Freeing,
}

/// What comes when a connection is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The client went: its next INIT is waited for. Our queue stays, lest both sides reset each other.
    AwaitInit,
    /// The client sent INIT already.
    AnswerInit,
    /// The client logged out and may log in again.
    Connected,
    /// Our queue is freed, which tells the client, and registered again if the adapter is wanted.
    Free,
}

/// What happens to an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The configuration wants the adapter.
    Enable,
    /// The configuration does not want the adapter.
    Disable,
    /// What [`Action::Register`] came to.
    Registered(Registered),
    /// What [`Action::Free`] came to.
    Freed(Freed),
    /// What [`Action::Send`] came to. When the adapter abandoned it, [`Sent::PartnerAbsent`] will do.
    Sent(Sent),
    /// What sending a request's answer came to. The request has not ended yet.
    AnswerSent(Sent),
    /// An entry appeared in our queue.
    Arrived(Incoming),
    /// A copy to or from the client's window failed, in a way that is not merely a command's error: every
    /// failure with information units, [`Copied::WindowClosed`] and [`Copied::Failed`] with data. The
    /// request has not ended yet.
    CopyFailed(Copied),
    /// The client has more requests waiting than its limit can explain. The last of them has ended.
    Flooded,
    /// A request is over.
    RequestEnded,
    /// The [`Adapter::deadline`] has come.
    Time,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Call H_REG_CRQ with a queue in which every slot is free.
    Register,
    /// Call H_FREE_CRQ.
    Free,
    /// Send this entry.
    Send(Entry),
    /// The entry that was not taken is to be sent again at this time, in nanoseconds.
    SendAgain(u64),
    /// Copy this information unit from the client, then call [`Adapter::on_iu`].
    Fetch(Request),
    /// The connection is over, for the log. The I_T nexus is lost.
    ConnectionOver(Reason),
    /// End all that is in flight: abort tasks, and throw away what waits to be sent.
    Abandon,
    /// Tell the hypervisor (H_VIOCTL) that the client may be suspended.
    ReadyForSuspend,
    /// The hypervisor refuses the queue: the adapter is disabled until it is enabled again.
    GaveUp(Reason),
}

/// Actions, in order. At most three come of one event: the end of a connection, the news for a hypervisor
/// that suspends the client, and what becomes of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    list: [Option<Action>; 3],
}

impl Actions {
    fn push(&mut self, action: Action) {
        if let Some(free) = self.list.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(action);
        }
    }

    /// Whether there is nothing to do.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.list, [None, ..])
    }
}

impl IntoIterator for Actions {
    type Item = Action;
    type IntoIter = core::iter::Flatten<core::array::IntoIter<Option<Action>, 3>>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter().flatten()
    }
}

/// What an information unit turned out to be.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// A command, which took a credit. Its buffers are still to be read, as SRP's are.
    Command(CommandHead<'a>),
    /// A task management function, which took a credit.
    TaskManagement(TaskManagement),
    /// A login. Unless it is rejected, [`Adapter::log_in`] makes the answer.
    Login(LoginRequest, Result<(), LoginReject>),
    /// A datagram. [`Adapter::answer_mad`] makes the answer, after the [`Step`].
    Mad(Mad, Step),
    /// Nothing that is answered: the request ends.
    Nothing(Actions),
}

/// Where a suspension of the client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspension {
    None,
    /// FF09 came; what is in flight must end before this time.
    Preparing {
        until: u64,
    },
    /// The hypervisor was told that nothing is in flight.
    Ready,
}

/// One adapter of the server: its own end of one client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    server: ServerPartition,
    request_limit: u32,
    wanted: bool,
    state: State,
    /// When a hypervisor call is to be made again. `None` while it is under way.
    call_at: Option<u64>,
    /// Until when the hypervisor may be busy.
    call_until: u64,
    /// Queues registered since the last connection.
    registrations: u32,
    /// Requests that did not end.
    requests: u32,
    /// Entries of the adapter's own that wait to be sent.
    own_sends: u32,
    /// Since when the client's queue is full.
    full_since: Option<u64>,
    suspension: Suspension,
    /// Whether a request was dropped because the client was to be suspended.
    missed: bool,
    mad_outstanding: bool,
    fast_fail: bool,
    client: OsType,
    credit: Credit,
}

impl Adapter {
    /// A disabled adapter. `request_limit`: requests that the client may have outstanding, task management
    /// included (Linux keeps two for it); capped at what a login response can say.
    #[must_use]
    pub fn new(server: ServerPartition, request_limit: u32) -> Self {
        Self {
            server,
            request_limit,
            wanted: false,
            state: State::Disabled,
            call_at: None,
            call_until: 0,
            registrations: 0,
            requests: 0,
            own_sends: 0,
            full_since: None,
            suspension: Suspension::None,
            missed: false,
            mad_outstanding: false,
            fast_fail: false,
            client: OsType::default(),
            credit: Credit::new(0),
        }
    }

    /// The state.
    #[inline]
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether answers may still be copied to the client and sent. Otherwise a request just ends.
    #[inline]
    #[must_use]
    pub fn answers_wanted(&self) -> bool {
        matches!(self.state, State::Connected | State::LoggedIn)
    }

    /// Requests that did not end.
    #[must_use]
    pub fn requests_in_flight(&self) -> u32 {
        self.requests
    }

    /// Whether the client wants [`crate::response::crq_status`] to fail fast.
    #[inline]
    #[must_use]
    pub fn fast_fail(&self) -> bool {
        self.fast_fail
    }

    /// What the client said that it runs on; zero before it did.
    #[inline]
    #[must_use]
    pub fn client(&self) -> OsType {
        self.client
    }

    /// The client's credits.
    #[must_use]
    pub fn credit(&self) -> &Credit {
        &self.credit
    }

    /// When [`Event::Time`] is to be reported, in nanoseconds, if at all.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let suspension = match self.suspension {
            Suspension::Preparing { until } => Some(until),
            Suspension::None | Suspension::Ready => None,
        };
        // Never both: what is suspended has a queue, and what has one makes no calls about it.
        self.call_at.or(suspension)
    }

    /// The data path's way for a request that arrived: whether it is to be fetched, as [`Action::Fetch`] says.
    /// Otherwise nothing has happened, and [`Self::on_event`] must see the entry.
    #[inline(always)]
    #[must_use]
    pub fn take_request(&mut self, request: &Request) -> bool {
        let usual = self.state == State::LoggedIn
            && request.kind == IuKind::Srp
            && (1..=IU_BYTES_MAX).contains(&request.iu_bytes)
            && self.suspension == Suspension::None;
        self.requests = self.requests.saturating_add(usual.into());
        usual
    }

    /// The data path's way for the unit of an SRP request: the command, which took a credit. `None` when it is
    /// something else, or more is to be said: nothing has happened, and [`Self::on_iu`] must see it.
    #[inline(always)]
    #[must_use]
    pub fn take_command<'a>(&mut self, iu: &'a [u8]) -> Option<CommandHead<'a>> {
        let head = iu::command_head(iu).filter(|_| self.state == State::LoggedIn)?;
        self.admit(iu).is_ok().then_some(head)
    }

    /// The data path's way for [`Event::AnswerSent`] of [`Sent::Delivered`].
    #[inline(always)]
    pub fn answer_delivered(&mut self) {
        self.full_since = None;
    }

    /// The data path's way for a request that is over: whether nothing comes of it, as of nearly all. Otherwise
    /// nothing has happened, and [`Self::on_event`] must see [`Event::RequestEnded`].
    #[inline(always)]
    #[must_use]
    pub fn end_request(&mut self) -> bool {
        let usual = self.state == State::LoggedIn
            && self.requests > 0
            && self.suspension == Suspension::None;
        self.requests = self.requests.saturating_sub(usual.into());
        usual
    }

    /// Takes an event at the time `now`, in nanoseconds since any start, and gives what to do. Events that
    /// come late or that mean nothing in the present state change nothing.
    pub fn on_event(&mut self, event: Event, now: u64) -> Actions {
        let mut actions = Actions::default();
        match event {
            Event::Enable => self.on_enable(now, &mut actions),
            Event::Disable => self.on_disable(now, &mut actions),
            Event::Registered(result) => self.on_registered(result, now, &mut actions),
            Event::Freed(result) => self.on_freed(result, now, &mut actions),
            Event::Sent(result) => self.on_own_sent(result, now, &mut actions),
            Event::AnswerSent(result) => {
                self.on_sent(result, now, &mut actions);
            }
            Event::Arrived(incoming) => self.on_arrived(incoming, now, &mut actions),
            Event::CopyFailed(result) => self.on_copy_failed(result, now, &mut actions),
            Event::Flooded if self.answers_wanted() => {
                self.end(After::Free, Reason::OverLimit(self.request_limit), now, &mut actions);
            }
            Event::Flooded => {}
            Event::RequestEnded => {
                self.requests = self.requests.saturating_sub(1);
                self.settle(now, &mut actions);
            }
            Event::Time => self.on_time(now, &mut actions),
        }
        actions
    }

    fn on_enable(&mut self, now: u64, actions: &mut Actions) {
        self.wanted = true;
        if self.state == State::Disabled {
            self.registrations = 0;
            self.register(now, actions);
        }
    }

    fn on_disable(&mut self, now: u64, actions: &mut Actions) {
        self.wanted = false;
        match self.state {
            State::Disabled | State::Freeing => {}
            // A call that is under way has to come back first.
            State::Registering if self.call_at.is_none() => {}
            State::Registering => self.rest(),
            State::WaitConnection | State::Connected | State::LoggedIn => {
                self.end(After::Free, Reason::Disabled, now, actions);
            }
            State::Draining(_) => self.state = State::Draining(After::Free),
        }
    }

    fn on_registered(&mut self, result: Registered, now: u64, actions: &mut Actions) {
        if self.state != State::Registering || self.call_at.is_some() {
            return;
        }
        match result {
            Registered::AlreadyRegistered => self.free(now, actions),
            Registered::PartnerThere | Registered::PartnerAbsent if !self.wanted => {
                self.free(now, actions);
            }
            // A client that registered before us waits for our INIT (and one that did not hears of us from
            // nobody).
            Registered::PartnerThere => {
                self.state = State::WaitConnection;
                self.send(Entry::INIT, actions);
            }
            Registered::PartnerAbsent => self.state = State::WaitConnection,
            Registered::Busy(_) if !self.wanted => self.rest(),
            Registered::Busy(ns) => self.call_again(ns, Reason::RegisterBusy, now, actions),
            Registered::Failed(code) => self.give_up(Reason::RegisterFailed(code), actions),
        }
    }

    fn on_freed(&mut self, result: Freed, now: u64, actions: &mut Actions) {
        if self.state != State::Freeing || self.call_at.is_some() {
            return;
        }
        match result {
            Freed::Done if !self.wanted => self.rest(),
            // The first two registrations are a stale queue's and ours; more would be a loop.
            Freed::Done if self.registrations >= 2 => {
                self.state = State::Registering;
                self.call_at = Some(now.saturating_add(REGISTER_PAUSE_NS));
                self.call_until = now.saturating_add(CALL_PATIENCE_NS);
            }
            Freed::Done => self.register(now, actions),
            Freed::Busy(ns) => self.call_again(ns, Reason::FreeBusy, now, actions),
            Freed::Failed(code) => self.give_up(Reason::FreeFailed(code), actions),
        }
    }

    fn on_own_sent(&mut self, result: Sent, now: u64, actions: &mut Actions) {
        self.own_sends = self.own_sends.saturating_sub(1);
        if self.on_sent(result, now, actions) {
            self.own_sends = self.own_sends.saturating_add(1);
        } else {
            self.settle(now, actions);
        }
    }

    /// Gives whether the entry is to be sent again.
    fn on_sent(&mut self, result: Sent, now: u64, actions: &mut Actions) -> bool {
        let connected = self.answers_wanted();
        let live = connected || self.state == State::WaitConnection;
        match result {
            Sent::Delivered => self.answer_delivered(),
            // The FF entry may still be on its way; until the next INIT it changes nothing more.
            Sent::PartnerAbsent if connected => {
                self.end(After::AwaitInit, Reason::PartnerAbsent, now, actions);
            }
            Sent::QueueFull if live => {
                let since = *self.full_since.get_or_insert(now);
                if now.saturating_sub(since) < SEND_PATIENCE_NS {
                    actions.push(Action::SendAgain(now.saturating_add(SEND_RETRY_NS)));
                    return true;
                }
                self.end(After::Free, Reason::QueueStaysFull, now, actions);
            }
            Sent::Failed(code) if live => {
                self.end(After::Free, Reason::SendFailed(code), now, actions);
            }
            Sent::PartnerAbsent | Sent::QueueFull | Sent::Failed(_) => {}
        }
        false
    }

    fn on_copy_failed(&mut self, result: Copied, now: u64, actions: &mut Actions) {
        if !self.answers_wanted() {
            return;
        }
        let (after, reason) = match result {
            Copied::Done => return,
            Copied::WindowClosed => (After::AwaitInit, Reason::WindowClosed),
            Copied::OutsideWindow => (After::Free, Reason::IuOutsideWindow),
            Copied::Failed(code) => (After::Free, Reason::CopyFailed(code)),
        };
        self.end(after, reason, now, actions);
    }

    fn on_time(&mut self, now: u64, actions: &mut Actions) {
        if self.call_at.is_some_and(|at| at <= now) {
            self.call_at = None;
            match self.state {
                State::Registering => self.register(now, actions),
                State::Freeing => actions.push(Action::Free),
                _ => {}
            }
        }
        if matches!(self.suspension, Suspension::Preparing { until } if until <= now) {
            self.resume(now, actions);
        }
    }

    fn on_request(&mut self, request: Request, now: u64, actions: &mut Actions) {
        match self.state {
            State::Connected | State::LoggedIn if self.suspension != Suspension::None => {
                // Its memory may be on the move. The client is told when it is back.
                self.missed = true;
            }
            State::Connected | State::LoggedIn => match self.fault_of(&request) {
                Some(reason) => self.end(After::Free, reason, now, actions),
                None => {
                    self.mad_outstanding |= request.kind == IuKind::Mad;
                    self.requests = self.requests.saturating_add(1);
                    actions.push(Action::Fetch(request));
                }
            },
            // Too early for its new login, and it would wait a minute for an answer.
            State::Draining(After::Connected) => self.state = State::Draining(After::Free),
            _ => {}
        }
    }

    fn fault_of(&self, request: &Request) -> Option<Reason> {
        if !(1..=IU_BYTES_MAX).contains(&request.iu_bytes) {
            return Some(Reason::IuLength(request.iu_bytes));
        }
        (request.kind == IuKind::Mad && self.mad_outstanding).then_some(Reason::SecondMad)
    }

    fn on_arrived(&mut self, incoming: Incoming, now: u64, actions: &mut Actions) {
        match incoming {
            Incoming::Init => self.on_init(now, actions),
            Incoming::InitComplete if self.state == State::WaitConnection => self.connected(),
            Incoming::Request(request) => self.on_request(request, now, actions),
            Incoming::Transport(event) => self.on_transport_event(event, now, actions),
            Incoming::Ping(entry) => {
                let live = self.answers_wanted() || self.state == State::WaitConnection;
                // One that sends them without reading the answers gets no more of them.
                if live && self.own_sends == 0 && self.suspension == Suspension::None {
                    self.send(entry.ping_response(), actions);
                }
            }
            Incoming::Unknown if self.answers_wanted() => {
                self.end(After::Free, Reason::UnknownEntry, now, actions);
            }
            // The two handshakes may cross; the rest is for a state that has passed, or says nothing.
            Incoming::InitComplete
            | Incoming::Unknown
            | Incoming::PingResponse
            | Incoming::Free => {}
        }
    }

    fn on_init(&mut self, now: u64, actions: &mut Actions) {
        match self.state {
            State::WaitConnection => {
                self.connected();
                self.send(Entry::INIT_COMPLETE, actions);
            }
            State::Connected | State::LoggedIn => {
                self.end(After::AnswerInit, Reason::ClientInitialises, now, actions);
            }
            State::Draining(_) => self.drain_to(After::AnswerInit),
            State::Disabled | State::Registering | State::Freeing => {}
        }
    }

    fn on_transport_event(&mut self, event: TransportEvent, now: u64, actions: &mut Actions) {
        match event {
            TransportEvent::PartnerFailed => self.on_gone(Reason::PartnerFailed, now, actions),
            TransportEvent::PartnerDeregistered => {
                self.on_gone(Reason::PartnerDeregistered, now, actions);
            }
            TransportEvent::Migrated => self.on_gone(Reason::PartnerMigrated, now, actions),
            TransportEvent::PrepareForSuspend => {
                if self.has_queue() {
                    let until = now.saturating_add(SUSPEND_NS);
                    self.suspension = Suspension::Preparing { until };
                    self.settle(now, actions);
                }
            }
            TransportEvent::Resume => self.resume(now, actions),
            TransportEvent::Other(_) => {}
        }
    }

    /// The client went, its memory with it.
    fn on_gone(&mut self, reason: Reason, now: u64, actions: &mut Actions) {
        match self.state {
            State::Connected | State::LoggedIn => {
                self.end(After::AwaitInit, reason, now, actions);
            }
            State::Draining(_) => self.drain_to(After::AwaitInit),
            State::WaitConnection => self.forget_suspension(),
            State::Disabled | State::Registering | State::Freeing => {}
        }
    }

    /// The client was resumed, or not suspended after all.
    fn resume(&mut self, now: u64, actions: &mut Actions) {
        let missed = self.missed;
        self.forget_suspension();
        if missed && self.answers_wanted() {
            self.end(After::Free, Reason::MissedWhileSuspended, now, actions);
        }
    }

    /// Whether the hypervisor may put entries into our queue.
    fn has_queue(&self) -> bool {
        !matches!(self.state, State::Disabled | State::Registering | State::Freeing)
    }

    /// The client itself starts over while we drain: our queue needs no reset any more.
    fn drain_to(&mut self, after: After) {
        self.forget_suspension();
        if self.wanted {
            self.state = State::Draining(after);
        }
    }

    fn forget_suspension(&mut self) {
        self.suspension = Suspension::None;
        self.missed = false;
    }

    /// The handshake is over, at either end. Nothing is left of an earlier connection.
    fn connected(&mut self) {
        self.state = State::Connected;
        self.registrations = 0;
        self.mad_outstanding = false;
        self.fast_fail = false;
        self.client = OsType::default();
        self.forget_suspension();
    }

    /// The connection is over: what is in flight ends, then comes `after`.
    fn end(&mut self, after: After, reason: Reason, now: u64, actions: &mut Actions) {
        actions.push(Action::ConnectionOver(reason));
        self.state = State::Draining(after);
        self.full_since = None;
        // A suspension outlives a connection that we end, not one that the client ended.
        if matches!(after, After::AwaitInit | After::AnswerInit) {
            self.forget_suspension();
        }
        if self.is_idle() {
            self.settle(now, actions);
        } else {
            actions.push(Action::Abandon);
        }
    }

    fn is_idle(&self) -> bool {
        self.requests == 0 && self.own_sends == 0
    }

    /// Goes on where nothing in flight is what was waited for.
    fn settle(&mut self, now: u64, actions: &mut Actions) {
        if self.is_idle() {
            self.on_idle(now, actions);
        }
    }

    fn on_idle(&mut self, now: u64, actions: &mut Actions) {
        if matches!(self.suspension, Suspension::Preparing { .. }) {
            self.suspension = Suspension::Ready;
            actions.push(Action::ReadyForSuspend);
        }
        let State::Draining(after) = self.state else { return };
        match after {
            After::AwaitInit => self.state = State::WaitConnection,
            After::AnswerInit => {
                self.connected();
                self.send(Entry::INIT_COMPLETE, actions);
            }
            After::Connected => {
                self.state = State::Connected;
                self.mad_outstanding = false;
            }
            After::Free => self.free(now, actions),
        }
    }

    fn send(&mut self, entry: Entry, actions: &mut Actions) {
        self.own_sends = self.own_sends.saturating_add(1);
        actions.push(Action::Send(entry));
    }

    fn register(&mut self, now: u64, actions: &mut Actions) {
        if self.state != State::Registering {
            self.call_until = now.saturating_add(CALL_PATIENCE_NS);
        }
        self.state = State::Registering;
        self.registrations = self.registrations.saturating_add(1);
        self.forget_suspension();
        actions.push(Action::Register);
    }

    fn free(&mut self, now: u64, actions: &mut Actions) {
        self.state = State::Freeing;
        self.call_until = now.saturating_add(CALL_PATIENCE_NS);
        actions.push(Action::Free);
    }

    fn call_again(&mut self, ns: u64, reason: Reason, now: u64, actions: &mut Actions) {
        if now >= self.call_until {
            return self.give_up(reason, actions);
        }
        self.call_at = Some(now.saturating_add(ns.min(CALL_RETRY_NS_MAX)));
    }

    fn give_up(&mut self, reason: Reason, actions: &mut Actions) {
        self.wanted = false;
        self.rest();
        actions.push(Action::GaveUp(reason));
    }

    fn rest(&mut self) {
        self.state = State::Disabled;
        self.call_at = None;
    }

    /// Takes the information unit of an [`Action::Fetch`]: `iu` has the length that the entry said.
    pub fn on_iu<'a>(&mut self, kind: IuKind, iu: &'a [u8], now: u64) -> Taken<'a> {
        if !self.answers_wanted() {
            return Taken::Nothing(Actions::default());
        }
        let taken = match kind {
            IuKind::Mad => self.take_mad(iu),
            IuKind::Srp => self.take_srp(iu, now),
        };
        taken.unwrap_or_else(|reason| self.violation(reason, now))
    }

    /// A command's last checks: the reserved bits of its CDB's length, and its credit.
    #[inline]
    fn admit(&mut self, iu: &[u8]) -> Result<(), Reason> {
        let additional_cdb = iu.get(ADDITIONAL_CDB_OFFSET).copied().unwrap_or(0);
        if additional_cdb & 3 != 0 {
            return Err(Reason::ReservedCdbBits(additional_cdb));
        }
        self.take_credit()
    }

    #[inline]
    fn take_credit(&mut self) -> Result<(), Reason> {
        self.credit.take().map_err(|overrun| Reason::OverLimit(overrun.limit))
    }

    fn take_mad<'a>(&self, iu: &'a [u8]) -> Result<Taken<'a>, Reason> {
        let mad = Mad::parse(iu).ok_or(Reason::ShortMad(iu.len() as u16))?;
        Ok(Taken::Mad(mad, mad.begin(self.state == State::LoggedIn)))
    }

    fn take_srp<'a>(&mut self, iu: &'a [u8], now: u64) -> Result<Taken<'a>, Reason> {
        let code = iu.first().copied().ok_or(Reason::Malformed(Malformed::Empty))?;
        let logged_in = self.state == State::LoggedIn;
        if code == opcode::LOGIN_REQUEST {
            let request = login::parse(iu).ok_or(Reason::Malformed(Malformed::TooShort {
                opcode: code,
                needed_bytes: login::LOGIN_REQUEST_BYTES as u32,
                iu_bytes: iu.len() as u32,
            }))?;
            return Ok(Taken::Login(request, login::decide(&request, logged_in)));
        }
        if !logged_in {
            return Err(Reason::BeforeLogin(code));
        }
        if let Some(head) = iu::command_head(iu) {
            self.admit(iu)?;
            return Ok(Taken::Command(head));
        }
        match iu::parse(iu) {
            Ok(iu::Request::TaskManagement(function)) => {
                self.take_credit()?;
                Ok(Taken::TaskManagement(function))
            }
            Ok(iu::Request::Logout { .. }) => {
                let mut actions = Actions::default();
                self.end(After::Connected, Reason::LoggedOut, now, &mut actions);
                Ok(Taken::Nothing(actions))
            }
            Ok(iu::Request::CredResponse { .. } | iu::Request::AerResponse { .. }) => {
                Err(Reason::UnexpectedIu(code))
            }
            Err(IuError::Malformed(malformed)) => Err(Reason::Malformed(malformed)),
            // A command that has a head is one, whatever its buffers are.
            Ok(iu::Request::Command(_)) | Err(IuError::Command { .. }) => {
                Err(Reason::UnexpectedIu(code))
            }
        }
    }

    #[cold]
    fn violation(&mut self, reason: Reason, now: u64) -> Taken<'static> {
        let mut actions = Actions::default();
        self.end(After::Free, reason, now, &mut actions);
        Taken::Nothing(actions)
    }

    /// Lets the client in, after [`Taken::Login`] without a reject: gives the login response to answer with.
    /// `None` when the connection is over by now. To refuse it for want of room, answer
    /// [`LoginReject::InsufficientResources`] instead.
    pub fn log_in(&mut self, request: &LoginRequest) -> Option<LoginResponse> {
        if self.state != State::Connected {
            return None;
        }
        self.state = State::LoggedIn;
        self.credit = Credit::new(self.request_limit);
        Some(login::accept(request, self.credit.limit()))
    }

    /// Answers a datagram of [`Taken::Mad`]. `payload`: what was fetched for [`Step::Exchange`], which becomes
    /// what is to be put back after [`MadStatus::Success`]; empty when it could not be fetched, or none was.
    ///
    /// From now on the client may send its next one: it may see the answer before we know.
    pub fn answer_mad(&mut self, mad: &Mad, payload: &mut [u8]) -> MadStatus {
        self.mad_outstanding = false;
        match mad.begin(self.state == State::LoggedIn) {
            Step::Answer(status) => {
                self.fast_fail |=
                    mad.kind == MadKind::EnableFastFail && status == MadStatus::Success;
                status
            }
            Step::Exchange { .. } if payload.is_empty() => MadStatus::Failed,
            Step::Exchange { .. } => {
                if mad.kind == MadKind::AdapterInformation
                    && let Some(client) = AdapterInformation::from_bytes(payload)
                {
                    self.client = client.os_type;
                }
                mad.fill(&self.server, payload)
            }
        }
    }

    /// The request limit delta of a command's or task management function's answer: its own credit, and
    /// those of requests that ended without an answer.
    #[inline]
    pub fn answer_delta(&mut self) -> i32 {
        self.credit.response_delta()
    }

    /// A command ended without an answer, on a connection that goes on: its credit is owed, until the next
    /// answer. (SRP_CRED_REQ is nothing a VSCSI client knows. A client that waits for such a command aborts
    /// it, with a credit that it keeps for that, and the answer to this brings all back.)
    pub fn owe(&mut self) {
        self.credit.owe();
    }
}

/// Where an SRP_CMD has the length of its additional CDB bytes, of which the low two bits are reserved.
const ADDITIONAL_CDB_OFFSET: usize =
    core::mem::offset_of!(lunar_srp::wire::Command, additional_cdb);
