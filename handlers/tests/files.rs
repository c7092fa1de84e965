//! vdisk_fileio and vdisk_blockio on real files, with both engines.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lunar_handlers::{
    Arena, BlockDevice, CancelAnswer, EngineChoice, FileDevice, HostBuffer, OpenError, Outcome,
    Request, RequestId, vdisk_blockio, vdisk_cdrom, vdisk_fileio,
};

const BLOCK: u32 = 512;

/// A directory on a real file system (tmpfs has no loop devices and another O_DIRECT).
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory")
}

/// A file of `bytes` bytes in which every 8-byte word says where it is.
fn image(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("image");
    let mut file = File::create(&path).expect("file");
    let words: Vec<u8> = (0..bytes / 8).flat_map(|word| word.to_le_bytes()).collect();
    file.write_all(&words).expect("written");
    file.set_len(bytes).expect("length");
    path
}

fn parameters(path: &Path, engine: EngineChoice) -> vdisk_fileio::Parameters {
    let mut parameters = vdisk_fileio::Parameters::new(path);
    parameters.engine = engine;
    // The kernel may take its time to let go of what a closed device had.
    parameters.lock_wait = Duration::from_secs(30);
    parameters
}

/// Every engine of this machine; says so when io_uring is refused here.
fn engines() -> Vec<EngineChoice> {
    let directory = directory();
    let path = image(directory.path(), 4096);
    match vdisk_fileio::open("probe", &parameters(&path, EngineChoice::Uring)) {
        Ok(_) => vec![EngineChoice::Uring, EngineChoice::Synchronous],
        Err(error) => {
            eprintln!("SKIPPED: the io_uring half, because: {error}");
            vec![EngineChoice::Synchronous]
        }
    }
}

/// Polls until nothing is outstanding, waiting on the device's descriptor.
fn drain(device: &mut (impl BlockDevice + ?Sized)) -> Vec<(RequestId, Outcome)> {
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

fn run(device: &mut FileDevice, request: Request, data: Option<HostBuffer>) -> Outcome {
    device.submit(RequestId(1), request, data);
    let ended = drain(device);
    assert_eq!(ended.len(), 1, "a request ends exactly once");
    ended[0].1
}

fn bytes_of(buffer: &HostBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.length() as usize];
    assert!(buffer.read(0, &mut bytes));
    bytes
}

#[test]
fn reads_land_in_the_named_window_and_nowhere_else() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        let mut device =
            vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open").device;
        assert_eq!(device.geometry().blocks, 2048);
        let arena = Arena::anonymous(1 << 16).expect("memory");
        let window = arena.window(8192, 4096).expect("window");
        let read = Request::Read { lba: 100, blocks: 8 };
        assert_eq!(run(&mut device, read, Some(window.clone())), Outcome::Done);
        let mut wanted = vec![0; 4096];
        File::open(&path).expect("file").read_exact_at(&mut wanted, 100 * 512).expect("read");
        assert_eq!(bytes_of(&window), wanted);
        let around = [arena.window(0, 8192), arena.window(12288, 4096)];
        for outside in around.into_iter().flatten() {
            assert!(bytes_of(&outside).iter().all(|byte| *byte == 0), "a stray byte");
        }
    }
}

