//! The adapter's states: the whole event table, the stories that VSCSI tells (start-up, resets, migration,
//! suspension, floods), and any sequence of events at all.

mod rig;

use lunar_srp::iu::{self, BufferLayout, CommandLayout, SolicitedNotification};
use lunar_srp::wire::opcode;
use lunar_vscsi::adapter::{
    Action, Adapter, After, CALL_PATIENCE_NS, CALL_RETRY_NS_MAX, Event, REGISTER_PAUSE_NS, Reason,
    SEND_PATIENCE_NS, SEND_RETRY_NS, SUSPEND_NS, State, Taken,
};
use lunar_vscsi::crq::{Entry, Incoming, IuKind, Numbering, Request, TransportEvent};
use lunar_vscsi::hcall::{Copied, Freed, Registered, Sent};
use lunar_vscsi::mad::{Mad, MadKind, MadStatus, OsType, Step};
use proptest::prelude::*;
use rig::{REQUEST_LIMIT, Rig, login_iu};

const ADDRESS: u64 = 0xc01_0000;
const MILLISECOND_NS: u64 = 1_000_000;

fn request(kind: IuKind, iu_bytes: u16) -> Incoming {
    Incoming::Request(Request { kind, timeout_s: 60, iu_bytes, address: ADDRESS })
}

fn command_iu() -> Vec<u8> {
    let command = CommandLayout {
        tag: 5,
        lun: [0x80, 0, 0, 0, 0, 0, 0, 0],
        attribute: lunar_scsi::task_set::TaskAttribute::Simple,
        solicited: SolicitedNotification::new(false, false),
        cdb: &[0],
        data_out: BufferLayout::None,
        data_in: BufferLayout::None,
    };
    let mut iu = vec![0; 256];
    iu::encode_command(&command, &mut iu).expect("fits");
    iu
}

fn abort_iu() -> Vec<u8> {
    let mut iu = vec![0; 256];
    let quiet = SolicitedNotification::new(false, false);
    iu::encode_task_management(6, [0x80, 0, 0, 0, 0, 0, 0, 0], 1, 5, quiet, &mut iu).expect("fits");
    iu
}

fn mad_iu(kind: MadKind, payload_bytes: u16) -> Vec<u8> {
    let mut iu = vec![0; 256];
    let mad = Mad { kind, payload_bytes, tag: 9, payload_address: Some(0x1000) };
    mad.encode(&mut iu).expect("fits");
    iu
}

fn connected() -> Rig {
    let mut rig = Rig::new();
    rig.connect();
    rig
}

fn logged_in() -> Rig {
    let mut rig = Rig::new();
    rig.log_in(&login_iu());
    rig
}

/// Logged in, with a command in flight.
fn busy() -> Rig {
    let mut rig = logged_in();
    rig.request(IuKind::Srp, &command_iu());
    assert_eq!(rig.running, 1);
    rig
}

fn waiting() -> Rig {
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    rig.registered(Registered::PartnerAbsent);
    rig
}

// ---------------------------------------------------------------------------------------------------------
// The event table
// ---------------------------------------------------------------------------------------------------------

/// The rows. `Later`: a call to the hypervisor waits to be made again. `Busy`: a command is in flight, as it is
/// in all rows of `Draining`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Disabled,
    Registering,
    RegisteringLater,
    WaitConnection,
    Connected,
    LoggedIn,
    Busy,
    /// Busy, and the client is to be suspended.
    Preparing,
    /// Logged in, and the hypervisor was told that the client may be suspended.
    Suspended,
    Draining(After),
    Freeing,
    FreeingLater,
}

const DRAINING: [Row; 4] = [
    Row::Draining(After::AwaitInit),
    Row::Draining(After::AnswerInit),
    Row::Draining(After::Connected),
    Row::Draining(After::Free),
];

const ROWS: [Row; 15] = [
    Row::Disabled,
    Row::Registering,
    Row::RegisteringLater,
    Row::WaitConnection,
    Row::Connected,
    Row::LoggedIn,
    Row::Busy,
    Row::Preparing,
    Row::Suspended,
    DRAINING[0],
    DRAINING[1],
    DRAINING[2],
    DRAINING[3],
    Row::Freeing,
    Row::FreeingLater,
];

fn in_row(row: Row) -> Adapter {
    let mut rig = match row {
        Row::Disabled => Rig::new(),
        Row::Registering | Row::RegisteringLater => {
            let mut rig = Rig::new();
            rig.on(Event::Enable);
            rig
        }
        Row::WaitConnection => waiting(),
        Row::Connected => connected(),
        Row::LoggedIn | Row::Suspended => logged_in(),
        Row::Busy | Row::Preparing | Row::Draining(_) => busy(),
        Row::Freeing | Row::FreeingLater => {
            let mut rig = logged_in();
            rig.arrived(Incoming::Unknown);
            rig
        }
    };
    match row {
        Row::RegisteringLater => {
            rig.registered(Registered::Busy(MILLISECOND_NS));
        }
        Row::FreeingLater => {
            rig.freed(Freed::Busy(MILLISECOND_NS));
        }
        Row::Preparing | Row::Suspended => {
            rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend));
        }
        Row::Draining(After::AwaitInit) => {
            rig.arrived(Incoming::Transport(TransportEvent::PartnerDeregistered));
        }
        Row::Draining(After::AnswerInit) => {
            rig.arrived(Incoming::Init);
        }
        Row::Draining(After::Connected) => {
            let mut iu = vec![0; 256];
            iu::encode_logout(8, &mut iu).expect("fits");
            rig.request(IuKind::Srp, &iu);
        }
        Row::Draining(After::Free) => {
            rig.arrived(Incoming::Unknown);
        }
        _ => {}
    }
    assert_eq!(rig.adapter.state(), state_of(row));
    rig.adapter
}

