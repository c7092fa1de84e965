//! The operations beyond READ and WRITE: a file does what a memory disk does, whatever the engine,
//! and a thin file has holes where it was unmapped.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use lunar_handlers::memory_disk::{Medium, MemoryDisk};
use lunar_handlers::verify::Verify;
use lunar_handlers::{
    Arena, BlockDevice, CancelAnswer, EngineChoice, FileDevice, HostBuffer, OpenError, Outcome,
    Parameters, Request, RequestId, Run, vdisk_fileio, vdisk_nullio,
};
use proptest::prelude::*;

const BLOCKS: u64 = 2048;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory")
}

fn open(directory: &Path, engine: EngineChoice, direct: bool) -> Result<FileDevice, OpenError> {
    let path = directory.join("image");
    File::create(&path).expect("file").set_len(BLOCKS * 512).expect("length");
    let parameters = Parameters {
        engine,
        o_direct: direct,
        thin_provisioned: true,
        lock_wait: Duration::ZERO,
        ..Parameters::new(&path)
    };
    vdisk_fileio::open("disk", &parameters).map(|opened| opened.device)
}

/// Every engine and cache mode of this machine, with a thin file each.
fn devices() -> Vec<(String, tempfile::TempDir, FileDevice)> {
    let mut devices = Vec::new();
    for engine in [EngineChoice::Uring, EngineChoice::Synchronous] {
        for direct in [false, true] {
            let directory = directory();
            let name = format!("{engine:?}, o_direct {direct}");
            match open(directory.path(), engine, direct) {
                Ok(device) => devices.push((name, directory, device)),
                Err(error) => eprintln!("SKIPPED: {name}, because: {error}"),
            }
        }
    }
    assert!(!devices.is_empty());
    devices
}

fn drain(device: &mut impl BlockDevice) -> Vec<(RequestId, Outcome)> {
    let mut ended = Vec::new();
    device.poll(&mut ended);
    while device.outstanding() > 0 {
        if let Some(fd) = device.event_fd() {
            let mut wait =
                [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut wait, None).expect("poll");
        }
        device.poll(&mut ended);
    }
    ended
}

fn run(device: &mut impl BlockDevice, request: Request, data: &[u8]) -> (Outcome, Vec<u8>) {
    let buffer = window(data);
    device.submit(RequestId(1), request, buffer.clone());
    let ended = drain(device);
    assert_eq!(ended.len(), 1, "a request ends exactly once");
    let mut bytes = vec![0; data.len()];
    assert!(buffer.is_none_or(|buffer| buffer.read(0, &mut bytes)));
    (ended[0].1, bytes)
}

/// Aligned as arenas are, for direct I/O.
fn window(data: &[u8]) -> Option<HostBuffer> {
    if data.is_empty() {
        return None;
    }
    let arena = Arena::anonymous(data.len()).expect("memory");
    let window = arena.window(0, u32::try_from(data.len()).expect("small"))?;
    assert!(window.write(0, data));
    Some(window)
}

fn runs(bytes: &[u8], count: u32) -> Vec<(u64, u32, bool)> {
    let run = |bytes: &[u8]| {
        let lba = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let blocks = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        assert_eq!(Run { lba, blocks, deallocated: bytes[12] == 1 }.to_bytes(), bytes);
        (lba, blocks, bytes[12] == 1)
    };
    bytes.chunks(16).take(count as usize).map(run).collect()
}

#[test]
fn an_unmapped_range_is_a_hole_that_reads_as_zeroes_and_is_reported_so() {
    for (name, directory, mut device) in devices() {
        let full = vec![7; BLOCKS as usize * 512];
        let all = u32::try_from(BLOCKS).expect("small");
        let write = Request::Write { lba: 0, blocks: all, fua: true };
        assert_eq!(run(&mut device, write, &full).0, Outcome::Done);
        let stored = || std::fs::metadata(directory.path().join("image")).expect("file").blocks();
        let before = stored();
        let unmap = Request::Unmap { lba: 512, blocks: 1024 };
        assert_eq!(run(&mut device, unmap, &[]).0, Outcome::Done, "{name}");
        assert_eq!(run(&mut device, Request::Flush, &[]).0, Outcome::Done);
        assert!(stored() <= before - 1024, "{name}: {} of {before} sectors", stored());
        let read = Request::Read { lba: 500, blocks: 24 };
        let (outcome, bytes) = run(&mut device, read, &[1; 24 * 512]);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(bytes, [vec![7; 12 * 512], vec![0; 12 * 512]].concat(), "{name}");
        let status = Request::LbaStatus { lba: 8, blocks: BLOCKS - 8 };
        let (outcome, bytes) = run(&mut device, status, &[0; 160]);
        assert_eq!(outcome, Outcome::Listed { runs: 3 }, "{name}");
        assert_eq!(runs(&bytes, 3), [(8, 504, false), (512, 1024, true), (1536, 512, false)]);
        let (outcome, bytes) = run(&mut device, status, &[0; 16]);
        assert_eq!(
            (outcome, runs(&bytes, 1)),
            (Outcome::Listed { runs: 1 }, vec![(8, 504, false)])
        );
    }
}

