//! Any entries, any control messages, in any order: nothing panics, and every entry that was taken
//! is either outstanding or was completed.

mod model;

use lunar_core::RingState;
use lunar_handlers::{CancelAnswer, Outcome as Handler};
use lunar_offload_proto::control::{
    ConfigurationApplied, Event, Goodbye, HelloAccepted, InFlight, NexusEvent, Reconcile, Revoked,
    RingSetupRefused, RingsReady, Statistics, ToHost, to_host,
};
use lunar_offload_proto::ring::{BlockRange, BlockRequest, Operation, SideRecord, SubmissionEntry};
use model::{
    Bench, DATA_BYTES, RINGS, SECOND, SLOTS, block_entry, block_range, configuration, login, logout,
};
use proptest::prelude::*;
use zerocopy::FromBytes;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// An entry as the card's bytes are, into the core past the ring's own checks.
    Bytes(u16, Vec<u8>, Vec<u8>),
    /// A likely entry with one field changed.
    Likely {
        ring: u16,
        operation: u8,
        token: u64,
        generation: u32,
        nexus: u32,
        lba: u64,
    },
    /// A command of a likely opcode with any parameter list.
    Forward {
        ring: u16,
        token: u64,
        cdb: Vec<u8>,
        list: Vec<u8>,
        data_out: bool,
    },
    /// An UNMAP of any ranges.
    Unmap(u16, u64, Vec<(u64, u32)>),
    Control(Box<to_host::Message>),
    ControlWithoutContent,
    Lose,
    Connect(u64),
    End(u8),
    AnswerCancel(bool),
    Configure,
    Tick(u64),
    RestartAgent,
}

fn message() -> impl Strategy<Value = to_host::Message> {
    let reconcile = (0_u32..3, 0_u64..4, prop::collection::vec((0_u64..12, 0_u32..20), 0..12))
        .prop_map(|(ring, agent_epoch, list)| {
            let operations =
                list.into_iter().map(|(token, sequence)| InFlight { token, sequence }).collect();
            to_host::Message::Reconcile(Reconcile { ring, agent_epoch, operations })
        });
    prop_oneof![
        4 => reconcile,
        4 => Just(to_host::Message::RingsReady(RingsReady::default())),
        1 => Just(to_host::Message::RingSetupRefused(RingSetupRefused::default())),
        1 => Just(to_host::Message::HelloAccepted(HelloAccepted::default())),
        2 => (0_u32..4).prop_map(|generation| {
            to_host::Message::ConfigurationApplied(ConfigurationApplied { generation })
        }),
        4 => (0_u32..4).prop_map(|generation| to_host::Message::NexusEvent(login(generation))),
        2 => (0_u32..4).prop_map(|generation| to_host::Message::NexusEvent(logout(generation))),
        1 => (any::<i32>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, id)| {
            let event = NexusEvent { kind, initiator_port_id: id, ..NexusEvent::default() };
            to_host::Message::NexusEvent(event)
        }),
        1 => any::<u32>().prop_map(|arena| to_host::Message::Revoked(Revoked { arena })),
        1 => Just(to_host::Message::Statistics(Statistics::default())),
        1 => (any::<i32>(), ".{0,300}").prop_map(|(level, text)| {
            to_host::Message::Event(Event { level, text, ..Event::default() })
        }),
        1 => Just(to_host::Message::Heartbeat(Default::default())),
        1 => Just(to_host::Message::Goodbye(Goodbye::default())),
    ]
}