fn state_of(row: Row) -> State {
    match row {
        Row::Disabled => State::Disabled,
        Row::Registering | Row::RegisteringLater => State::Registering,
        Row::WaitConnection => State::WaitConnection,
        Row::Connected => State::Connected,
        Row::LoggedIn | Row::Busy | Row::Preparing | Row::Suspended => State::LoggedIn,
        Row::Draining(after) => State::Draining(after),
        Row::Freeing | Row::FreeingLater => State::Freeing,
    }
}

const PING: Entry = Entry {
    valid: 0x80,
    format: 6,
    reserved: 0,
    status: 0xF5,
    timeout_s: 0,
    iu_bytes: 0,
    pointer: 0,
};

fn columns() -> Vec<Event> {
    use TransportEvent as T;
    let mut columns = vec![
        Event::Enable,
        Event::Disable,
        Event::Registered(Registered::PartnerThere),
        Event::Registered(Registered::PartnerAbsent),
        Event::Registered(Registered::AlreadyRegistered),
        Event::Registered(Registered::Busy(MILLISECOND_NS)),
        Event::Registered(Registered::Failed(-4)),
        Event::Freed(Freed::Done),
        Event::Freed(Freed::Busy(MILLISECOND_NS)),
        Event::Freed(Freed::Failed(-4)),
        Event::CopyFailed(Copied::Done),
        Event::CopyFailed(Copied::OutsideWindow),
        Event::CopyFailed(Copied::WindowClosed),
        Event::CopyFailed(Copied::Failed(-1)),
        Event::Flooded,
        Event::RequestEnded,
        Event::Time,
    ];
    for sent in [Sent::Delivered, Sent::PartnerAbsent, Sent::QueueFull, Sent::Failed(-1)] {
        columns.extend([Event::Sent(sent), Event::AnswerSent(sent)]);
    }
    let transport = [
        T::PartnerFailed,
        T::PartnerDeregistered,
        T::Migrated,
        T::PrepareForSuspend,
        T::Resume,
        T::Other(0),
    ];
    let entries = [
        Incoming::Init,
        Incoming::InitComplete,
        request(IuKind::Srp, 256),
        request(IuKind::Mad, 1),
        request(IuKind::Srp, 0),
        request(IuKind::Mad, 257),
        Incoming::Ping(PING),
        Incoming::PingResponse,
        Incoming::Unknown,
        Incoming::Free,
    ];
    columns.extend(transport.map(|event| Event::Arrived(Incoming::Transport(event))));
    columns.extend(entries.map(Event::Arrived));
    columns
}

/// What the connection of `row` comes to when it ends for `reason`.
fn over(row: Row, after: After, reason: Reason) -> (State, Vec<Action>) {
    let over = Action::ConnectionOver(reason);
    match (row, after) {
        (Row::Busy | Row::Preparing, _) => (State::Draining(after), vec![over, Action::Abandon]),
        (_, After::AwaitInit) => (State::WaitConnection, vec![over]),
        (_, After::AnswerInit) => {
            (State::Connected, vec![over, Action::Send(Entry::INIT_COMPLETE)])
        }
        (_, After::Connected) => (State::Connected, vec![over]),
        (_, After::Free) => (State::Freeing, vec![over, Action::Free]),
    }
}