#[test]
fn a_device_that_is_not_thin_refuses_unmap_and_keeps_what_it_has() {
    let directory = directory();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![3; 1 << 20]).expect("file");
    let mut device = vdisk_fileio::open("disk", &Parameters::new(&path)).expect("open").device;
    let unmap = Request::Unmap { lba: 0, blocks: 8 };
    assert_eq!(run(&mut device, unmap, &[]).0, Outcome::NotSupported);
    // WRITE SAME may say unmap; zeroes are stored all the same.
    let zeroes = Request::WriteSame { lba: 8, blocks: 8, unmap: true };
    assert_eq!(run(&mut device, zeroes, &[]).0, Outcome::Done);
    let bytes = std::fs::read(&path).expect("file");
    assert_eq!(bytes[..16 * 512], [vec![3; 4096], vec![0; 4096]].concat());
}

#[test]
fn many_comparisons_share_few_scratch_pieces() {
    for (name, _directory, mut device) in devices() {
        for id in 0..50 {
            let zeroes = vec![u8::from(id % 2 == 1); 4096];
            let compare = Request::Compare { lba: 8 * id, blocks: 8 };
            device.submit(RequestId(id), compare, window(&zeroes));
        }
        assert_eq!(device.outstanding(), 50);
        assert_eq!(device.cancel(RequestId(49)), CancelAnswer::Cancelled, "{name}: it still waits");
        let mut ended = drain(&mut device);
        ended.sort_unstable();
        let differs = Outcome::Miscompare { offset: 0 };
        let wanted = (0..50).map(|id| match id {
            49 => (RequestId(id), Outcome::Cancelled),
            id => (RequestId(id), if id % 2 == 1 { differs } else { Outcome::Done }),
        });
        assert!(ended.into_iter().eq(wanted), "{name}");
    }
}

#[test]
fn a_write_same_over_the_whole_disk_can_be_stopped_between() {
    for (name, _directory, mut device) in devices() {
        let same = Request::WriteSame { lba: 0, blocks: BLOCKS, unmap: false };
        device.submit(RequestId(1), same, window(&[9; 512]));
        assert_eq!(device.cancel(RequestId(1)), CancelAnswer::Cancelled, "{name}");
        assert_eq!(drain(&mut device), [(RequestId(1), Outcome::Cancelled)], "{name}");
        assert_eq!(device.cancel(RequestId(1)), CancelAnswer::TooLate);
    }
}

#[test]
fn the_size_follows_the_file_when_asked_and_not_before() {
    let directory = directory();
    let mut device = open(directory.path(), EngineChoice::Automatic, false).expect("open");
    let file = File::options().write(true).open(directory.path().join("image")).expect("file");
    file.set_len(2 * BLOCKS * 512 + 100).expect("length");
    assert_eq!(device.geometry().blocks, BLOCKS);
    let read = Request::Read { lba: BLOCKS, blocks: 1 };
    assert_eq!(run(&mut device, read, &[0; 512]).0, Outcome::OutOfRange);
    let warnings = device.resync_size().expect("the file is there");
    assert!(warnings[0].contains("the last 100 of the"), "{warnings:?}");
    assert_eq!(device.geometry().blocks, 2 * BLOCKS);
    assert_eq!(run(&mut device, read, &[0; 512]).0, Outcome::Done);
    file.set_len(100).expect("length");
    let error = device.resync_size().expect_err("no block").to_string();
    assert!(error.contains("device disk") && error.contains("hold no block"), "{error}");
    assert_eq!(device.geometry().blocks, 2 * BLOCKS);
}