fn forward() -> impl Strategy<Value = Step> {
    let opcode = prop::sample::select(vec![0x04, 0x15, 0x55, 0x83, 0x84, 0x5E, 0x5F, 0x16, 0x57]);
    let rest = prop::collection::vec(prop_oneof![Just(0), 0..9_u8, any::<u8>()], 0..16);
    let list = prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..128);
    (0..RINGS, 0_u64..12, opcode, rest, list, any::<bool>()).prop_map(
        |(ring, token, opcode, rest, list, data_out)| {
            let cdb = std::iter::once(opcode).chain(rest).collect();
            Step::Forward { ring, token, cdb, list, data_out }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = (
        0_u16..3,
        prop::collection::vec(any::<u8>(), 64),
        prop::collection::vec(any::<u8>(), 1024),
    );
    let likely = (0..RINGS, 0_u8..14, 0_u64..12, 0_u32..4, 0_u32..4, 0_u64..1001);
    prop_oneof![
        2 => bytes.prop_map(|(ring, entry, side)| Step::Bytes(ring, entry, side)),
        10 => likely.prop_map(|(ring, operation, token, generation, nexus, lba)| {
            Step::Likely { ring, operation, token, generation, nexus, lba }
        }),
        4 => forward(),
        2 => (0..RINGS, 0_u64..12, prop::collection::vec((0_u64..1001, 0_u32..9), 0..32))
            .prop_map(|(ring, token, ranges)| Step::Unmap(ring, token, ranges)),
        6 => message().prop_map(|message| Step::Control(Box::new(message))),
        1 => Just(Step::ControlWithoutContent),
        1 => Just(Step::Lose),
        2 => (99_u64..102).prop_map(Step::Connect),
        6 => any::<u8>().prop_map(Step::End),
        3 => any::<bool>().prop_map(Step::AnswerCancel),
        1 => Just(Step::Configure),
        1 => (0_u64..40 * SECOND).prop_map(Step::Tick),
        1 => Just(Step::RestartAgent),
    ]
}

/// A full ring is the card's to respect; the core is tried with it elsewhere.
fn push(bench: &mut Bench, ring: u16, entry: SubmissionEntry, side: &SideRecord) {
    let card = &mut bench.card[usize::from(ring)];
    if card.submissions.push(entry, Some(side)).is_ok() {
        card.submissions.publish();
    }
    bench.poll();
}

fn take(bench: &mut Bench, step: Step) {
    match step {
        Step::Bytes(ring, entry, side) => {
            let entry = SubmissionEntry::read_from_bytes(&entry).expect("64 bytes");
            let side = SideRecord::read_from_bytes(&side).expect("1024 bytes");
            bench.core.on_submission(ring, &entry, &side, bench.now);
        }
        Step::Likely { ring, operation, token, generation, nexus, lba } => {
            let mut entry = block_entry(Operation::from_code(operation), token);
            entry.configuration_generation.set(generation);
            entry.nexus_generation.set(nexus);
            entry.lba.set(lba);
            let card = &mut bench.card[usize::from(ring)];
            // A full ring is the card's to respect; the core is tried with it elsewhere.
            if card.submissions.push(entry, None).is_ok() {
                card.submissions.publish();
            }
            bench.poll();
        }
        Step::Forward { ring, token, cdb, list, data_out } => {
            let mut side = SideRecord::empty();
            side.set_cdb(&cdb).expect("short");
            let mut entry = block_entry(Operation::Read, token);
            BlockRequest::Forward { data_out }.encode(&mut entry);
            let place = block_range().offset + u64::from(ring) * DATA_BYTES;
            assert!(bench.arena.write(place, &list));
            entry.data_offset.set(place);
            entry.data_bytes.set(list.len() as u32);
            push(bench, ring, entry, &side);
        }
        Step::Unmap(ring, token, ranges) => {
            let mut side = SideRecord::empty();
            let ranges: Vec<_> =
                ranges.iter().map(|(lba, blocks)| BlockRange::new(*lba, *blocks)).collect();
            side.set_ranges(&ranges).expect("at most 31");
            let mut entry = block_entry(Operation::Read, token);
            BlockRequest::Unmap.encode(&mut entry);
            entry.data_bytes.set(0);
            push(bench, ring, entry, &side);
        }
        Step::Control(message) => bench.control(*message),
        Step::ControlWithoutContent => {
            bench.core.on_control(ToHost { message: None }, bench.now);
        }
        Step::Lose => bench.core.on_control_lost(bench.now),
        Step::Connect(epoch) => bench.connect(epoch),
        Step::End(which) => {
            let outcomes = [
                Handler::Done,
                Handler::Cancelled,
                Handler::ReadError { lba: 1 },
                Handler::Miscompare { offset: 9 },
                Handler::Listed { runs: u32::MAX },
            ];
            if !bench.executing.is_empty() {
                bench.end(outcomes[usize::from(which) % outcomes.len()]);
            }
        }
        Step::AnswerCancel(cancelled) => {
            let answer = if cancelled { CancelAnswer::Cancelled } else { CancelAnswer::TooLate };
            if !bench.cancels.is_empty() {
                bench.answer_cancel(answer);
            }
        }
        Step::Configure => {
            bench.core.set_configuration(configuration(), bench.now).expect("configuration");
        }
        Step::Tick(passed) => bench.tick(bench.now + passed),
        Step::RestartAgent => restart(bench),
    }
    bench.settle();
}

/// As [`Bench::restart_agent`], where the card's own epoch may have been anything.
fn restart(bench: &mut Bench) {
    if bench.remembered.is_some() && bench.closed.is_empty() {
        bench.restart_agent(7);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_the_accounts_hold(steps in prop::collection::vec(step(), 1..80)) {
        let mut bench = Bench::serving();
        for step in steps {
            take(&mut bench, step);
            for ring in 0..RINGS {
                let outstanding = bench.core.outstanding(ring);
                prop_assert!(outstanding <= SLOTS);
                if bench.core.ring_state(ring) != Some(&RingState::Open) {
                    prop_assert_eq!(outstanding, 0);
                    continue;
                }
                let counters = bench.core.ring_counters(ring).expect("ring");
                prop_assert!(counters.completions <= counters.submissions + counters.lost);
                bench.completions(ring);
            }
            prop_assert_eq!(bench.core.running(), bench.executing.len());
        }
        // Everything ends, and what is parked expires (or its turn comes: then it ends too).
        for _ in 0..2 {
            while !bench.executing.is_empty() {
                bench.end(Handler::Done);
            }
            while !bench.cancels.is_empty() {
                bench.answer_cancel(CancelAnswer::TooLate);
            }
            bench.tick(bench.now + 31 * SECOND);
        }
        for ring in 0..RINGS {
            prop_assert_eq!(bench.core.outstanding(ring), 0);
        }
    }
}