/// The table: what changes, and for all other pairs that nothing does.
fn expected(row: Row, event: Event) -> (State, Vec<Action>) {
    use Event as E;
    use Incoming as I;
    use TransportEvent as T;
    let same = (state_of(row), vec![]);
    let suspension = matches!(row, Row::Preparing | Row::Suspended);
    let connection = matches!(row, Row::Connected | Row::LoggedIn | Row::Busy) || suspension;
    let live = connection || row == Row::WaitConnection;
    let draining = matches!(row, Row::Draining(_));
    let transport = |event| E::Arrived(I::Transport(event));
    match event {
        // Configuration.
        E::Enable if row == Row::Disabled => (State::Registering, vec![Action::Register]),
        E::Disable if live => over(row, After::Free, Reason::Disabled),
        E::Disable if draining => (State::Draining(After::Free), vec![]),
        E::Disable if row == Row::RegisteringLater => (State::Disabled, vec![]),
        // The hypervisor's calls.
        E::Registered(result) if row == Row::Registering => match result {
            Registered::PartnerThere => (State::WaitConnection, vec![Action::Send(Entry::INIT)]),
            Registered::PartnerAbsent => (State::WaitConnection, vec![]),
            Registered::AlreadyRegistered => (State::Freeing, vec![Action::Free]),
            Registered::Busy(_) => same,
            Registered::Failed(code) => {
                (State::Disabled, vec![Action::GaveUp(Reason::RegisterFailed(code))])
            }
        },
        E::Freed(result) if row == Row::Freeing => match result {
            Freed::Done => (State::Registering, vec![Action::Register]),
            Freed::Busy(_) => same,
            Freed::Failed(code) => {
                (State::Disabled, vec![Action::GaveUp(Reason::FreeFailed(code))])
            }
        },
        E::Time if row == Row::RegisteringLater => (State::Registering, vec![Action::Register]),
        E::Time if row == Row::FreeingLater => (State::Freeing, vec![Action::Free]),
        // Entries that were sent.
        E::Sent(Sent::PartnerAbsent) | E::AnswerSent(Sent::PartnerAbsent) if connection => {
            over(row, After::AwaitInit, Reason::PartnerAbsent)
        }
        E::Sent(Sent::QueueFull) | E::AnswerSent(Sent::QueueFull) if live => {
            (state_of(row), vec![Action::SendAgain(NOW + SEND_RETRY_NS)])
        }
        E::Sent(Sent::Failed(code)) | E::AnswerSent(Sent::Failed(code)) if live => {
            over(row, After::Free, Reason::SendFailed(code))
        }
        // Copies.
        E::CopyFailed(Copied::WindowClosed) if connection => {
            over(row, After::AwaitInit, Reason::WindowClosed)
        }
        E::CopyFailed(Copied::OutsideWindow) if connection => {
            over(row, After::Free, Reason::IuOutsideWindow)
        }
        E::CopyFailed(Copied::Failed(code)) if connection => {
            over(row, After::Free, Reason::CopyFailed(code))
        }
        E::Flooded if connection => over(row, After::Free, Reason::OverLimit(rig::REQUEST_LIMIT)),
        // The last request ends.
        E::RequestEnded => match row {
            Row::Draining(After::AwaitInit) => (State::WaitConnection, vec![]),
            Row::Draining(After::AnswerInit) => {
                (State::Connected, vec![Action::Send(Entry::INIT_COMPLETE)])
            }
            Row::Draining(After::Connected) => (State::Connected, vec![]),
            Row::Draining(After::Free) => (State::Freeing, vec![Action::Free]),
            Row::Preparing => (State::LoggedIn, vec![Action::ReadyForSuspend]),
            _ => same,
        },
        // The handshake.
        E::Arrived(I::Init) => match row {
            Row::WaitConnection => (State::Connected, vec![Action::Send(Entry::INIT_COMPLETE)]),
            _ if connection => over(row, After::AnswerInit, Reason::ClientInitialises),
            _ if draining => (State::Draining(After::AnswerInit), vec![]),
            _ => same,
        },
        E::Arrived(I::InitComplete) if row == Row::WaitConnection => (State::Connected, vec![]),
        // The client goes.
        E::Arrived(I::Transport(
            gone @ (T::PartnerFailed | T::PartnerDeregistered | T::Migrated),
        )) => {
            let reason = match gone {
                T::PartnerFailed => Reason::PartnerFailed,
                T::PartnerDeregistered => Reason::PartnerDeregistered,
                _ => Reason::PartnerMigrated,
            };
            match row {
                _ if connection => over(row, After::AwaitInit, reason),
                _ if draining => (State::Draining(After::AwaitInit), vec![]),
                _ => same,
            }
        }
        // Suspension: at once where nothing is in flight.
        _ if event == transport(T::PrepareForSuspend)
            && live
            && !matches!(row, Row::Busy | Row::Preparing) =>
        {
            (state_of(row), vec![Action::ReadyForSuspend])
        }
        // Requests, of which a client that is to be suspended gets none answered.
        E::Arrived(I::Request(_) | I::Ping(_)) if suspension => same,
        E::Arrived(I::Request(request)) => match row {
            _ if connection && !(1..=256).contains(&request.iu_bytes) => {
                over(row, After::Free, Reason::IuLength(request.iu_bytes))
            }
            _ if connection => (state_of(row), vec![Action::Fetch(request)]),
            Row::Draining(After::Connected) => (State::Draining(After::Free), vec![]),
            _ => same,
        },
        E::Arrived(I::Ping(ping)) if live => {
            (state_of(row), vec![Action::Send(ping.ping_response())])
        }
        E::Arrived(I::Unknown) if connection => over(row, After::Free, Reason::UnknownEntry),
        _ => same,
    }
}

/// When the events of the table happen: after all deadlines of its rows.
const NOW: u64 = 1_000 + 2 * MILLISECOND_NS;

/// WIRE 8: every state with every event.
#[test]
fn wire_8_the_whole_event_table() {
    let columns = columns();
    assert_eq!((ROWS.len(), columns.len()), (15, 41));
    let mut changes = 0;
    for row in ROWS {
        for event in &columns {
            let mut adapter = in_row(row);
            let actions: Vec<Action> = adapter.on_event(*event, NOW).into_iter().collect();
            let (state, wanted) = expected(row, *event);
            assert_eq!((adapter.state(), &actions), (state, &wanted), "{row:?} on {event:?}");
            changes += usize::from(!actions.is_empty() || state != state_of(row));
        }
    }
    assert_eq!(changes, CHANGES, "pairs of {} that change something", ROWS.len() * columns.len());
}

/// The data path's shortcuts: in every row they do what the events do, or nothing.
#[test]
fn the_data_paths_shortcuts_do_what_the_events_do() {
    let now = NOW;
    let mut short = 0;
    for row in ROWS {
        for incoming in [
            request(IuKind::Srp, 256),
            request(IuKind::Srp, 1),
            request(IuKind::Mad, 256),
            request(IuKind::Srp, 0),
            request(IuKind::Srp, 257),
        ] {
            let Incoming::Request(request) = incoming else { unreachable!() };
            let (mut quick, mut slow) = (in_row(row), in_row(row));
            if quick.take_request(&request) {
                let actions = slow.on_event(Event::Arrived(incoming), now);
                assert_eq!(Vec::from_iter(actions), [Action::Fetch(request)], "{row:?}");
                short += 1;
            }
            assert_eq!(quick, slow, "{row:?}");
        }
        let (mut quick, mut slow) = (in_row(row), in_row(row));
        if quick.end_request() {
            assert!(slow.on_event(Event::RequestEnded, now).is_empty(), "{row:?}");
            short += 1;
        }
        assert_eq!(quick, slow, "{row:?}");
        for iu in [command_iu(), abort_iu(), login_iu(), vec![2; 47], vec![2; 256], vec![]] {
            let (mut quick, mut slow) = (in_row(row), in_row(row));
            if let Some(head) = quick.take_command(&iu) {
                match slow.on_iu(IuKind::Srp, &iu, now) {
                    Taken::Command(other) => assert_eq!(head.tag(), other.tag()),
                    other => panic!("{row:?}: {other:?}"),
                }
                short += 1;
            }
            assert_eq!(quick, slow, "{row:?}");
        }
    }
    // Two requests for LoggedIn and Busy each, one end for Busy, one command for each row that is logged in.
    assert_eq!(short, 2 * 2 + 1 + 4);
    // Over the limit nothing is taken.
    let mut adapter = in_row(Row::LoggedIn);
    let iu = command_iu();
    for _ in 0..REQUEST_LIMIT {
        assert!(adapter.take_command(&iu).is_some());
    }
    let before = adapter.clone();
    assert!(adapter.take_command(&iu).is_none());
    assert_eq!(adapter, before);
}

