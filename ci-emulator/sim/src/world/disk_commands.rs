//! The disk commands besides READ and WRITE all the way to a medium and back: one initiator, the real
//! card and the real agent core, no faults and no other load.

use lunar_initiator::cdbs::{self, Transfer};
use lunar_initiator::{Command, Data, Event};

use super::{Plan, World};
use crate::disk::BLOCK_BYTES;
use crate::load::field;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A LUN whose data goes through host memory, and one whose data goes through the card's.
const LUNS: [usize; 2] = [1, 2];

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Good,
    /// Sense key, ASC, ASCQ and INFORMATION.
    Sense(u8, u8, u8, u32),
    Other(u8),
}

/// Initiators that are logged in, of which one is used at a time.
struct Bench {
    world: World,
    /// The one that is used: its channel.
    channel: usize,
}

impl Bench {
    /// Channel 0 is logged in.
    fn new(seed: u64) -> Self {
        let world = World::new(Plan { seed, commands: 0, trace: false });
        let mut bench = Self { world, channel: 0 };
        bench.log_in();
        bench
    }

    /// Logs the channel in and takes its unit attentions.
    fn log_in(&mut self) {
        let channel = self.channel;
        let mut since = 0;
        let bench = &mut *self;
        bench.wait(|world, events| {
            if events.iter().any(|event| matches!(event, Event::LoggedIn { .. })) {
                return true;
            }
            // Refused until the agent has configured the card.
            since += 1;
            if since % 500 == 0 && world.channels[channel].initiator.is_idle() {
                world.channels[channel].initiator.login().expect("idle");
            }
            false
        });
        for lun in 0..crate::units::UNITS.len() {
            bench.run(lun, &cdbs::test_unit_ready(), Data::None);
        }
    }

    /// One turn after the other until `done` says so.
    fn wait(&mut self, mut done: impl FnMut(&mut World, &[Event]) -> bool) {
        let (world, channel) = (&mut self.world, self.channel);
        for _ in 0..200_000 {
            world.now += 500;
            world.run_card();
            world.run_agent().expect("no law is broken");
            // Nobody judges them here.
            let _ = world.host.landings.take();
            let mut events = Vec::new();
            let now = world.now;
            world.channels[channel].poll(now, &mut events);
            if done(world, &events) {
                return;
            }
        }
        panic!("nothing happens any more");
    }

    fn run(&mut self, lun: usize, cdb: &[u8], data: Data) -> End {
        let command = Command::new(field(lun), cdb, data);
        let tag = self.world.channels[self.channel].initiator.submit(&command).expect("room");
        let mut end = None;
        self.wait(|_, events| {
            for event in events {
                if let Event::Response { tag: answered, status, sense, .. } = event
                    && *answered == tag
                {
                    end = Some((*status, sense.clone()));
                }
            }
            end.is_some()
        });
        match end.expect("it ended") {
            (0, _) => End::Good,
            (2, Some(sense)) => {
                let information = u32::from_be_bytes(sense[3..7].try_into().expect("four"));
                End::Sense(sense[2], sense[12], sense[13], information)
            }
            (status, _) => End::Other(status),
        }
    }

    fn send(&mut self, lun: usize, cdb: &[u8], data: &[u8]) -> End {
        self.world.channels[self.channel].initiator.data_mut(0..data.len()).copy_from_slice(data);
        let bytes = u32::try_from(data.len()).expect("short");
        self.run(lun, cdb, if bytes == 0 { Data::None } else { Data::Out { offset: 0, bytes } })
    }

    /// The data-in of a command that ends well.
    fn receive(&mut self, lun: usize, cdb: &[u8], bytes: usize) -> Vec<u8> {
        self.world.channels[self.channel].initiator.data_mut(0..bytes).fill(0xEE);
        let data = Data::In { offset: 0, bytes: u32::try_from(bytes).expect("short") };
        assert_eq!(self.run(lun, cdb, data), End::Good, "{cdb:02x?}");
        self.world.channels[self.channel].initiator.data(0..bytes).to_vec()
    }

    fn read(&mut self, lun: usize, lba: u64, blocks: u32) -> Vec<u8> {
        self.receive(lun, &cdbs::read16(Transfer::new(lba, blocks)), blocks as usize * BLOCK)
    }
}

