//! The other side of an [`Adapter`]'s contract: carries out its actions as a port and a hypervisor would,
//! and insists on what they may and may not be. Shared with the fuzz target `vscsi_adapter`.

use lunar_srp::login::{self, FORMATS, LoginForm, LoginRequest, PortId};
use lunar_vscsi::adapter::{Action, Actions, Adapter, Event, OWN_SENDS_MAX, State, Taken};
use lunar_vscsi::crq::{Entry, Incoming, IuKind, Numbering, Request};
use lunar_vscsi::hcall::{Copied, Freed, Registered, Sent};
use lunar_vscsi::mad::{OsType, PAYLOAD_BYTES_MAX, PartitionName, ServerPartition, Step};

/// The hypervisor call about the queue that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Register,
    Free,
}

/// An adapter between a port and a hypervisor.
pub struct Rig {
    pub adapter: Adapter,
    /// Nanoseconds.
    pub now: u64,
    pub call: Option<Call>,
    /// Whether the hypervisor has a queue of ours.
    pub registered: bool,
    /// Entries of the adapter's own that wait to be sent.
    pub own_sends: u32,
    /// Information units that were asked for.
    pub fetching: Vec<Request>,
    /// Requests whose unit was seen, and that did not end.
    pub running: u32,
    pub logged_in_with: Option<i32>,
}

pub fn server() -> ServerPartition {
    ServerPartition {
        name: PartitionName::new("lunar").expect("a name"),
        number: 1,
        os_type: OsType::AIX,
        transfer_bytes_max: 0x20_0000,
        migration: true,
        reserve: true,
    }
}

pub const REQUEST_LIMIT: u32 = 4;

/// A login as Linux sends it.
pub fn login_iu() -> Vec<u8> {
    let request = LoginRequest {
        form: LoginForm::InfiniBand,
        tag: 1,
        it_iu_bytes: 256,
        formats: FORMATS,
        action: login::Action::Single,
        immediate_offset: None,
        initiator_port: PortId::default(),
        target_port: PortId::default(),
    };
    let mut iu = vec![0; 256];
    login::encode_request(&request, &mut iu).expect("fits");
    iu
}

impl Rig {
    pub fn new() -> Self {
        Self {
            adapter: Adapter::new(server(), REQUEST_LIMIT),
            now: 1_000,
            call: None,
            registered: false,
            own_sends: 0,
            fetching: Vec::new(),
            running: 0,
            logged_in_with: None,
        }
    }