/// Pairs of the table that change something, so that the table cannot be emptied by a careless pattern.
const CHANGES: usize = 141;

// ---------------------------------------------------------------------------------------------------------
// Stories
// ---------------------------------------------------------------------------------------------------------

/// WIRE 4, CLIENT 2: C001, C002, ADAPTER_INFO, FAST_FAIL, CAPABILITIES, login.
#[test]
fn wire_4_start_up_by_the_client() {
    let mut rig = waiting();
    assert_eq!(rig.arrived(Incoming::Init), [Action::Send(Entry::INIT_COMPLETE)]);
    assert_eq!(rig.sent(Sent::Delivered), []);
    for (kind, bytes) in [
        (MadKind::AdapterInformation, 148),
        (MadKind::EnableFastFail, 16),
        (MadKind::Capabilities, 92),
        (MadKind::Other(7), 0),
    ] {
        assert_eq!(rig.request(IuKind::Mad, &mad_iu(kind, bytes)), [], "{kind:?}");
    }
    assert!(rig.adapter.fast_fail());
    assert_eq!(rig.request(IuKind::Srp, &login_iu()), []);
    assert_eq!(rig.adapter.state(), State::LoggedIn);
    assert_eq!(rig.logged_in_with, Some(REQUEST_LIMIT as i32));
}

/// CLIENT 2: a client that registered first got H_CLOSED and waits: the server must send C001 itself.
#[test]
fn client_2_a_restarted_server_sends_init() {
    let mut rig = Rig::new();
    assert_eq!(rig.on(Event::Enable), [Action::Register]);
    // The queue of the server that died is still there.
    assert_eq!(rig.registered(Registered::AlreadyRegistered), [Action::Free]);
    assert_eq!(rig.freed(Freed::Done), [Action::Register]);
    assert_eq!(rig.registered(Registered::PartnerThere), [Action::Send(Entry::INIT)]);
    rig.sent(Sent::Delivered);
    assert_eq!(rig.arrived(Incoming::InitComplete), []);
    assert_eq!(rig.adapter.state(), State::Connected);
}

/// WIRE 4: both sides send INIT at once; each answers the other's, and one connection comes of it.
#[test]
fn wire_4_crossing_handshakes_make_one_connection() {
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    rig.registered(Registered::PartnerThere);
    assert_eq!(rig.arrived(Incoming::Init), [Action::Send(Entry::INIT_COMPLETE)]);
    rig.sent(Sent::Delivered);
    rig.sent(Sent::Delivered);
    assert_eq!(rig.arrived(Incoming::InitComplete), [], "the client's answer to ours");
    assert_eq!(rig.adapter.state(), State::Connected);
}

/// CLIENT 2: host reset is H_FREE_CRQ, H_REG_CRQ, C001, login. A late answer must not land in the memory of the
/// new connection, so INIT is answered when the last request has ended.
#[test]
fn client_2_host_reset_while_a_command_runs() {
    let mut rig = busy();
    let gone = rig.arrived(Incoming::Transport(TransportEvent::PartnerDeregistered));
    assert_eq!(gone, [Action::ConnectionOver(Reason::PartnerDeregistered), Action::Abandon]);
    assert!(!rig.adapter.answers_wanted());
    assert_eq!(rig.arrived(Incoming::Init), [], "not yet");
    assert_eq!(rig.ended(), [Action::Send(Entry::INIT_COMPLETE)]);
    rig.sent(Sent::Delivered);
    rig.request(IuKind::Srp, &login_iu());
    assert_eq!(rig.adapter.state(), State::LoggedIn);
    assert_eq!(rig.adapter.credit().available(), REQUEST_LIMIT, "a new account");
}

/// WIRE 8: our error frees our queue and registers it again, unless the client went meanwhile: both sides would
/// reset each other.
#[test]
fn wire_8_an_error_resets_the_queue_but_not_when_the_client_resets_itself() {
    let mut rig = busy();
    rig.arrived(Incoming::Unknown);
    assert_eq!(rig.ended(), [Action::Free]);
    assert_eq!(rig.freed(Freed::Done), [Action::Register]);
    assert_eq!(rig.registered(Registered::PartnerThere), [Action::Send(Entry::INIT)]);

    for (event, then) in [
        (Incoming::Transport(TransportEvent::PartnerFailed), vec![]),
        (Incoming::Init, vec![Action::Send(Entry::INIT_COMPLETE)]),
    ] {
        let mut rig = busy();
        rig.arrived(Incoming::Unknown);
        assert_eq!(rig.arrived(event), []);
        assert_eq!(rig.ended(), then);
        assert!(rig.registered && rig.call.is_none());
    }
}