#[test]
fn writes_are_in_the_file_and_survive_reopening() {
    for engine in engines() {
        for direct in [false, true] {
            let directory = directory();
            let path = image(directory.path(), 1 << 20);
            let mut parameters = parameters(&path, engine);
            parameters.o_direct = direct;
            parameters.block_bytes = 4096;
            let opened = match vdisk_fileio::open("disk", &parameters) {
                Ok(opened) => opened,
                Err(error) if direct => {
                    eprintln!("SKIPPED: o_direct, because: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let mut device = opened.device;
            let arena = Arena::anonymous(1 << 16).expect("memory");
            let window = arena.window(4096, 8192).expect("window");
            assert!(window.write(0, &[0x5a; 8192]));
            for fua in [false, true] {
                let write = Request::Write { lba: 7, blocks: 2, fua };
                assert_eq!(run(&mut device, write, Some(window.clone())), Outcome::Done);
            }
            assert_eq!(run(&mut device, Request::Flush, None), Outcome::Done);
            drop(device);
            let mut stored = vec![0; 8192];
            let mut file = File::open(&path).expect("file");
            file.seek(SeekFrom::Start(7 * 4096)).expect("seek");
            file.read_exact(&mut stored).expect("read");
            assert_eq!(stored, vec![0x5a; 8192], "{engine:?}, o_direct {direct}");
        }
    }
}

#[test]
fn a_batch_far_deeper_than_the_ring_ends_completely() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        let mut device =
            vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open").device;
        let arena = Arena::anonymous(2048 * 512).expect("memory");
        for lba in 0..2048 {
            let window = arena.window(lba * 512, BLOCK);
            device.submit(RequestId(lba), Request::Read { lba, blocks: 1 }, window);
        }
        assert_eq!(device.outstanding(), 2048);
        let mut ended = drain(&mut device);
        assert!(ended.iter().all(|(_, outcome)| *outcome == Outcome::Done));
        ended.sort();
        ended.dedup_by_key(|(id, _)| *id);
        assert_eq!(ended.len(), 2048);
        let mut wanted = vec![0; 1 << 20];
        File::open(&path).expect("file").read_exact(&mut wanted).expect("read");
        let whole = arena.window(0, 1 << 20).expect("window");
        assert!(bytes_of(&whole) == wanted);
    }
}

#[test]
fn what_does_not_fit_ends_with_its_outcome() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 64 * 512);
        let mut parameters = parameters(&path, engine);
        parameters.read_only = true;
        let mut device = vdisk_fileio::open("disk", &parameters).expect("open").device;
        assert!(device.geometry().read_only);
        let window = Arena::anonymous(4096).expect("memory").window(0, 512);
        let beyond = Request::Read { lba: 64, blocks: 1 };
        assert_eq!(run(&mut device, beyond, window.clone()), Outcome::OutOfRange);
        let wrapping = Request::Read { lba: u64::MAX, blocks: 1 };
        assert_eq!(run(&mut device, wrapping, window.clone()), Outcome::OutOfRange);
        let write = Request::Write { lba: 0, blocks: 1, fua: false };
        assert_eq!(run(&mut device, write, window.clone()), Outcome::WriteProtected);
        let longer = Request::Read { lba: 0, blocks: 2 };
        assert_eq!(run(&mut device, longer, window), Outcome::HardwareError);
        assert_eq!(run(&mut device, longer, None), Outcome::HardwareError);
    }
}

#[test]
fn a_file_truncated_below_us_is_a_read_error_at_the_first_missing_block() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 64 * 512);
        let mut device =
            vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open").device;
        File::options().write(true).open(&path).expect("file").set_len(10 * 512).expect("cut");
        let window = Arena::anonymous(4096).expect("memory").window(0, 4096);
        let read = Request::Read { lba: 8, blocks: 8 };
        assert_eq!(run(&mut device, read, window), Outcome::ReadError { lba: 10 });
    }
}

#[test]
fn a_held_request_can_be_cancelled_and_ends_once() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 64 * 512);
        let mut device =
            vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open").device;
        let window = Arena::anonymous(512).expect("memory").window(0, 512).expect("window");
        assert!(window.write(0, &[0xff; 512]));
        let write = Request::Write { lba: 3, blocks: 1, fua: false };
        device.submit(RequestId(9), write, Some(window));
        assert_eq!(device.cancel(RequestId(9)), CancelAnswer::Cancelled);
        assert_eq!(device.cancel(RequestId(9)), CancelAnswer::TooLate);
        assert_eq!(drain(&mut device), [(RequestId(9), Outcome::Cancelled)]);
        assert_eq!(device.cancel(RequestId(9)), CancelAnswer::TooLate);
        let mut stored = [0; 8];
        File::open(&path).expect("file").read_exact_at(&mut stored, 3 * 512).expect("read");
        assert_eq!(u64::from_le_bytes(stored), 3 * 64, "the cancelled write had an effect");
    }
}

#[test]
fn closing_waits_for_what_the_kernel_holds() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        let mut device =
            vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open").device;
        let arena = Arena::anonymous(1 << 20).expect("memory");
        for lba in 0..64 {
            let window = arena.window(lba * 4096, 4096);
            device.submit(
                RequestId(lba),
                Request::Write { lba: lba * 8, blocks: 8, fua: true },
                window,
            );
        }
        device.poll(&mut Vec::new());
        drop(arena);
        drop(device);
        // The lock is free again: nothing of the old device is under way.
        vdisk_fileio::open("disk", &parameters(&path, engine)).expect("open again");
    }
}

