//! Random operations, cancels, agent steps and agent restarts against a naive model: every operation
//! ends exactly once, as the agent decided it, with the right bytes, and nothing stays behind.

mod rig;

use std::collections::HashMap;

use lunar_backend::BlockRequest;
use lunar_dma::sgv::{Buffer, Placement};
use lunar_offload_proto::ring::{CompletionEntry, Outcome as Code};
use proptest::prelude::*;
use rig::{BLOCK_BYTES, Plan, Rig};

#[derive(Clone, Debug)]
enum Step {
    Read { slot: u64, host: bool },
    Write { slot: u64, host: bool, value: u8 },
    Forward { slot: u64, value: u8 },
    Cancel { slot: u64 },
    Tick,
    AgentTakes { count: usize },
    AgentFinishes { index: usize },
    AgentRestarts,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..16_u64;
    prop_oneof![
        3 => (slot.clone(), any::<bool>()).prop_map(|(slot, host)| Step::Read { slot, host }),
        3 => (slot.clone(), any::<bool>(), 1..=255_u8)
            .prop_map(|(slot, host, value)| Step::Write { slot, host, value }),
        1 => (slot.clone(), 1..=255_u8).prop_map(|(slot, value)| Step::Forward { slot, value }),
        2 => slot.prop_map(|slot| Step::Cancel { slot }),
        8 => Just(Step::Tick),
        4 => (1..6_usize).prop_map(|count| Step::AgentTakes { count }),
        4 => (0..4_usize).prop_map(|index| Step::AgentFinishes { index }),
        1 => Just(Step::AgentRestarts),
    ]
}

/// An operation as the model knows it. Each slot works on a block of its own, so that the model needs
/// no order between operations.
enum Expected {
    Read,
    Write(u8),
    Forward(u8),
}

struct Flying {
    token: u64,
    expected: Expected,
    buffer: Option<Buffer>,
    cancelled: bool,
}

struct World {
    rig: Rig,
    flying: HashMap<u64, Flying>,
    generations: [u64; 16],
    /// What the agent may have lost: its outcome may be `Lost`.
    lost: Vec<u64>,
}

impl World {
    fn claim(&mut self, host: bool) -> Buffer {
        let placement = if host { Placement::HostDram } else { Placement::CardDram };
        self.rig.claim(placement, BLOCK_BYTES as u32)
    }

    fn submit(&mut self, slot: u64, expected: Expected, host: bool) {
        if self.flying.contains_key(&slot) {
            return;
        }
        let token = (self.generations[slot as usize] << 32) | slot;
        let (taken, buffer) = match expected {
            Expected::Read => {
                let buffer = self.claim(host);
                (self.rig.read(token, slot, 1, &buffer), Some(buffer))
            }
            Expected::Write(value) => {
                let buffer = self.claim(host);
                self.rig.fetch_data_out(&buffer, &[value; BLOCK_BYTES]);
                (self.rig.write(token, slot, 1, &buffer), Some(buffer))
            }
            Expected::Forward(value) => {
                let request = BlockRequest::Forward { data_out: false };
                (self.rig.submit(token, request, None, 0, &[value; 32]), None)
            }
        };
        if taken.is_ok() {
            self.generations[slot as usize] += 1;
            let flying = Flying { token, expected, buffer, cancelled: false };
            self.flying.insert(slot, flying);
        } else if let Some(buffer) = buffer {
            // Data-out that was fetched for nothing may still be on its way.
            self.rig.ring.flush_before_publish();
            self.rig.release(buffer);
        }
    }

    /// A new agent: what was started is unknown to it.
    fn restart_agent(&mut self) {
        self.rig.ring.detach();
        for started in std::mem::take(&mut self.rig.agent.started) {
            let token = started.entry.token.get();
            self.lost.push(token);
            self.rig.agent.complete(CompletionEntry::new(token, Code::Lost), None);
        }
        self.rig.ring.attach();
    }

    fn check_outcomes(&mut self) -> Result<(), TestCaseError> {
        for outcome in self.rig.outcomes() {
            let slot = outcome.token & 0xffff_ffff;
            let flying = self.flying.remove(&slot);
            let Some(flying) = flying.filter(|one| one.token == outcome.token) else {
                return Err(TestCaseError::fail(format!("{outcome:?} is not in flight")));
            };
            let block = slot as usize * BLOCK_BYTES..(slot as usize + 1) * BLOCK_BYTES;
            match (outcome.outcome, flying.expected) {
                (Code::Done, Expected::Read) => {
                    let buffer = flying.buffer.as_ref().unwrap();
                    let bytes = self.rig.data_in(buffer, BLOCK_BYTES);
                    prop_assert_eq!(&bytes[..], &self.rig.agent.disk[block]);
                }
                (Code::Done, Expected::Write(value)) => {
                    prop_assert!(self.rig.agent.disk[block].iter().all(|&byte| byte == value));
                }
                (Code::Forwarded, Expected::Forward(value)) => {
                    prop_assert_eq!(self.rig.ring.sense(outcome.token), [value; 32]);
                }
                (Code::Cancelled, _) => prop_assert!(flying.cancelled),
                (Code::Lost, _) => prop_assert!(self.lost.contains(&outcome.token)),
                (other, _) => prop_assert!(false, "unexpected {:?}", other),
            }
            if let Some(buffer) = flying.buffer {
                self.rig.ring.flush_before_publish();
                self.rig.release(buffer);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Read { slot, host } => self.submit(slot, Expected::Read, host),
            Step::Write { slot, host, value } => self.submit(slot, Expected::Write(value), host),
            Step::Forward { slot, value } => self.submit(slot, Expected::Forward(value), false),
            Step::Cancel { slot } => {
                if let Some(flying) = self.flying.get_mut(&slot) {
                    flying.cancelled |= self.rig.ring.cancel(flying.token);
                }
            }
            Step::Tick => {
                self.rig.tick();
            }
            Step::AgentTakes { count } => {
                self.rig.agent.take(count);
            }
            Step::AgentFinishes { index } => self.rig.agent.finish(index),
            Step::AgentRestarts => self.restart_agent(),
        }
        prop_assert_eq!(self.rig.ring.fault(), None);
        self.check_outcomes()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_operation_ends_once_as_the_agent_decided(
        seed in any::<Option<u64>>(),
        slots in prop_oneof![Just(4_u32), Just(8), Just(16)],
        dma_capacity in prop_oneof![Just(3_usize), Just(8), Just(64)],
        staging_bytes_max in prop_oneof![Just(1024_u64), Just(u64::MAX)],
        start in any::<u32>(),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let plan = Plan {
            seed, slots, dma_capacity, staging_bytes_max, start, hints_lost_per_mille: 300,
        };
        let rig = Rig::new(plan);
        let mut world =
            World { rig, flying: HashMap::new(), generations: [1; 16], lost: Vec::new() };
        for step in &steps {
            world.step(step)?;
        }
        for _ in 0..600 {
            world.rig.agent.serve();
            world.step(&Step::Tick)?;
        }
        prop_assert!(world.flying.is_empty(), "{} operations never ended", world.flying.len());
        prop_assert_eq!(world.rig.ring.outstanding(), 0);
        prop_assert_eq!(world.rig.ring.in_flight().count(), 0);
        prop_assert_eq!(world.rig.ring.staged_bytes(), 0);
        prop_assert_eq!(world.rig.host_cache.held_bytes(), 0);
        prop_assert_eq!(world.rig.card_cache.held_bytes(), 0);
    }
}
