//! The same commands on the emulated HCA, with the model initiator at the other end: the card's cost
//! with a provider that does move the bytes.

use lunar_hca::Emulated;
use lunar_hca::Statistics;
use lunar_initiator::{Command, Event, Initiator};
use lunar_scenario::{Hardware, Lab, small_limits};
use lunar_target::PollGroup;

use crate::allocations;
use crate::case::{self, BYTES, Case, DEPTH, WARM_UP};

/// What card and provider did for some commands.
pub struct Counted {
    /// Calls of the allocator while the card ran.
    pub allocator_calls: u64,
    /// RDMA READs and WRITEs executed; each copies its bytes once, from one mapped memory to the other.
    pub copies: u64,
    /// Bytes of them.
    pub copied_bytes: u64,
}

/// Carries out `commands` commands of `case`, after [`WARM_UP`] others.
pub fn run(case: Case, commands: u64) -> Counted {
    let mut lab = Lab::new(Hardware::Prompt, 1, &small_limits());
    lab.configure(case::configuration(2));
    let mut initiator = lab.logged_in(1);
    lab.steps(10);
    drive(&mut lab, &mut initiator, case, WARM_UP);
    let before = statistics(&lab.groups[0]);
    let allocator_calls = drive(&mut lab, &mut initiator, case, commands);
    let after = statistics(&lab.groups[0]);
    Counted {
        allocator_calls,
        copies: after.rdma_writes + after.rdma_reads - before.rdma_writes - before.rdma_reads,
        copied_bytes: after.rdma_write_bytes + after.rdma_read_bytes
            - before.rdma_write_bytes
            - before.rdma_read_bytes,
    }
}

fn statistics(group: &PollGroup<Emulated>) -> Statistics {
    group.hca().statistics()
}

/// Sends `commands` commands, [`DEPTH`] at a time, and waits for the last answer; gives the calls of
/// the allocator while the card ran.
fn drive(lab: &mut Lab, initiator: &mut Initiator, case: Case, commands: u64) -> u64 {
    let lun = lunar_scsi::lun::encode(0);
    let mut events = Vec::with_capacity(64);
    let (mut sent, mut answered, mut calls) = (0, 0, 0);
    while answered != commands || lab.tasks() != 0 {
        while sent != commands && sent - answered != DEPTH {
            let place = sent % DEPTH;
            let cdb = case.cdb(place * 8);
            let (data, shape) = case.data(place as usize * BYTES as usize);
            let command = Command { shape, ..Command::new(lun, &cdb, data) };
            initiator.submit(&command).expect("a credit for each of the commands outstanding");
            sent += 1;
        }
        initiator.flush();
        lab.now = lab.now.plus(1000);
        let before = allocations::calls();
        crate::card_turn(&mut lab.groups[0], lab.now);
        calls += allocations::calls() - before;
        initiator.poll(&mut events);
        for event in events.drain(..) {
            assert!(matches!(event, Event::Response { status: 0, .. }), "{event:?}");
            answered += 1;
        }
    }
    calls
}