/// CLIENT 2, WIRE 9: FF06 is followed by H_ENABLE_CRQ, C001 and a full login; the queue goes on.
#[test]
fn wire_9_a_migrated_client_logs_in_again_on_the_same_queue() {
    let mut rig = busy();
    rig.arrived(Incoming::Transport(TransportEvent::Migrated));
    rig.ended();
    assert_eq!(rig.adapter.state(), State::WaitConnection);
    rig.arrived(Incoming::Init);
    rig.sent(Sent::Delivered);
    rig.request(IuKind::Srp, &login_iu());
    assert_eq!(rig.adapter.state(), State::LoggedIn);
}

/// WIRE 8: what is in flight ends, with answers, then the hypervisor hears of it. A resumed client that missed
/// nothing just goes on.
#[test]
fn wire_8_suspension_waits_for_what_is_in_flight() {
    let mut rig = busy();
    assert_eq!(rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend)), []);
    assert!(rig.adapter.answers_wanted());
    assert_eq!(rig.ended(), [Action::ReadyForSuspend]);
    assert_eq!(rig.arrived(Incoming::Transport(TransportEvent::Resume)), []);
    assert_eq!(rig.adapter.state(), State::LoggedIn);
    assert_eq!(rig.adapter.deadline(), None);
}

/// Its memory may be on the move, so a request is dropped while the client is suspended; the client is made to
/// repeat it afterwards.
#[test]
fn wire_8_a_request_that_a_suspended_client_sent_is_repeated_by_a_new_connection() {
    let prepare = Incoming::Transport(TransportEvent::PrepareForSuspend);
    for ready in [false, true] {
        let mut rig = busy();
        if ready {
            rig.ended();
        }
        rig.arrived(prepare);
        assert_eq!(rig.arrived(request(IuKind::Srp, 256)), [], "dropped");
        if !ready {
            assert_eq!(rig.ended(), [Action::ReadyForSuspend]);
        }
        assert_eq!(
            rig.arrived(Incoming::Transport(TransportEvent::Resume)),
            [Action::ConnectionOver(Reason::MissedWhileSuspended), Action::Free]
        );
    }
}

/// WIRE 8: the hypervisor gives a suspension 30 s and then gives it up.
#[test]
fn wire_8_a_suspension_that_takes_too_long_is_off() {
    let mut rig = busy();
    rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend));
    assert_eq!(rig.adapter.deadline(), Some(rig.now + SUSPEND_NS));
    rig.now += SUSPEND_NS;
    assert_eq!(rig.on(Event::Time), []);
    assert_eq!(rig.ended(), [], "too late to say that we are ready");
    let mut rig = busy();
    rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend));
    rig.arrived(request(IuKind::Srp, 256));
    rig.now += SUSPEND_NS;
    let over = Action::ConnectionOver(Reason::MissedWhileSuspended);
    assert_eq!(rig.on(Event::Time), [over, Action::Abandon]);
}

/// What ended already does not end again for what it missed.
#[test]
fn wire_8_a_connection_that_ended_while_suspended_ends_once() {
    let mut rig = busy();
    rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend));
    rig.arrived(request(IuKind::Srp, 256));
    rig.arrived(Incoming::Unknown);
    assert_eq!(rig.arrived(Incoming::Transport(TransportEvent::Resume)), []);
    assert_eq!(rig.ended(), [Action::Free]);
}

/// A client that was suspended and starts over needs no reset for what it missed.
#[test]
fn wire_8_a_client_that_starts_over_has_missed_nothing() {
    for incoming in [Incoming::Init, Incoming::Transport(TransportEvent::Migrated)] {
        let mut rig = logged_in();
        rig.arrived(Incoming::Transport(TransportEvent::PrepareForSuspend));
        rig.arrived(request(IuKind::Srp, 256));
        rig.arrived(incoming);
        assert_eq!(rig.arrived(Incoming::Transport(TransportEvent::Resume)), []);
        assert_ne!(rig.adapter.state(), State::Freeing);
    }
}

/// The hypervisor is not told of a client that went before it could be suspended.
#[test]
fn wire_8_a_client_that_went_is_not_ready_for_suspend() {
    let prepare = Incoming::Transport(TransportEvent::PrepareForSuspend);
    let gone = Incoming::Transport(TransportEvent::PartnerFailed);
    let mut rig = busy();
    rig.arrived(prepare);
    rig.arrived(gone);
    assert_eq!(rig.ended(), []);
    let mut rig = busy();
    rig.arrived(Incoming::Unknown);
    rig.arrived(prepare);
    rig.arrived(gone);
    assert_eq!(rig.ended(), []);
}

/// Whoever went, or came back to another queue, is not suspended any more: its PING is answered.
#[test]
fn wire_8_a_suspension_ends_with_the_client_and_with_the_queue() {
    let prepare = Incoming::Transport(TransportEvent::PrepareForSuspend);
    let mut rig = waiting();
    rig.arrived(prepare);
    assert_eq!(rig.arrived(Incoming::Ping(PING)), []);
    rig.arrived(Incoming::Transport(TransportEvent::PartnerDeregistered));
    assert_eq!(rig.arrived(Incoming::Ping(PING)), [Action::Send(PING.ping_response())]);
    let mut rig = logged_in();
    rig.arrived(prepare);
    rig.arrived(Incoming::Unknown);
    rig.freed(Freed::Done);
    rig.registered(Registered::PartnerAbsent);
    assert_eq!(rig.arrived(Incoming::Ping(PING)), [Action::Send(PING.ping_response())]);
}