#[test]
fn a_device_may_use_a_part_of_its_file_and_not_more_than_there_is() {
    let directory = directory();
    let path = directory.path().join("image");
    File::create(&path).expect("file").set_len(1 << 20).expect("length");
    let open = |size_bytes| {
        let parameters = Parameters { size_bytes: Some(size_bytes), ..Parameters::new(&path) };
        vdisk_fileio::open("disk", &parameters)
    };
    let mut device = open(1024).expect("open").device;
    assert_eq!(device.geometry().blocks, 2);
    File::options().write(true).open(&path).expect("file").set_len(1000).expect("length");
    let error = device.resync_size().expect_err("too short").to_string();
    assert!(error.contains("size 1024") && error.contains("1000 bytes only"), "{error}");
    drop(device);
    for (size, words) in [(1024, "1000 bytes only"), (700, "not a multiple"), (0, "not a multiple")]
    {
        let error = open(size).expect_err("impossible").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_null_device_finds_everything_equal() {
    let parameters = vdisk_nullio::Parameters {
        block_bytes: 512,
        size_bytes: 1 << 50,
        read_only: false,
        rotational: false,
        read_zero: true,
    };
    let mut device = vdisk_nullio::open("null", &parameters).expect("open");
    for (request, data) in [
        (Request::Compare { lba: 0, blocks: 1 }, 512),
        (Request::CompareAndWrite { lba: 0, blocks: 1, fua: false }, 1024),
        (Request::OrWrite { lba: 0, blocks: 1, fua: false }, 512),
        (Request::WriteSame { lba: 0, blocks: 1 << 40, unmap: false }, 0),
        (Request::Prefetch { lba: 0, blocks: 1 << 40 }, 0),
    ] {
        assert_eq!(run(&mut device, request, &vec![5; data]).0, Outcome::Done, "{request:?}");
    }
    let unmap = Request::Unmap { lba: 0, blocks: 1 };
    assert_eq!(run(&mut device, unmap, &[]).0, Outcome::NotSupported);
    let status = Request::LbaStatus { lba: 5, blocks: 9 };
    let (outcome, bytes) = run(&mut device, status, &[0; 32]);
    assert_eq!((outcome, runs(&bytes, 1)), (Outcome::Listed { runs: 1 }, vec![(5, 9, false)]));
}

/// A request of any kind on few blocks, with data of few values, so that comparisons often succeed.
fn request() -> impl Strategy<Value = (Request, Vec<u8>)> {
    let parts = (0..10_u8, 0..40_u64, 1..40_u32, any::<bool>(), 0..3_u8, prop::num::u8::ANY);
    parts.prop_map(|(which, lba, blocks, flag, shape, value)| {
        let value = value & 3;
        let all = blocks as usize * 512;
        let long = u64::from(blocks);
        match which {
            0 => (Request::Read { lba, blocks }, vec![0; all]),
            1 => (Request::Write { lba, blocks, fua: flag }, vec![value; all]),
            2 => (Request::WriteAndVerify { lba, blocks }, vec![value; all]),
            3 => {
                let bytes = [0, 512, all][usize::from(shape)];
                (Request::Compare { lba, blocks }, vec![value; bytes])
            }
            4 => {
                let mut data = vec![value; 2 * all];
                data[all..].fill(value ^ 1);
                (Request::CompareAndWrite { lba, blocks, fua: flag }, data)
            }
            5 => (Request::OrWrite { lba, blocks, fua: flag }, vec![value; all]),
            6 => {
                let bytes = if flag { 512 } else { 0 };
                let unmap = shape == 0;
                (Request::WriteSame { lba, blocks: long, unmap }, vec![value; bytes])
            }
            7 => (Request::Unmap { lba, blocks: long }, Vec::new()),
            8 => (Request::Prefetch { lba, blocks: long }, Vec::new()),
            _ => (Request::Flush, Vec::new()),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_ends_every_request_as_a_memory_disk_does(requests in prop::collection::vec(request(), 1..60)) {
        for (name, directory, device) in devices() {
            let mut device = Verify::new(device);
            let medium = Medium::new(512, BLOCKS as usize);
            let mut disk = MemoryDisk::new(medium.clone(), 1, 0);
            disk.set_thin(true);
            for (request, data) in &requests {
                let found = run(&mut device, *request, data);
                let wanted = run(&mut disk, *request, data);
                prop_assert_eq!(found, wanted, "{} {:?}", name, request);
            }
            prop_assert_eq!(device.mismatches(), 0);
            let stored = std::fs::read(directory.path().join("image")).expect("file");
            let mut wanted = vec![0; stored.len()];
            prop_assert!(medium.peek(0, &mut wanted));
            prop_assert!(stored == wanted, "{}", name);
        }
    }
}
