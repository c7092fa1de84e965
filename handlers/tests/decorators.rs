//! The decorators and the memory disk: every request ends exactly once, whatever wraps it.

use lunar_handlers::delay::{Clock, Delay, Lateness};
use lunar_handlers::fault::{Effect, Fault, Operation, Rule};
use lunar_handlers::memory_disk::{Medium, MemoryDisk};
use lunar_handlers::verify::Verify;
use lunar_handlers::{
    Arena, BlockDevice, CancelAnswer, HostBuffer, Outcome, Request, RequestId, vdisk_nullio,
};
use proptest::prelude::*;

fn window(byte: u8, blocks: u32) -> HostBuffer {
    let window = Arena::anonymous(1 << 16).expect("memory").window(0, blocks * 512);
    let window = window.expect("window");
    assert!(window.write(0, &vec![byte; blocks as usize * 512]));
    window
}

fn write(lba: u64, blocks: u32) -> Request {
    Request::Write { lba, blocks, fua: false }
}

fn read(lba: u64, blocks: u32) -> Request {
    Request::Read { lba, blocks }
}

fn run(device: &mut impl BlockDevice, request: Request, data: Option<HostBuffer>) -> Outcome {
    device.submit(RequestId(1), request, data);
    let mut ended = Vec::new();
    while device.outstanding() > 0 {
        device.poll(&mut ended);
    }
    assert_eq!(ended.len(), 1);
    ended[0].1
}

#[test]
fn a_memory_disk_keeps_its_medium_beyond_its_own_life() {
    let medium = Medium::new(512, 64);
    let mut disk = MemoryDisk::new(medium.clone(), 5, 1);
    assert_eq!(run(&mut disk, write(3, 2), Some(window(7, 2))), Outcome::Done);
    drop(disk);
    let mut disk = MemoryDisk::new(medium.clone(), 5, 2);
    let buffer = window(0, 2);
    assert_eq!(run(&mut disk, read(3, 2), Some(buffer.clone())), Outcome::Done);
    let mut seen = [0; 1024];
    assert!(buffer.read(0, &mut seen));
    assert_eq!(seen, [7; 1024]);
    assert_eq!(run(&mut disk, read(63, 2), Some(window(0, 2))), Outcome::OutOfRange);
    let mut stored = [0; 512];
    assert!(medium.peek(4 * 512, &mut stored));
    assert_eq!(stored, [7; 512]);
}

#[test]
fn a_memory_disk_ends_late_and_out_of_order() {
    let mut disk = MemoryDisk::new(Medium::new(512, 64), 8, 42);
    for lba in 0..32 {
        disk.submit(RequestId(lba), read(lba, 1), Some(window(0, 1)));
    }
    let mut ended = Vec::new();
    for _ in 0..8 {
        disk.poll(&mut ended);
    }
    assert_eq!(ended.len(), 32);
    assert!(!ended.is_sorted(), "with 32 requests over 8 polls some order differs");
}

#[test]
fn a_null_device_ends_everything_at_the_next_poll() {
    let parameters = vdisk_nullio::Parameters {
        block_bytes: 512,
        size_bytes: 1 << 40,
        read_only: false,
        rotational: true,
        read_zero: true,
    };
    let mut device = vdisk_nullio::open("null", &parameters).expect("open");
    let buffer = window(9, 1);
    assert_eq!(run(&mut device, write((1 << 31) - 1, 1), Some(buffer.clone())), Outcome::Done);
    assert_eq!(run(&mut device, read(0, 1), Some(buffer.clone())), Outcome::Done);
    let mut seen = [9; 512];
    assert!(buffer.read(0, &mut seen));
    assert_eq!(seen, [0; 512]);
    assert_eq!(run(&mut device, read(1 << 31, 1), Some(buffer)), Outcome::OutOfRange);
    for size_bytes in [0, 100, 1 << 63] {
        let odd = vdisk_nullio::Parameters { size_bytes, ..parameters };
        assert_eq!(vdisk_nullio::open("null", &odd).expect_err("refused").parameter, "size");
    }
}