/// Nothing of a connection is left in the next one: no datagram outstanding, no client, no full queue.
#[test]
fn wire_8_a_new_connection_knows_nothing_of_the_old_one() {
    let mad = request(IuKind::Mad, 256);
    let mut rig = busy();
    rig.on(Event::AnswerSent(Sent::QueueFull));
    rig.arrived(mad);
    rig.arrived(Incoming::Init);
    rig.ended();
    rig.ended();
    rig.now += SEND_PATIENCE_NS;
    assert!(matches!(rig.sent(Sent::QueueFull)[..], [Action::SendAgain(_)]), "the first time");
    rig.sent(Sent::Delivered);
    assert_eq!(rig.request(IuKind::Mad, &mad_iu(MadKind::AdapterInformation, 148)), []);
    let iu = mad_iu(MadKind::AdapterInformation, 148);
    let Taken::Mad(mad_read, _) = rig.adapter.on_iu(IuKind::Mad, &iu, rig.now) else { panic!() };
    let mut payload = rig::server().adapter_information().to_bytes();
    rig.adapter.answer_mad(&mad_read, &mut payload);
    assert_eq!(rig.adapter.client(), OsType::AIX);
    rig.arrived(Incoming::Init);
    assert_eq!(rig.adapter.client(), OsType::default());
    // The same after a logout with a datagram in flight.
    let mut rig = logged_in();
    rig.arrived(mad);
    let mut iu = vec![0; 256];
    iu::encode_logout(8, &mut iu).expect("fits");
    rig.arrived(request(IuKind::Srp, 256));
    rig.fetching.swap(0, 1);
    rig.fetched(&iu);
    rig.ended();
    assert_eq!(rig.adapter.state(), State::Connected);
    assert!(matches!(rig.arrived(mad)[..], [Action::Fetch(_)]));
}

/// WIRE 8: H_DROPPED is tried again every 5 us for at most 30 s; what is delivered starts the time anew.
#[test]
fn wire_8_a_full_queue_is_tried_again_for_30_s() {
    let mut rig = busy();
    for _ in 0..2 {
        let begin = rig.now;
        for now in [begin, begin + SEND_RETRY_NS, begin + SEND_PATIENCE_NS - 1] {
            rig.now = now;
            let again = [Action::SendAgain(now + SEND_RETRY_NS)];
            assert_eq!(rig.on(Event::AnswerSent(Sent::QueueFull)), again);
        }
        rig.on(Event::AnswerSent(Sent::Delivered));
    }
    rig.on(Event::AnswerSent(Sent::QueueFull));
    rig.now += SEND_PATIENCE_NS;
    assert_eq!(
        rig.on(Event::AnswerSent(Sent::QueueFull)),
        [Action::ConnectionOver(Reason::QueueStaysFull), Action::Abandon]
    );
    assert_eq!(rig.ended(), [Action::Free]);
}

/// A client that never reads: registering again and again is paced.
#[test]
fn wire_8_a_queue_that_comes_to_no_connection_is_registered_once_a_second() {
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    for round in 0..5 {
        rig.registered(Registered::PartnerThere);
        assert_eq!(rig.sent(Sent::Failed(-1))[1..], [Action::Free]);
        let freed = rig.freed(Freed::Done);
        if round == 0 {
            assert_eq!(freed, [Action::Register], "once at once");
        } else {
            assert_eq!(freed, []);
            assert_eq!(rig.adapter.deadline(), Some(rig.now + REGISTER_PAUSE_NS));
            rig.now += REGISTER_PAUSE_NS;
            assert_eq!(rig.on(Event::Time), [Action::Register]);
        }
    }
}

/// Connections that came to be are another matter, and so is an adapter that is enabled anew.
#[test]
fn wire_8_a_queue_after_a_connection_is_registered_at_once() {
    let mut rig = connected();
    for _ in 0..4 {
        rig.arrived(Incoming::Unknown);
        assert_eq!(rig.freed(Freed::Done), [Action::Register]);
        rig.registered(Registered::PartnerAbsent);
        rig.arrived(Incoming::Init);
        rig.sent(Sent::Delivered);
    }
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.on(Event::Enable);
        assert_eq!(rig.registered(Registered::AlreadyRegistered), [Action::Free]);
        assert_eq!(rig.freed(Freed::Done), [Action::Register], "an earlier server's");
        rig.on(Event::Disable);
        rig.disable();
    }
}

/// WIRE 2: BUSY and LONG BUSY are repeated, and not for ever.
#[test]
fn wire_2_a_busy_hypervisor_is_asked_again_and_then_given_up() {
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    let begin = rig.now;
    assert_eq!(rig.registered(Registered::Busy(MILLISECOND_NS)), []);
    assert_eq!(rig.adapter.deadline(), Some(begin + MILLISECOND_NS));
    assert_eq!(rig.on(Event::Time), [], "not yet");
    rig.now += MILLISECOND_NS;
    assert_eq!(rig.on(Event::Time), [Action::Register]);
    // A hundred seconds are a hint, and a long one.
    rig.registered(Registered::from_code(9905));
    assert_eq!(rig.adapter.deadline(), Some(rig.now + CALL_RETRY_NS_MAX));
    rig.now += CALL_RETRY_NS_MAX;
    assert_eq!(rig.on(Event::Time), [Action::Register]);
    rig.now = begin + CALL_PATIENCE_NS;
    let busy = rig.registered(Registered::Busy(MILLISECOND_NS));
    assert_eq!(busy, [Action::GaveUp(Reason::RegisterBusy)]);
    assert_eq!(rig.adapter.deadline(), None);
    assert_eq!(rig.on(Event::Enable), [Action::Register], "whoever enables it tries again");

    let mut rig = logged_in();
    rig.arrived(Incoming::Unknown);
    rig.now += CALL_PATIENCE_NS;
    let busy = rig.freed(Freed::Busy(MILLISECOND_NS));
    assert_eq!(busy, [Action::GaveUp(Reason::FreeBusy)]);
}