    /// Reports `event` and carries out what comes of it.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let before = self.adapter.clone();
        let actions = self.adapter.on_event(event, self.now);
        self.check_shortcut(before, event, actions);
        self.carry_out(actions)
    }

    /// What the data path's shortcuts do must be what the event did.
    fn check_shortcut(&self, mut before: Adapter, event: Event, actions: Actions) {
        let taken = match event {
            Event::Arrived(Incoming::Request(request)) => {
                let taken = before.take_request(&request);
                assert!(!taken || Vec::from_iter(actions) == [Action::Fetch(request)]);
                taken
            }
            Event::RequestEnded => {
                let taken = before.end_request();
                assert!(!taken || actions.is_empty());
                taken
            }
            _ => false,
        };
        assert!(!taken || before == self.adapter, "{event:?}");
    }

    pub fn arrived(&mut self, incoming: Incoming) -> Vec<Action> {
        self.on(Event::Arrived(incoming))
    }

    fn carry_out(&mut self, actions: Actions) -> Vec<Action> {
        let actions: Vec<Action> = actions.into_iter().collect();
        for action in &actions {
            self.carry_out_one(*action);
        }
        self.check();
        actions
    }

    fn carry_out_one(&mut self, action: Action) {
        match action {
            Action::Register => {
                assert_eq!(self.call.replace(Call::Register), None, "one call at a time");
                assert!(!self.registered, "the queue is registered already");
                self.assert_idle();
            }
            Action::Free => {
                assert_eq!(self.call.replace(Call::Free), None, "one call at a time");
                self.assert_idle();
            }
            Action::Send(_) => {
                assert!(self.registered, "an entry is sent without a queue");
                self.own_sends += 1;
                assert!(self.own_sends <= OWN_SENDS_MAX, "{} own entries wait", self.own_sends);
            }
            Action::SendAgain(at) => assert!(at > self.now),
            Action::Fetch(request) => {
                assert!(self.adapter.answers_wanted(), "a request without a connection");
                assert!((1..=256).contains(&request.iu_bytes), "{request:?}");
                self.fetching.push(request);
            }
            Action::ConnectionOver(reason) => assert!(!reason.to_string().is_empty()),
            Action::Abandon => {
                let in_flight = self.own_sends + self.running + self.fetching.len() as u32;
                assert!(in_flight > 0, "there is nothing to abandon");
            }
            Action::ReadyForSuspend => self.assert_idle(),
            Action::GaveUp(reason) => {
                assert!(!reason.to_string().is_empty());
                assert_eq!(self.adapter.state(), State::Disabled);
                // One that could not be freed is the next server's trouble: its H_REG_CRQ says so.
                self.registered = false;
            }
        }
    }

    fn assert_idle(&self) {
        assert_eq!((self.running, self.fetching.len(), self.own_sends), (0, 0, 0), "not idle");
    }

    fn check(&self) {
        let in_flight = self.running + self.fetching.len() as u32;
        assert_eq!(self.adapter.requests_in_flight(), in_flight);
        match self.adapter.state() {
            State::Draining(_) => assert!(in_flight + self.own_sends > 0, "drained already"),
            State::Disabled => {
                assert_eq!((self.call, in_flight, self.own_sends), (None, 0, 0));
                assert_eq!(self.adapter.deadline(), None);
            }
            State::Registering | State::Freeing => {
                assert_ne!(self.call.is_some(), self.adapter.deadline().is_some(), "stuck");
            }
            State::WaitConnection | State::Connected | State::LoggedIn => {
                assert!(self.registered);
                assert_eq!(self.call, None);
            }
        }
        let credit = self.adapter.credit();
        assert!(credit.available() <= credit.limit());
    }

    /// H_REG_CRQ came back.
    pub fn registered(&mut self, result: Registered) -> Vec<Action> {
        assert_eq!(self.call.take(), Some(Call::Register), "H_REG_CRQ is not under way");
        self.registered = match result {
            Registered::PartnerThere
            | Registered::PartnerAbsent
            | Registered::AlreadyRegistered => true,
            Registered::Busy(_) | Registered::Failed(_) => false,
        };
        self.on(Event::Registered(result))
    }

    /// H_FREE_CRQ came back.
    pub fn freed(&mut self, result: Freed) -> Vec<Action> {
        assert_eq!(self.call.take(), Some(Call::Free), "H_FREE_CRQ is not under way");
        self.registered &= result != Freed::Done;
        self.on(Event::Freed(result))
    }

    /// H_SEND_CRQ of an entry of the adapter's own came back.
    pub fn sent(&mut self, result: Sent) -> Vec<Action> {
        assert!(self.own_sends > 0);
        let actions = self.adapter.on_event(Event::Sent(result), self.now);
        if !actions.into_iter().any(|action| matches!(action, Action::SendAgain(_))) {
            self.own_sends -= 1;
        }
        self.carry_out(actions)
    }

    /// A request ends.
    pub fn ended(&mut self) -> Vec<Action> {
        if self.running > 0 {
            self.running -= 1;
        } else {
            self.fetching.pop().expect("nothing is in flight");
        }
        self.on(Event::RequestEnded)
    }

    /// The unit of the oldest request is there. Commands and functions stay in flight; all else is answered
    /// and ends.
    pub fn fetched(&mut self, iu: &[u8]) -> Vec<Action> {
        let request = self.fetching.remove(0);
        self.running += 1;
        let mut before = self.adapter.clone();
        let taken = self.adapter.on_iu(request.kind, iu, self.now);
        if request.kind == IuKind::Srp {
            let is_command = before.take_command(iu).is_some();
            assert_eq!(is_command, matches!(taken, Taken::Command(_)));
            assert!(!is_command || before == self.adapter);
        }
        match taken {
            Taken::Command(_) | Taken::TaskManagement(_) => return Vec::new(),
            Taken::Login(request, Ok(())) => {
                self.logged_in_with =
                    self.adapter.log_in(&request).map(|response| response.request_limit);
            }
            Taken::Login(_, Err(_)) => {}
            Taken::Mad(mad, step) => {
                let mut payload = [0; PAYLOAD_BYTES_MAX];
                let bytes = match step {
                    Step::Exchange { bytes, .. } => usize::from(bytes),
                    Step::Answer(_) => 0,
                };
                let _ = self.adapter.answer_mad(&mad, &mut payload[..bytes]);
            }
            Taken::Nothing(actions) => {
                let mut actions = self.carry_out(actions);
                actions.extend(self.ended());
                return actions;
            }
        }
        self.ended()
    }

    /// A whole request: its entry and its unit. Gives the actions of both.
    pub fn request(&mut self, kind: IuKind, iu: &[u8]) -> Vec<Action> {
        let iu_bytes = iu.len() as u16;
        let request = Request { kind, timeout_s: 60, iu_bytes, address: 0xc01_0000 };
        let mut actions = self.arrived(Incoming::Request(request));
        if let [Action::Fetch(_)] = actions[..] {
            actions = self.fetched(iu);
        }
        actions
    }

    /// From any state: lets everything in flight end, and disables the adapter.
    pub fn disable(&mut self) {
        self.on(Event::Disable);
        for _ in 0..1_000 {
            if self.own_sends > 0 {
                self.sent(Sent::PartnerAbsent);
            } else if self.running > 0 || !self.fetching.is_empty() {
                self.ended();
            } else {
                match self.call {
                    Some(Call::Register) => self.registered(Registered::PartnerAbsent),
                    Some(Call::Free) => self.freed(Freed::Done),
                    None => match self.adapter.deadline() {
                        Some(deadline) if self.adapter.state() != State::Disabled => {
                            self.now = self.now.max(deadline);
                            self.on(Event::Time)
                        }
                        _ => break,
                    },
                };
            }
        }
        assert_eq!(self.adapter.state(), State::Disabled, "what is disabled comes to rest");
    }

    /// From [`State::Disabled`]: registers, shakes hands and logs in.
    pub fn log_in(&mut self, login: &[u8]) {
        self.connect();
        self.request(IuKind::Srp, login);
        assert_eq!(self.adapter.state(), State::LoggedIn);
        assert_eq!(self.logged_in_with, Some(REQUEST_LIMIT as i32));
    }

    /// From [`State::Disabled`]: registers and shakes hands.
    pub fn connect(&mut self) {
        self.on(Event::Enable);
        self.registered(Registered::PartnerAbsent);
        self.arrived(Incoming::Init);
        self.sent(Sent::Delivered);
        assert_eq!(self.adapter.state(), State::Connected);
    }

    /// One step of a client, a hypervisor, the port or the configuration, as `choice` and `argument` say; a
    /// step that cannot be now is left out. `iu` and `entry` make what the client sends.
    pub fn step(
        &mut self,
        choice: u8,
        argument: u8,
        iu: impl FnOnce(u8) -> Vec<u8>,
        entry: impl FnOnce(u8) -> [u8; 16],
    ) {
        let of = |codes: &[i64]| codes[usize::from(argument) % codes.len()];
        match choice % 16 {
            0 => drop(self.on(Event::Enable)),
            // Rarely, lest nothing else happens.
            1 if argument < 64 => drop(self.on(Event::Disable)),
            2 if self.call == Some(Call::Register) => {
                drop(self.registered(Registered::from_code(of(&[0, 2, -16, 9903, -4]))));
            }
            2 if self.call == Some(Call::Free) => {
                drop(self.freed(Freed::from_code(of(&[0, 0, 0, 9900, -1]))));
            }
            3 if self.own_sends > 0 => drop(self.sent(Sent::from_code(of(&[0, 2, -12, -1])))),
            4 if self.running > 0 => {
                drop(self.on(Event::AnswerSent(Sent::from_code(of(&[0, 2, -12, -1])))));
            }
            5 if self.running > 0 || !self.fetching.is_empty() => drop(self.ended()),
            6 => {
                self.now += u64::from(argument) * 200_000_000;
                drop(self.on(Event::Time));
            }
            7 => drop(self.on(Event::CopyFailed(Copied::from_code(of(&[0, -13, -11, -1]), false)))),
            8 => drop(self.arrived(Incoming::Init)),
            9 => drop(self.arrived(Entry::from_bytes(entry(argument)).read())),
            10 => drop(self.arrived(Entry::ping(Numbering::Papr).read())),
            11..=15 => match self.fetching.first() {
                Some(request) => {
                    let mut iu = iu(argument);
                    iu.resize(request.iu_bytes.into(), 0);
                    drop(self.fetched(&iu));
                }
                None => {
                    let kind = if argument & 1 == 0 { IuKind::Srp } else { IuKind::Mad };
                    let address = 0xc01_0000;
                    let request = Request { kind, timeout_s: 60, iu_bytes: 256, address };
                    drop(self.arrived(Incoming::Request(request)));
                }
            },
            _ => {}
        }
    }
}