#[test]
fn cache_parameters_become_geometry() {
    let directory = directory();
    let path = image(directory.path(), 4096);
    let open = |change: fn(&mut vdisk_fileio::Parameters)| {
        let mut parameters = parameters(&path, EngineChoice::Automatic);
        change(&mut parameters);
        vdisk_fileio::open("disk", &parameters).expect("open").device
    };
    assert!(open(|_| ()).geometry().write_cache);
    assert!(!open(|parameters| parameters.write_through = true).geometry().write_cache);
    let mut non_volatile = open(|parameters| parameters.nv_cache = true);
    assert!(!non_volatile.geometry().write_cache);
    assert_eq!(run(&mut non_volatile, Request::Flush, None), Outcome::Done);
}

fn refusal(parameters: &vdisk_fileio::Parameters) -> OpenError {
    vdisk_fileio::open("disk7", parameters).expect_err("refused")
}

#[test]
fn a_refusal_names_object_value_reason_and_way_out() {
    let directory = directory();
    let path = image(directory.path(), 4096);
    let good = parameters(&path, EngineChoice::Automatic);

    let missing = refusal(&parameters(&directory.path().join("none"), EngineChoice::Automatic));
    let text = missing.to_string();
    assert!(
        text.contains("disk7") && text.contains("none") && text.contains("create the file"),
        "{text}"
    );

    assert_eq!(
        refusal(&parameters(Path::new("image"), EngineChoice::Automatic)).parameter,
        "filename"
    );
    assert_eq!(
        refusal(&parameters(directory.path(), EngineChoice::Automatic)).parameter,
        "filename"
    );

    for block_bytes in [0, 511, 1000, 131_072] {
        let odd = vdisk_fileio::Parameters { block_bytes, ..good.clone() };
        assert_eq!(refusal(&odd).parameter, "blocksize");
    }
    // SCST answers EINVAL to these two.
    let both = vdisk_fileio::Parameters { read_only: true, nv_cache: true, ..good.clone() };
    assert_eq!(refusal(&both).parameter, "nv_cache");
    let both = vdisk_fileio::Parameters { read_only: true, write_through: true, ..good.clone() };
    assert_eq!(refusal(&both).parameter, "write_through");

    File::create(directory.path().join("empty")).expect("file");
    let empty = refusal(&parameters(&directory.path().join("empty"), EngineChoice::Automatic));
    assert!(empty.reason.contains("no block"), "{empty}");
}

#[test]
fn a_tail_that_is_no_whole_block_is_ignored_with_a_warning() {
    let directory = directory();
    let path = image(directory.path(), 4096 * 3 + 100);
    let mut parameters = parameters(&path, EngineChoice::Automatic);
    parameters.block_bytes = 4096;
    let opened = vdisk_fileio::open("disk", &parameters).expect("open");
    assert_eq!(opened.device.geometry().blocks, 3);
    assert!(
        opened.warnings.iter().any(|warning| warning.contains("last 100")),
        "{:?}",
        opened.warnings
    );
}

#[test]
fn one_writer_at_a_time_and_readers_share() {
    let directory = directory();
    let path = image(directory.path(), 4096);
    let writer = parameters(&path, EngineChoice::Automatic);
    let reader = vdisk_fileio::Parameters { read_only: true, ..writer.clone() };
    let first = vdisk_fileio::open("first", &writer).expect("open");
    let at_once = |of: &vdisk_fileio::Parameters| vdisk_fileio::Parameters {
        lock_wait: Duration::ZERO,
        ..of.clone()
    };
    assert!(refusal(&at_once(&writer)).reason.contains("locked"));
    assert!(refusal(&at_once(&reader)).reason.contains("locked"));
    drop(first);
    let _first = vdisk_fileio::open("first", &reader).expect("open");
    let _second = vdisk_fileio::open("second", &reader).expect("readers share");
}

fn blockio_round_trip(path: &Path, engine: EngineChoice) -> Result<Vec<String>, OpenError> {
    let mut parameters = vdisk_blockio::Parameters::new(path);
    parameters.engine = engine;
    parameters.block_bytes = 4096;
    let opened = vdisk_blockio::open("block", &parameters)?;
    let mut device = opened.device;
    let arena = Arena::anonymous(1 << 16).expect("memory");
    let window = arena.window(4096, 16384).expect("window");
    assert!(window.write(0, &[0xc3; 16384]));
    let write = Request::Write { lba: 5, blocks: 4, fua: true };
    assert_eq!(run(&mut device, write, Some(window.clone())), Outcome::Done);
    window.zero();
    let read = Request::Read { lba: 5, blocks: 4 };
    assert_eq!(run(&mut device, read, Some(window.clone())), Outcome::Done);
    assert_eq!(bytes_of(&window), vec![0xc3; 16384]);
    assert_eq!(run(&mut device, Request::Flush, None), Outcome::Done);
    Ok(opened.warnings)
}

