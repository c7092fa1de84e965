//! The files of reservations, cut at every step.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A disk that forgets what was not forced out when its power goes, and whose steps fail when they are told to.
#[derive(Clone, Default)]
struct Cut {
    /// What programs see.
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Names as they are on the disk.
    kept: BTreeMap<PathBuf, Vec<u8>>,
    /// Names that changed since, in order: each state of all of them.
    names: Vec<BTreeMap<PathBuf, Vec<u8>>>,
    /// Contents that may be on the disk in part.
    unsynced: BTreeSet<Vec<u8>>,
    /// Steps until the power goes, and until one fails.
    power: Option<u32>,
    failure: Option<u32>,
}

impl Cut {
    fn step(&mut self) -> io::Result<()> {
        if self.power == Some(0) {
            return Err(io::Error::other("no power"));
        }
        self.power = self.power.map(|left| left - 1);
        let fails = self.failure == Some(0);
        self.failure = self.failure.and_then(|left| left.checked_sub(1));
        if fails { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// The power is back: any number of the changes of names came to the disk, in order, and any part of what
    /// was not forced out.
    fn lose_power(&mut self, random: &mut u64) {
        let survived = draw(random, self.names.len() as u64 + 1) as usize;
        self.files = match survived.checked_sub(1) {
            Some(last) => self.names[last].clone(),
            None => self.kept.clone(),
        };
        for bytes in self.files.values_mut().filter(|bytes| self.unsynced.contains(*bytes)) {
            let length = draw(random, bytes.len() as u64) as usize;
            bytes.truncate(length);
        }
        *self = Self { kept: self.files.clone(), files: self.files.clone(), ..Self::default() };
    }
}

impl Files for Cut {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let done = self.step();
        self.files.insert(path.to_owned(), bytes.to_vec());
        self.unsynced.insert(bytes.to_vec());
        self.names.push(self.files.clone());
        done
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        match self.files.get(path) {
            Some(bytes) => drop(self.unsynced.remove(bytes)),
            None => {
                self.names.clear();
                self.kept.clone_from(&self.files);
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        let bytes = self.files.remove(from).ok_or(ErrorKind::NotFound)?;
        self.files.insert(to.to_owned(), bytes);
        self.names.push(self.files.clone());
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.files.remove(path).ok_or(ErrorKind::NotFound)?;
        self.names.push(self.files.clone());
        Ok(())
    }
}

fn draw(random: &mut u64, below: u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    if below == 0 { 0 } else { *random % below }
}

/// A record that is told from others by its boot id.
fn record(number: u64) -> Record {
    let mut boot_id = [0; 16];
    boot_id[..8].copy_from_slice(&number.to_le_bytes());
    let reservations = Reservations::default();
    Record { unit: "disk".to_owned(), boot_id, operation: None, reservations }
}

fn path_of_disk() -> PathBuf {
    PathBuf::from("/var/lib/lunar/pr/disk")
}

fn found(files: &mut Cut) -> Option<Record> {
    match find(files, &path_of_disk(), "disk") {
        Found::Nothing => None,
        Found::Newest(record) | Found::Previous(record, _) => Some(*record),
        Found::Lost(why) => panic!("lost: {why}"),
    }
}

/// No version that was acknowledged is lost, and none that was refused comes back.
#[test]
fn what_was_acknowledged_is_found_wherever_power_or_a_step_fails() {
    for run in 1..=10_000_u64 {
        let mut random = run.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut files = Cut::default();
        let mut acknowledged = None;
        for number in 1..20 {
            let one = record(run << 8 | number);
            match draw(&mut random, 3) {
                0 => files.power = Some(draw(&mut random, 7) as u32),
                1 => files.failure = Some(draw(&mut random, 7) as u32),
                _ => {}
            }
            let kept = keep(&mut files, &path_of_disk(), &one.encode());
            let has_power = files.power != Some(0);
            (files.power, files.failure) = (None, None);
            match kept {
                Ok(()) => acknowledged = Some(one),
                Err(_) if has_power => {}
                Err(_) => {
                    files.lose_power(&mut random);
                    let now = found(&mut files);
                    // Nobody was answered, so either is right; what is there now stays.
                    assert!(now == acknowledged || now == Some(one), "run {run}, {number}");
                    acknowledged = now;
                    continue;
                }
            }
            assert_eq!(found(&mut files), acknowledged, "run {run}, {number}");
            if draw(&mut random, 4) == 0 {
                files.lose_power(&mut random);
                assert_eq!(found(&mut files), acknowledged, "run {run}, {number}, after the power");
            }
        }
    }
}

#[test]
fn a_damaged_version_is_replaced_by_the_one_before() {
    let mut files = Cut::default();
    let path = path_of_disk();
    for number in [1, 2] {
        keep(&mut files, &path, &record(number).encode()).expect("kept");
    }
    assert_eq!(find(&mut files, &path, "disk"), Found::Newest(Box::new(record(2))));
    let bytes = files.files.get_mut(&path).expect("there");
    bytes[20] ^= 1;
    match find(&mut files, &path, "disk") {
        Found::Previous(found, why) => {
            assert_eq!(*found, record(1));
            assert!(why.contains("/var/lib/lunar/pr/disk: a damaged record"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_trusted_is_lost_and_never_nothing() {
    let path = path_of_disk();
    let lost = |bytes: &[u8], device: &str| {
        let mut files = Cut::default();
        files.files.insert(path.clone(), bytes.to_vec());
        match find(&mut files, &path, device) {
            Found::Lost(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let sound = record(1).encode();
    assert!(lost(&sound[..sound.len() - 1], "disk").contains("damaged"));
    assert!(lost(b"", "disk").contains("/var/lib/lunar/pr/disk"));
    assert!(lost(b"something else altogether", "disk").contains("not a record"));
    assert!(lost(&sound, "other").contains("has the reservations of device disk"));
    let mut newer = sound.clone();
    newer[8] = 9;
    lost(&newer, "disk");
    assert_eq!(find(&mut Cut::default(), &path, "disk"), Found::Nothing);
}

#[test]
fn a_directory_that_cannot_be_written_refuses_and_keeps_what_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pr/disk");
    keep(&mut Disk, &path, &record(1).encode()).expect("the directory is made");
    keep(&mut Disk, &path, &record(2).encode()).expect("kept");
    assert_eq!(find(&mut Disk, &path, "disk"), Found::Newest(Box::new(record(2))));
    // A directory in the way of the new version: this holds for the superuser, too.
    fs::create_dir(with_suffix(&path, ".new")).expect("made");
    keep(&mut Disk, &path, &record(3).encode()).expect_err("no place");
    assert_eq!(find(&mut Disk, &path, "disk"), Found::Newest(Box::new(record(2))));
}