#[test]
fn a_delayed_request_waits_for_virtual_time_and_can_be_cancelled_meanwhile() {
    let clock = Clock::default();
    let medium = Medium::new(512, 8);
    let lateness = Lateness::Time { clock: clock.clone(), least_ns: 1000, most_ns: 1000 };
    let mut device = Delay::new(MemoryDisk::new(medium.clone(), 1, 0), lateness, 0);
    device.submit(RequestId(1), write(0, 1), Some(window(1, 1)));
    device.submit(RequestId(2), write(1, 1), Some(window(2, 1)));
    let mut ended = Vec::new();
    clock.set(999);
    device.poll(&mut ended);
    assert!(ended.is_empty());
    assert_eq!(device.cancel(RequestId(1)), CancelAnswer::Cancelled);
    clock.set(1000);
    device.poll(&mut ended);
    assert_eq!(ended, [(RequestId(1), Outcome::Cancelled), (RequestId(2), Outcome::Done)]);
    let mut stored = [9; 1024];
    assert!(medium.peek(0, &mut stored));
    assert_eq!((stored[0], stored[512]), (0, 2), "only the second write took effect");
}

#[test]
fn faults_hit_their_range_and_operation_as_often_as_planned() {
    let rule = Rule {
        operation: Operation::Write,
        lba_first: 4,
        lba_last: 5,
        effect: Effect::End(Outcome::WriteError { lba: 4 }),
        remaining: Some(1),
    };
    let mut device = Fault::new(MemoryDisk::new(Medium::new(512, 16), 1, 0), vec![rule]);
    assert_eq!(run(&mut device, write(6, 1), Some(window(1, 1))), Outcome::Done);
    assert_eq!(run(&mut device, read(4, 1), Some(window(1, 1))), Outcome::Done);
    let hit = run(&mut device, write(3, 2), Some(window(1, 2)));
    assert_eq!(hit, Outcome::WriteError { lba: 4 });
    assert_eq!(run(&mut device, write(3, 2), Some(window(1, 2))), Outcome::Done);
}

#[test]
fn a_hanging_request_ends_by_cancel_or_release() {
    let rule = Rule {
        operation: Operation::Flush,
        lba_first: 0,
        lba_last: 0,
        effect: Effect::Hang,
        remaining: None,
    };
    let mut device = Fault::new(MemoryDisk::new(Medium::new(512, 16), 1, 0), vec![rule]);
    device.submit(RequestId(1), Request::Flush, None);
    device.submit(RequestId(2), Request::Flush, None);
    let mut ended = Vec::new();
    device.poll(&mut ended);
    assert!(ended.is_empty());
    assert_eq!(device.cancel(RequestId(2)), CancelAnswer::Cancelled);
    device.release();
    device.poll(&mut ended);
    assert_eq!(ended, [(RequestId(2), Outcome::Cancelled), (RequestId(1), Outcome::Done)]);
}

#[test]
fn verify_turns_changed_bytes_into_a_read_error() {
    let medium = Medium::new(512, 16);
    let mut device = Verify::new(MemoryDisk::new(medium.clone(), 1, 0));
    assert_eq!(run(&mut device, write(2, 3), Some(window(5, 3))), Outcome::Done);
    assert_eq!(run(&mut device, read(2, 3), Some(window(0, 3))), Outcome::Done);
    assert!(medium.poke(3 * 512 + 100, &[6]));
    assert_eq!(run(&mut device, read(2, 3), Some(window(0, 3))), Outcome::ReadError { lba: 3 });
    assert_eq!(device.mismatches(), 1);
    assert_eq!(run(&mut device, write(3, 1), Some(window(8, 1))), Outcome::Done);
    assert_eq!(run(&mut device, read(2, 3), Some(window(0, 3))), Outcome::Done);
}