/// Configuration changes its mind while calls are under way.
#[test]
fn an_adapter_is_disabled_and_enabled_in_every_moment() {
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    assert_eq!(rig.on(Event::Disable), [], "the call is under way");
    assert_eq!(rig.registered(Registered::PartnerThere), [Action::Free]);
    assert_eq!(rig.on(Event::Enable), []);
    assert_eq!(rig.freed(Freed::Done), [Action::Register]);
    assert_eq!(rig.on(Event::Disable), []);
    assert_eq!(rig.on(Event::Enable), []);
    assert_eq!(rig.registered(Registered::PartnerAbsent), [], "as if nothing had been");
    assert_eq!(rig.adapter.state(), State::WaitConnection);
    let mut rig = Rig::new();
    rig.on(Event::Enable);
    rig.on(Event::Disable);
    assert_eq!(rig.registered(Registered::Busy(MILLISECOND_NS)), []);
    assert_eq!(rig.adapter.state(), State::Disabled, "and not asked again");
    let mut rig = busy();
    rig.on(Event::Disable);
    assert_eq!(rig.arrived(Incoming::Init), [], "a client is no reason to stay");
    assert_eq!(rig.ended(), [Action::Free]);
    assert_eq!(rig.freed(Freed::Done), []);
    assert_eq!(rig.adapter.state(), State::Disabled);
}

/// WIRE 5: what makes the server drop the connection, each with its reason.
#[test]
fn wire_5_violations_end_the_connection_with_a_reason() {
    let tagged = |opcode: u8| {
        let mut iu = vec![0; 256];
        iu[0] = opcode;
        iu
    };
    let mut reserved_bits = command_iu();
    reserved_bits[31] = 0x06;
    let malformed = |iu: &[u8]| match iu::parse(iu) {
        Err(iu::IuError::Malformed(malformed)) => Reason::Malformed(malformed),
        other => panic!("{other:?}"),
    };
    let ended = |actions: Vec<Action>, reason: Reason| {
        assert_eq!(actions[0], Action::ConnectionOver(reason), "{reason}");
        assert_eq!(actions.last(), Some(&Action::Free), "{reason}");
    };
    for (iu, reason) in [
        (reserved_bits, Reason::ReservedCdbBits(6)),
        (tagged(opcode::CREDIT_RESPONSE), Reason::UnexpectedIu(0x41)),
        (tagged(opcode::EVENT_RESPONSE), Reason::UnexpectedIu(0x42)),
        (tagged(0x77), malformed(&tagged(0x77))),
        (command_iu()[..47].to_vec(), malformed(&command_iu()[..47])),
        (abort_iu()[..47].to_vec(), malformed(&abort_iu()[..47])),
    ] {
        ended(logged_in().request(IuKind::Srp, &iu), reason);
    }
    let login_short = iu::Malformed::TooShort { opcode: 0, needed_bytes: 64, iu_bytes: 63 };
    for (kind, iu, reason) in [
        (IuKind::Srp, command_iu(), Reason::BeforeLogin(2)),
        (IuKind::Srp, abort_iu(), Reason::BeforeLogin(1)),
        (IuKind::Srp, login_iu()[..63].to_vec(), Reason::Malformed(login_short)),
        (IuKind::Mad, vec![0; 15], Reason::ShortMad(15)),
    ] {
        ended(connected().request(kind, &iu), reason);
    }
}

/// WIRE 3: only one datagram may be outstanding; its answer makes room for the next.
#[test]
fn wire_3_a_second_datagram_before_the_answer_ends_the_connection() {
    let mut rig = connected();
    let mad = request(IuKind::Mad, 256);
    assert!(matches!(rig.arrived(mad)[..], [Action::Fetch(_)]));
    let over = Action::ConnectionOver(Reason::SecondMad);
    assert_eq!(rig.arrived(mad), [over, Action::Abandon]);
    let mut rig = connected();
    for _ in 0..3 {
        assert_eq!(rig.request(IuKind::Mad, &mad_iu(MadKind::AdapterInformation, 148)), []);
    }
}

/// WIRE 4: a second login is rejected, and changes nothing.
#[test]
fn wire_4_a_login_while_logged_in_is_rejected() {
    let mut rig = logged_in();
    let iu = login_iu();
    match rig.adapter.on_iu(IuKind::Srp, &iu, rig.now) {
        Taken::Login(_, Err(reject)) => assert_eq!(reject.code(), 0x0001_0006),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.adapter.state(), State::LoggedIn);
    let Taken::Login(request, _) = rig.adapter.on_iu(IuKind::Srp, &iu, rig.now) else { panic!() };
    assert_eq!(rig.adapter.log_in(&request), None, "not twice");
}

/// WIRE 5: one request too many drops the connection. SRP_I_LOGOUT and datagrams use no credit.
#[test]
fn wire_5_more_requests_than_the_limit_end_the_connection() {
    let mut rig = logged_in();
    for _ in 1..REQUEST_LIMIT {
        assert_eq!(rig.request(IuKind::Srp, &command_iu()), []);
    }
    assert_eq!(rig.request(IuKind::Srp, &abort_iu()), []);
    assert_eq!(rig.adapter.credit().available(), 0);
    assert_eq!(rig.request(IuKind::Mad, &mad_iu(MadKind::Capabilities, 92)), []);
    let over = Action::ConnectionOver(Reason::OverLimit(REQUEST_LIMIT));
    assert_eq!(rig.request(IuKind::Srp, &abort_iu())[..2], [over, Action::Abandon]);
}

