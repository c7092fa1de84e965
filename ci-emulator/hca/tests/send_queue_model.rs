//! Random sequences of posts, doorbells, polls and receive buffers against a naive model: order of
//! completions, room accounting, what is visible when a message is received, and that everything is
//! reported exactly once, in every mode.

mod rig;

use std::collections::VecDeque;

use lunar_hca::{RemoteAccess, RemoteKey};
use lunar_platform::{
    CmEvent, CompletionStatus, Hca, PostError, QpParameters, SendOperation, WorkCompletion,
};
use proptest::prelude::*;
use rig::{Rig, modes, read_from, write_to};

const DEPTH: usize = 8;
const PARAMETERS: QpParameters = QpParameters { send_queue_depth: DEPTH as u32, rdma_reads: 2 };
/// One stamp in the peer's memory, which each WRITE overwrites with its own number.
const STAMP: usize = 4096;

#[derive(Clone, Debug)]
enum Kind {
    Send,
    Write,
    Read,
}

#[derive(Clone, Debug)]
enum Step {
    /// Posts a chain of (kind, signalled).
    Post(Vec<(Kind, bool)>),
    Ring,
    Rounds(usize),
    GiveReceives(usize),
    Disconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Send), Just(Kind::Write), Just(Kind::Read)];
    prop_oneof![
        6 => prop::collection::vec((kind, any::<bool>()), 1..5).prop_map(Step::Post),
        4 => Just(Step::Ring),
        6 => (1usize..6).prop_map(Step::Rounds),
        3 => (1usize..4).prop_map(Step::GiveReceives),
    ]
}

/// What the model knows of one posted request.
#[derive(Debug)]
struct Posted {
    id: u64,
    kind: Kind,
    signaled: bool,
    /// The last WRITE before it (or itself): what the stamp is at least when it is over.
    stamp: u64,
}

struct Model {
    rig: Rig,
    key: RemoteKey,
    /// Posted and not known to be over, oldest first: exactly what holds room.
    holding: VecDeque<Posted>,
    /// Stamps that go with the SENDs the peer has not received yet.
    messages: VecDeque<u64>,
    ids: u64,
    stamps: u64,
    receives: u64,
    disconnected: bool,
    /// A flushed completion was seen: every later request is flushed, and reported.
    flushing: bool,
}