#[test]
fn verify_learns_what_it_never_wrote() {
    let medium = Medium::new(512, 16);
    let mut device = Verify::new(MemoryDisk::new(medium.clone(), 1, 0));
    assert_eq!(run(&mut device, read(0, 1), Some(window(3, 1))), Outcome::Done);
    assert!(medium.poke(0, &[1]));
    assert_eq!(run(&mut device, read(0, 1), Some(window(3, 1))), Outcome::ReadError { lba: 0 });
}

fn requests() -> impl Strategy<Value = Vec<(u8, u64, u32, bool)>> {
    prop::collection::vec((0_u8..3, 0_u64..20, 0_u32..5, any::<bool>()), 1..60)
}

proptest! {
    /// Overlapping reads and writes in any order, with cancels: everything ends once, and Verify
    /// never cries wolf over an honest disk.
    #[test]
    fn every_request_ends_once_and_verify_believes_an_honest_disk(
        requests in requests(),
        seed: u64,
    ) {
        let disk = MemoryDisk::new(Medium::new(512, 16), 4, seed);
        let delayed = Delay::new(disk, Lateness::Polls { least: 0, most: 3 }, seed);
        let boxed: Box<dyn BlockDevice> = Box::new(Fault::new(delayed, Vec::new()));
        let mut device = Verify::new(boxed);
        let mut ended = Vec::new();
        for (at, (kind, lba, blocks, cancel)) in requests.iter().enumerate() {
            let id = RequestId(at as u64);
            let data = Some(window(at as u8, *blocks));
            match kind {
                0 => device.submit(id, read(*lba, *blocks), data),
                1 => device.submit(id, write(*lba, *blocks), data),
                _ => device.submit(id, Request::Flush, None),
            }
            if *cancel {
                device.cancel(RequestId(at as u64 / 2));
            }
            if at % 3 == 0 {
                device.poll(&mut ended);
            }
        }
        for _ in 0..10 {
            device.poll(&mut ended);
        }
        prop_assert_eq!(device.outstanding(), 0);
        prop_assert_eq!(device.mismatches(), 0);
        let mut ids: Vec<_> = ended.iter().map(|(id, _)| *id).collect();
        ids.sort();
        ids.dedup();
        prop_assert_eq!(ids.len(), requests.len());
        prop_assert_eq!(ended.len(), requests.len());
    }
}

#[test]
fn a_fault_hits_whatever_reads_or_writes_its_blocks() {
    let rule = |operation, outcome| Rule {
        operation,
        lba_first: 4,
        lba_last: 4,
        effect: Effect::End(outcome),
        remaining: None,
    };
    let rules = vec![
        rule(Operation::Read, Outcome::ReadError { lba: 4 }),
        rule(Operation::Write, Outcome::WriteError { lba: 4 }),
    ];
    let mut disk = MemoryDisk::new(Medium::new(512, 64), 1, 1);
    disk.set_thin(true);
    let mut device = Fault::new(disk, rules);
    let compare = Request::Compare { lba: 0, blocks: 5 };
    assert_eq!(run(&mut device, compare, None), Outcome::ReadError { lba: 4 });
    for write in [
        Request::WriteSame { lba: 0, blocks: 64, unmap: false },
        Request::Unmap { lba: 4, blocks: 1 },
    ] {
        assert_eq!(run(&mut device, write, None), Outcome::WriteError { lba: 4 });
    }
    let series = Request::CompareAndWrite { lba: 3, blocks: 2, fua: false };
    assert_eq!(run(&mut device, series, Some(window(0, 4))), Outcome::WriteError { lba: 4 });
    // What only asks about blocks does not go to the medium.
    let status = Request::LbaStatus { lba: 0, blocks: 64 };
    assert_eq!(run(&mut device, status, Some(window(0, 1))), Outcome::Listed { runs: 1 });
}