/// WIRE 5: each aborted command adds one to the next answer's delta.
#[test]
fn wire_5_the_debt_of_aborted_commands_is_paid_with_the_next_answer() {
    let mut rig = logged_in();
    for _ in 0..3 {
        rig.request(IuKind::Srp, &command_iu());
    }
    rig.request(IuKind::Srp, &abort_iu());
    for _ in 0..2 {
        rig.adapter.owe();
        rig.ended();
    }
    assert_eq!(rig.adapter.answer_delta(), 3, "the function's own, and two");
    rig.ended();
    assert_eq!(rig.adapter.answer_delta(), 1);
    assert_eq!(rig.adapter.credit().available(), REQUEST_LIMIT);
}

/// WIRE 5: SRP_I_LOGOUT ends the nexus, not the connection: the client may log in again.
#[test]
fn wire_5_a_client_logs_out_and_in_again() {
    let mut iu = vec![0; 256];
    iu::encode_logout(8, &mut iu).expect("fits");
    let mut rig = logged_in();
    rig.request(IuKind::Mad, &mad_iu(MadKind::AdapterInformation, 148));
    let actions = rig.request(IuKind::Srp, &iu);
    assert_eq!(actions[0], Action::ConnectionOver(Reason::LoggedOut));
    assert_eq!(rig.adapter.state(), State::Connected);
    rig.request(IuKind::Srp, &login_iu());
    assert_eq!(rig.adapter.state(), State::LoggedIn);
}

/// WIRE 7: fast-fail is the connection's, and is asked for before the login.
#[test]
fn wire_7_fast_fail_is_for_one_connection_and_before_its_login() {
    let mut rig = logged_in();
    rig.request(IuKind::Mad, &mad_iu(MadKind::EnableFastFail, 16));
    assert!(!rig.adapter.fast_fail(), "too late");
    let mut rig = connected();
    rig.request(IuKind::Mad, &mad_iu(MadKind::EnableFastFail, 16));
    assert!(rig.adapter.fast_fail());
    rig.arrived(Incoming::Init);
    assert!(!rig.adapter.fast_fail(), "a new connection");
}

/// WIRE 3: the client says what it runs on; a payload out of reach is F7.
#[test]
fn wire_3_adapter_information_is_exchanged() {
    let mut rig = connected();
    let iu = mad_iu(MadKind::AdapterInformation, 148);
    let Taken::Mad(mad, Step::Exchange { address: 0x1000, bytes: 148 }) =
        rig.adapter.on_iu(IuKind::Mad, &iu, rig.now)
    else {
        panic!("no exchange")
    };
    let mut theirs = rig::server().adapter_information();
    theirs.os_type = OsType::LINUX;
    let mut payload = theirs.to_bytes();
    assert_eq!(rig.adapter.answer_mad(&mad, &mut payload), MadStatus::Success);
    assert_eq!(payload, rig::server().adapter_information().to_bytes());
    assert_eq!(rig.adapter.client(), OsType::LINUX);
    assert_eq!(rig.adapter.answer_mad(&mad, &mut []), MadStatus::Failed);
}

/// WIRE 1: PING is answered at once, and one at a time.
#[test]
fn wire_1_ping_is_answered_one_at_a_time() {
    for numbering in [Numbering::Papr, Numbering::Qemu] {
        let ping = Entry::ping(numbering);
        let mut rig = logged_in();
        assert_eq!(rig.arrived(ping.read()), [Action::Send(ping.ping_response())]);
        assert_eq!(rig.arrived(ping.read()), [], "the last answer still waits");
        rig.sent(Sent::Delivered);
        assert_eq!(rig.arrived(ping.read()), [Action::Send(ping.ping_response())]);
    }
}

/// WIRE 2: H_CLOSED at an answer ends the connection; the FF02 that follows changes nothing more.
#[test]
fn wire_2_h_closed_before_ff02() {
    let mut rig = busy();
    let closed = rig.on(Event::AnswerSent(Sent::PartnerAbsent));
    assert_eq!(closed, [Action::ConnectionOver(Reason::PartnerAbsent), Action::Abandon]);
    rig.ended();
    assert_eq!(rig.adapter.state(), State::WaitConnection);
    assert_eq!(rig.arrived(Incoming::Transport(TransportEvent::PartnerDeregistered)), []);
    assert_eq!(rig.arrived(Incoming::Init), [Action::Send(Entry::INIT_COMPLETE)]);
}

// ---------------------------------------------------------------------------------------------------------
// Any sequence
// ---------------------------------------------------------------------------------------------------------

/// The unit that a client sends, chosen by one byte.
fn iu_of(argument: u8) -> Vec<u8> {
    match argument % 8 {
        0 => login_iu(),
        1 => abort_iu(),
        2 => mad_iu(MadKind::EnableFastFail, 16),
        3 => mad_iu(MadKind::AdapterInformation, 148),
        4 => vec![argument; 256],
        _ => command_iu(),
    }
}

/// An entry that a client or a hypervisor sends, chosen by one byte.
fn entry_of(argument: u8) -> [u8; 16] {
    let mut bytes = [argument; 16];
    bytes[0] = [0x80, 0xC0, 0xFF, 0x33][usize::from(argument % 4)];
    bytes[1] = argument >> 4;
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    /// The rig checks every step. From wherever it led, the adapter comes to rest when it is disabled, and a
    /// client gets in when it is enabled.
    #[test]
    fn any_sequence_of_events_can_be_ended_and_begun_again(
        logged_in_first: bool, steps in prop::collection::vec((any::<u8>(), any::<u8>()), 0..120),
    ) {
        let mut rig = if logged_in_first { logged_in() } else { Rig::new() };
        for (choice, argument) in steps {
            rig.step(choice, argument, iu_of, entry_of);
        }
        rig.disable();
        rig.log_in(&login_iu());
    }
}