impl Model {
    fn new(mut rig: Rig) -> Self {
        let key = rig.initiator.expose(STAMP as u64, 8, RemoteAccess::READ_WRITE);
        let (holding, messages) = (VecDeque::new(), VecDeque::new());
        let (ids, stamps, receives) = (0, 0, 0);
        let (disconnected, flushing) = (false, false);
        Self { rig, key, holding, messages, ids, stamps, receives, disconnected, flushing }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Post(chain) => self.post(chain),
            Step::Ring => self.rig.target.hca.ring(self.rig.target_qp),
            Step::Rounds(count) => {
                for _ in 0..*count {
                    self.round();
                }
            }
            Step::GiveReceives(count) => {
                for _ in 0..*count {
                    self.rig.initiator.receive(1 << 32 | self.receives, 0, 64);
                    self.receives += 1;
                }
            }
            Step::Disconnect => {
                self.rig.target.hca.disconnect(self.rig.target_qp);
                self.disconnected = true;
            }
        }
    }

    fn post(&mut self, chain: &[(Kind, bool)]) {
        let room = DEPTH - self.holding.len();
        let mut requests = Vec::new();
        let mut posted = Vec::new();
        let mut stamp = self.stamps;
        for (id, (kind, signaled)) in (self.ids..).zip(chain) {
            // Each request has a local place of its own, so that late gathering is no race.
            let local = 8192 + id * 64;
            let operation = match kind {
                Kind::Send => SendOperation::Send,
                Kind::Write => {
                    stamp += 1;
                    self.rig.target.fill(local as usize, &stamp.to_le_bytes());
                    write_to(self.key, 0)
                }
                Kind::Read => read_from(self.key, 0),
            };
            requests.push(self.rig.target.request(id, operation, local, 8, *signaled));
            posted.push(Posted { id, kind: kind.clone(), signaled: *signaled, stamp });
        }
        let result = self.rig.target.hca.post_send(self.rig.target_qp, &requests);
        if requests.len() > room {
            assert_eq!(result, Err(PostError::Full), "{room} places are left");
            return;
        }
        assert_eq!(result, Ok(()), "{room} places are left");
        self.ids += chain.len() as u64;
        self.stamps = stamp;
        for posted in posted {
            if matches!(posted.kind, Kind::Send) {
                self.messages.push_back(posted.stamp);
            }
            self.holding.push_back(posted);
        }
    }

    fn stamp(&self) -> u64 {
        u64::from_le_bytes(self.rig.initiator.bytes(STAMP, 8).try_into().unwrap())
    }

    /// One round, one end after the other, so that visibility can be checked in between.
    fn round(&mut self) {
        self.rig.round();
        let received = self.rig.initiator.completions.split_off(0);
        for completion in received {
            assert_eq!(completion.status, CompletionStatus::Success);
            let expected = self.messages.pop_front().expect("no message out of thin air");
            assert!(self.stamp() >= expected, "a WRITE before the SEND is not visible");
        }
        let ended = self.rig.target.completions.split_off(0);
        for completion in ended {
            self.check(completion);
        }
    }

    fn check(&mut self, completion: WorkCompletion) {
        while let Some(posted) = self.holding.pop_front() {
            if posted.id != completion.id.0 {
                assert!(!posted.signaled, "{} was passed over", posted.id);
                assert!(!self.flushing, "{} succeeded behind a flushed one", posted.id);
                continue;
            }
            match completion.status {
                CompletionStatus::Success => {
                    assert!(!self.flushing);
                    assert!(posted.signaled, "success of an unsignalled request was reported");
                    assert!(self.stamp() >= posted.stamp, "over before the WRITEs before it");
                    if matches!(posted.kind, Kind::Read) {
                        self.check_read(&posted);
                    }
                }
                CompletionStatus::Flushed => {
                    assert!(self.disconnected);
                    self.flushing = true;
                }
                status => panic!("{status:?}"),
            }
            return;
        }
        panic!("{completion:?} was not posted, or was reported twice, or out of order");
    }

    /// A READ sees every WRITE before it and none after it.
    fn check_read(&self, posted: &Posted) {
        let local = 8192 + posted.id as usize * 64;
        let read = u64::from_le_bytes(self.rig.target.bytes(local, 8).try_into().unwrap());
        assert_eq!(read, posted.stamp);
    }

    /// Everything ends: enough buffers, a doorbell, time.
    fn finish(&mut self) {
        self.run(&Step::Ring);
        let sends = self.messages.len();
        self.run(&Step::GiveReceives(sends));
        for _ in 0..400 {
            self.round();
        }
        let unreported: Vec<_> = self.holding.iter().filter(|posted| posted.signaled).collect();
        assert!(unreported.is_empty(), "{unreported:?}");
        assert!(self.messages.is_empty());
        // A signalled request takes all room back, but one place must be free to post it.
        if self.holding.len() < DEPTH {
            self.run(&Step::Post(vec![(Kind::Write, true)]));
            self.run(&Step::Ring);
            for _ in 0..100 {
                self.round();
            }
            assert!(self.holding.is_empty());
        }
    }

    /// Everything is flushed, unsignalled requests too.
    fn finish_flushed(&mut self) {
        self.run(&Step::Disconnect);
        for _ in 0..400 {
            self.round();
        }
        let drained = CmEvent::Drained(self.rig.target_qp);
        assert!(self.rig.target.events.contains(&drained));
        // Unsignalled requests that succeeded are the only ones nobody hears of.
        let unreported = self.holding.iter().filter(|posted| posted.signaled).count();
        assert_eq!(unreported, 0);
        assert!(!self.flushing || self.holding.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn order_room_and_visibility_hold(steps in prop::collection::vec(step(), 1..60)) {
        for (_, config) in modes() {
            let rig = Rig::with(config("card"), config("client"), PARAMETERS);
            let mut model = Model::new(rig);
            for step in &steps {
                model.run(step);
            }
            model.finish();
        }
    }

    #[test]
    fn a_disconnect_anywhere_reports_everything_once(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        for (_, config) in modes() {
            let rig = Rig::with(config("card"), config("client"), PARAMETERS);
            let mut model = Model::new(rig);
            for step in &steps {
                model.run(step);
            }
            model.finish_flushed();
        }
    }
}