#[test]
fn blockio_moves_blocks_past_the_page_cache() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        match blockio_round_trip(&path, engine) {
            Ok(warnings) => {
                assert!(warnings.iter().any(|warning| warning.contains("no block device")));
            }
            Err(error) => eprintln!("SKIPPED: O_DIRECT on this file system, because: {error}"),
        }
    }
}

/// A loop device over a file, detached at the end.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path) -> Result<Self, String> {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Self(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())))
    }

    /// As [`Self::over`]; where that cannot be, says that `what` is skipped and why.
    fn over_or_skip(path: &Path, what: &str) -> Option<Self> {
        Self::over(path)
            .inspect_err(|reason| {
                eprintln!("SKIPPED: {what}, because it needs root and losetup: {reason}");
            })
            .ok()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn blockio_on_a_loop_device_reaches_the_file_below() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        let Some(device) = Loop::over_or_skip(&path, "blockio on a loop device") else { return };
        let warnings = blockio_round_trip(&device.0, engine).expect("open");
        assert!(
            !warnings.iter().any(|warning| warning.contains("no block device")),
            "{warnings:?}"
        );
        let mut stored = vec![0; 16384];
        File::open(&path).expect("file").read_exact_at(&mut stored, 5 * 4096).expect("read");
        assert_eq!(stored, vec![0xc3; 16384]);
    }
}

#[test]
fn a_thin_loop_device_unmaps_into_the_file_below() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 1 << 20);
        let Some(device) = Loop::over_or_skip(&path, "a thin loop device") else { return };
        let mut parameters = parameters(&device.0, engine);
        parameters.thin_provisioned = true;
        let mut device = match vdisk_blockio::open("disk", &parameters) {
            Ok(opened) => opened.device,
            Err(error) => {
                eprintln!("SKIPPED: a thin loop device, because: {error}");
                return;
            }
        };
        let unmap = Request::Unmap { lba: 1024, blocks: 1000 };
        assert_eq!(run(&mut device, unmap, None), Outcome::Done, "{engine:?}");
        let zeroes = Request::WriteSame { lba: 512, blocks: 8, unmap: false };
        assert_eq!(run(&mut device, zeroes, None), Outcome::Done, "{engine:?}");
        assert_eq!(run(&mut device, Request::Flush, None), Outcome::Done);
        drop(device);
        let stored = std::fs::read(&path).expect("file");
        assert_eq!(stored[1024 * 512..2024 * 512], vec![0; 1000 * 512]);
        assert_eq!(stored[512 * 512..520 * 512], vec![0; 8 * 512]);
        assert!(stored[1023 * 512..1024 * 512].iter().any(|byte| *byte != 0));
    }
}

#[test]
fn a_cd_drive_reads_its_disc_in_blocks_of_2048_bytes_and_without_one_has_none() {
    let directory = directory();
    let path = image(directory.path(), 3 * 2048 + 512);
    let opened = vdisk_cdrom::open("cd", Some(&path)).expect("a disc");
    assert_eq!(opened.warnings.len(), 1, "the cut block: {:?}", opened.warnings);
    let mut disc = opened.device;
    let geometry = disc.geometry();
    assert_eq!((geometry.block_bytes, geometry.blocks, geometry.read_only), (2048, 3, true));
    let arena = Arena::anonymous(4096).expect("memory");
    let window = || arena.window(0, 2048);
    disc.submit(RequestId(1), Request::Read { lba: 2, blocks: 1 }, window());
    assert_eq!(drain(disc.as_mut()), [(RequestId(1), Outcome::Done)]);
    let mut word = [0; 8];
    assert!(window().expect("inside").read(0, &mut word));
    assert_eq!(u64::from_le_bytes(word), 2 * 2048 / 8);
    disc.submit(RequestId(2), Request::Write { lba: 0, blocks: 1, fua: false }, window());
    assert_eq!(drain(disc.as_mut()), [(RequestId(2), Outcome::WriteProtected)]);

    let mut empty = vdisk_cdrom::open("cd", None).expect("no disc").device;
    assert_eq!(empty.geometry().blocks, 0);
    empty.submit(RequestId(3), Request::Read { lba: 0, blocks: 1 }, window());
    assert_eq!(drain(empty.as_mut()), [(RequestId(3), Outcome::OutOfRange)]);
    assert!(vdisk_cdrom::open("cd", Some(&directory.path().join("absent"))).is_err());
}