fn sixteen(operation: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (operation, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn pattern(seed: u8, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK).map(|at| seed.wrapping_add((at % 251) as u8)).collect()
}

#[test]
fn sbc_4_write_same_repeats_its_block_and_verify_finds_the_first_difference() {
    for seed in 1..4 {
        let mut bench = Bench::new(seed);
        for lun in LUNS {
            let block = pattern(7, 1);
            assert_eq!(bench.send(lun, &sixteen(0x93, 0, 100, 8), &block), End::Good);
            let all = block.repeat(8);
            assert_eq!(bench.read(lun, 100, 8), all);
            assert_eq!(bench.send(lun, &sixteen(0x8F, 0x02, 100, 8), &all), End::Good);
            assert_eq!(bench.send(lun, &sixteen(0x8F, 0x06, 100, 8), &block), End::Good);
            assert_eq!(bench.send(lun, &sixteen(0x8F, 0x00, 100, 8), &[]), End::Good);
            let mut other = all.clone();
            other[1_234] ^= 1;
            other[3_000] ^= 1;
            let found = bench.send(lun, &sixteen(0x8F, 0x02, 100, 8), &other);
            assert_eq!(found, End::Sense(0x0E, 0x1D, 0x00, 1_234));
            assert_eq!(bench.send(lun, &sixteen(0x93, 0x01, 101, 2), &[]), End::Good, "NDOB");
            assert_eq!(bench.read(lun, 101, 2), vec![0; 2 * BLOCK]);
            assert_eq!(bench.read(lun, 103, 5), block.repeat(5));
        }
    }
}

#[test]
fn sbc_4_compare_and_write_writes_once() {
    for seed in 1..4 {
        let mut bench = Bench::new(seed);
        for lun in LUNS {
            let (old, new) = (pattern(3, 2), pattern(9, 2));
            assert_eq!(bench.send(lun, &sixteen(0x8E, 0x02, 40, 2), &old), End::Good, "write");
            let mut cdb = sixteen(0x89, 0, 40, 0);
            cdb[13] = 2;
            let mut both = [old.clone(), new.clone()].concat();
            assert_eq!(bench.send(lun, &cdb, &both), End::Good);
            assert_eq!(bench.read(lun, 40, 2), new);
            assert_eq!(bench.send(lun, &cdb, &both), End::Sense(0x0E, 0x1D, 0x00, 0));
            both[..2 * BLOCK].copy_from_slice(&new);
            both[2 * BLOCK - 27] ^= 1;
            let place = 2 * BLOCK as u32 - 27;
            assert_eq!(bench.send(lun, &cdb, &both), End::Sense(0x0E, 0x1D, 0x00, place));
            assert_eq!(bench.read(lun, 40, 2), new, "nothing was written");
        }
    }
}

#[test]
fn sbc_4_orwrite_sets_bits() {
    let mut bench = Bench::new(1);
    for lun in LUNS {
        assert_eq!(bench.send(lun, &sixteen(0x93, 0, 10, 4), &[0xA5; BLOCK]), End::Good);
        assert_eq!(bench.send(lun, &sixteen(0x8B, 0x08, 10, 2), &[0x5A; 2 * BLOCK]), End::Good);
        assert_eq!(bench.read(lun, 10, 2), [0xFF; 2 * BLOCK]);
        assert_eq!(bench.read(lun, 12, 2), [0xA5; 2 * BLOCK]);
    }
}

#[test]
fn sbc_4_unmapped_blocks_read_as_zeros_and_get_lba_status_tells_of_them() {
    for seed in 1..4 {
        let mut bench = Bench::new(seed);
        for lun in LUNS {
            assert_eq!(bench.send(lun, &sixteen(0x93, 0, 0, 64), &[0x61; BLOCK]), End::Good);
            let mut list = [0, 38, 0, 32, 0, 0, 0, 0].to_vec();
            for (lba, blocks) in [(8_u64, 8_u32), (32, 16)] {
                list.extend(lba.to_be_bytes());
                list.extend(blocks.to_be_bytes());
                list.extend([0; 4]);
            }
            assert_eq!(bench.send(lun, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list), End::Good);
            let mut expected = vec![0x61; 64 * BLOCK];
            expected[8 * BLOCK..16 * BLOCK].fill(0);
            expected[32 * BLOCK..48 * BLOCK].fill(0);
            assert_eq!(bench.read(lun, 0, 64), expected);
            let status = bench.receive(lun, &sixteen(0x9E, 0x12, 16, 24), 24);
            assert_eq!(status[..4], 20_u32.to_be_bytes());
            assert_eq!(status[8..16], 16_u64.to_be_bytes(), "it begins where it was asked to");
            assert_eq!(status[20] & 0x0F, 0, "mapped");
            let whole = bench.receive(lun, &sixteen(0x9E, 0x12, 0, 520), 520);
            let length = u32::from_be_bytes(whole[..4].try_into().expect("four")) as usize + 4;
            let mut next = 0;
            for run in whole[8..length].chunks(16) {
                assert_eq!(run[..8], u64::to_be_bytes(next), "no gap");
                next += u64::from(u32::from_be_bytes(run[8..12].try_into().expect("four")));
            }
            assert!(next >= 64, "{next}");
        }
    }
}

#[test]
fn spc_6_mode_select_protects_the_unit_tells_the_others_and_lets_it_go_again() {
    let mut bench = Bench::new(1);
    // The first channel of the second nexus.
    bench.channel = super::NEXUSES[0];
    bench.log_in();
    for lun in LUNS {
        bench.channel = 0;
        let sensed = bench.receive(lun, &[0x1A, 0x08, 0x0A, 0, 16, 0], 16);
        assert_eq!(sensed[8] & 0x08, 0, "SWP");
        let mut list = sensed.clone();
        (list[0], list[2]) = (0, 0);
        for protected in [true, false] {
            list[8] = if protected { 0x08 } else { 0x00 };
            assert_eq!(bench.send(lun, &[0x15, 0x10, 0, 0, 16, 0], &list), End::Good);
            let refused = End::Sense(0x07, 0x27, 0x02, 0);
            let end = bench.send(lun, &sixteen(0x93, 0, 0, 1), &[0; BLOCK]);
            assert_eq!(end, if protected { refused } else { End::Good });
            let sensed = bench.receive(lun, &[0x1A, 0x08, 0x0A, 0, 16, 0], 16);
            assert_eq!(sensed[8] & 0x08 != 0, protected, "SWP");
            assert_eq!(sensed[2] & 0x80 != 0, protected, "WP");
            bench.channel = super::NEXUSES[0];
            let news = End::Sense(0x06, 0x2A, 0x01, 0);
            assert_eq!(bench.run(lun, &cdbs::test_unit_ready(), Data::None), news);
            assert_eq!(bench.run(lun, &cdbs::test_unit_ready(), Data::None), End::Good);
            bench.channel = 0;
        }
    }
}

#[test]
fn spc_6_extended_copy_copies_and_its_status_can_be_asked_for() {
    let mut bench = Bench::new(1);
    let lun = 1;
    let designator = {
        let page = bench.receive(lun, &[0x12, 1, 0x83, 0, 255, 0], 255);
        let length = usize::from(page[7]);
        (page[4], page[5], page[8..8 + length].to_vec())
    };
    let (code_set, kind, name) = designator;
    assert_eq!(bench.send(lun, &sixteen(0x93, 0, 0, 16), &[0x41; BLOCK]), End::Good);
    assert_eq!(bench.send(lun, &sixteen(0x93, 0, 512, 16), &[0; BLOCK]), End::Good);
    let mut list = vec![0; 16];
    (list[0], list[3], list[11]) = (1, 32, 28);
    let mut target = vec![0xE4, 0, 0, 0, code_set, kind, 0, name.len() as u8];
    target.extend(name);
    target.resize(32, 0);
    target[30] = 2; // 512 bytes
    list.extend(target);
    list.extend([0x02, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 16]);
    list.extend(0_u64.to_be_bytes());
    list.extend(512_u64.to_be_bytes());
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x83, list.len() as u8);
    assert_eq!(bench.send(lun, &cdb, &list), End::Good);
    assert_eq!(bench.read(lun, 512, 16), [0x41; 16 * BLOCK]);
    let mut receive = [0; 16];
    (receive[0], receive[2], receive[13]) = (0x84, 1, 12);
    let status = bench.receive(lun, &receive, 12);
    assert_eq!(status[4..7], [0x01, 0, 1], "completed, one segment");
    (receive[1], receive[2], receive[13]) = (3, 0, 64);
    let parameters = bench.receive(lun, &receive, 64);
    assert_eq!(parameters[8..12], [0, 4, 0, 16], "four copy targets, sixteen segments");
}
