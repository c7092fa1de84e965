//! Where reservations are kept: one file a device, and beside it its previous version with the suffix `.1`, which
//! stands in when the newest is damaged. What to keep is decided by the core; here are files only.
//!
//! A damaged one is put aside with the suffix `.damaged`, for people to look at.
//!
//! A version is written whole under another name and forced out; then the one that is there becomes the previous
//! one, the new one takes its name, and the directory is forced out. Whatever step a power loss cuts, the newest
//! version that was acknowledged is found under one of the two names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use lunar_core::reservations::Reservations;
use lunar_core::reservations::record::{Record, RecordError};
use lunar_core::reservations::scst;
use lunar_mgmt::Tree;
use tracing::{error, warn};

use crate::api::wire;

/// What is done to files, one step at a time, so that a test can let each fail.
pub(crate) trait Files: Send {
    /// The whole of a file.
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>>;
    /// A new file, or an old one from its begin, with these bytes.
    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// A file's bytes, or a directory's names, survive a loss of power from now on.
    fn sync(&mut self, path: &Path) -> io::Result<()>;
    /// Another name, in one step; what had it is gone.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// It is gone.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The machine's.
pub(crate) struct Disk;

impl Files for Disk {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            make_directory(directory)?;
        }
        File::create(path)?.write_all(bytes)
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// A directory and those above it, as far as they are not there. They survive a loss of power, as their files have to.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    let above = directory.parent().unwrap_or(Path::new("/"));
    make_directory(above)?;
    fs::create_dir(directory).map_err(|error| {
        let text = format!("the directory {} cannot be made: {error}", directory.display());
        io::Error::new(error.kind(), text)
    })?;
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    File::open(above)?.sync_all()
}

/// Suffixes of a version that is being written, of the one before, and of one that cannot be trusted.
const NEW: &str = ".new";
const PREVIOUS: &str = ".1";
const DAMAGED: &str = ".damaged";

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Keeps `bytes` at `path`; without an error they survive a loss of power, with one what was kept before is found.
pub(crate) fn keep(files: &mut impl Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (new, previous) = (with_suffix(path, NEW), with_suffix(path, PREVIOUS));
    let directory = path.parent().unwrap_or(Path::new("/"));
    files.write(&new, bytes)?;
    files.sync(&new)?;
    match files.rename(path, &previous) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files.rename(&new, path)?;
    let Err(error) = files.sync(directory) else { return Ok(()) };
    // The change does not happen, so the new version must not be found. Where this fails too, the next start may find it.
    let undone = match files.rename(&previous, path) {
        Err(error) if error.kind() == ErrorKind::NotFound => files.remove(path),
        other => other,
    };
    if let Err(undone) = undone.and_then(|()| files.sync(directory)) {
        error!("{}: a version that was given up cannot be taken back: {undone}", path.display());
    }
    Err(error)
}

/// What a device's files say.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// Nothing was ever kept.
    Nothing,
    /// The newest version.
    Newest(Box<Record>),
    /// The previous one; why not the newest, in words.
    Previous(Box<Record>, String),
    /// Nothing that can be trusted; why, in words.
    Lost(String),
}

/// Looks for what was kept of `device` at `path`.
pub(crate) fn find(files: &mut impl Files, path: &Path, device: &str) -> Found {
    let newest = match load(files, path, device) {
        Ok(record) => return Found::Newest(Box::new(record)),
        Err(why) => why,
    };
    let previous = load(files, &with_suffix(path, PREVIOUS), device);
    match (newest, previous) {
        (NotLoaded::Missing, Err(NotLoaded::Missing)) => Found::Nothing,
        // Not for this version to judge, and so not what it replaced either.
        (NotLoaded::Refused(why), _) => Found::Lost(why),
        (NotLoaded::Missing, Ok(record)) => {
            Found::Previous(Box::new(record), format!("{} is missing", path.display()))
        }
        (NotLoaded::Damaged(why), Ok(record)) => Found::Previous(Box::new(record), why),
        (NotLoaded::Damaged(why), Err(_)) => Found::Lost(why),
        (NotLoaded::Missing, Err(NotLoaded::Damaged(why) | NotLoaded::Refused(why))) => {
            Found::Lost(why)
        }
    }
}

enum NotLoaded {
    Missing,
    Damaged(String),
    Refused(String),
}

fn load(files: &mut impl Files, path: &Path, device: &str) -> Result<Record, NotLoaded> {
    let shown = path.display();
    let bytes = match files.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(NotLoaded::Missing),
        Err(error) => return Err(NotLoaded::Refused(format!("{shown} cannot be read: {error}"))),
    };
    let record = Record::decode(&bytes).map_err(|error| {
        let why = format!("{shown}: {error}");
        match error {
            RecordError::Damaged(_) | RecordError::Foreign => NotLoaded::Damaged(why),
            RecordError::Scst | RecordError::TooNew { .. } => NotLoaded::Refused(why),
        }
    })?;
    if record.unit == device {
        Ok(record)
    } else {
        let why = format!("{shown} has the reservations of device {}", record.unit);
        Err(NotLoaded::Refused(why))
    }
}

/// Something to keep.
struct Job {
    unit: u32,
    keep: u64,
    record: Box<Record>,
}

/// What became of it: unit, name and result.
pub(crate) type Kept = (u32, u64, Result<(), String>);

/// The thread that writes, so that the engine waits for no disk but its devices'.
pub(crate) struct Keeper {
    jobs: Option<Sender<Job>>,
    results: Receiver<Kept>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `paths` by unit; `wake` is told of every end.
    pub(crate) fn start(paths: BTreeMap<u32, PathBuf>, wake: Arc<OwnedFd>) -> io::Result<Self> {
        let (jobs, to_do) = channel::<Job>();
        let (done, results) = channel();
        let work = move || {
            for Job { unit, keep: name, record } in to_do {
                let result = match paths.get(&unit) {
                    Some(path) => keep(&mut Disk, path, &record.encode()).map_err(|error| {
                        format!("{}: {error}; see to the directory (--pr-dir)", path.display())
                    }),
                    None => Err("the unit is gone".to_owned()),
                };
                if done.send((unit, name, result)).is_err() {
                    return;
                }
                // A full counter means that the engine is awake already.
                let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
            }
        };
        let thread = std::thread::Builder::new().name("lunar-pr".to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), results, thread: Some(thread) })
    }

    /// Keeps `record`; its end comes from [`Self::next`].
    pub(crate) fn keep(&self, unit: u32, keep: u64, record: Box<Record>) {
        // The thread lives as long as this does.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Job { unit, keep, record }));
    }

    /// The next end.
    pub(crate) fn next(&self) -> Option<Kept> {
        self.results.try_recv().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that keeps reservations panicked: this is a defect of lunar-agent");
        }
    }
}

/// Where a device's reservations are kept: where its `pr_file_name` says, else in `directory` under its name.
pub(crate) fn path(tree: &Tree, device: &str, directory: &Path) -> PathBuf {
    let own = tree.devices.get(device).and_then(|device| device.pr_file_name.as_ref());
    // Device names may have anything but a NUL.
    own.map_or_else(|| directory.join(device.replace('/', "!")), PathBuf::from)
}

/// No device's versions may be where another's are, as those of `disk` and `disk.1` would be.
pub(crate) fn check_apart(devices: &[(&str, &Path)]) -> Result<(), String> {
    let mut owners = BTreeMap::new();
    for (device, path) in devices {
        for suffix in ["", NEW, PREVIOUS, DAMAGED] {
            let version = with_suffix(path, suffix);
            if let Some(other) = owners.insert(version.clone(), device) {
                return Err(format!(
                    "devices {other} and {device} would both keep reservations in {}: give one of them another \
                     pr_file_name",
                    version.display()
                ));
            }
        }
    }
    Ok(())
}

/// The state that an import brings: the text of SCST's `pr_state`, SCST's file, or Lunar's own.
pub(crate) fn import(bytes: &[u8]) -> Result<Reservations, String> {
    match Record::decode(bytes) {
        Ok(record) => Ok(record.reservations),
        Err(RecordError::Scst) => {
            scst::import_file(bytes).map_err(|error| format!("SCST's file: {error}"))
        }
        Err(RecordError::Foreign) => {
            let text = str::from_utf8(bytes).map_err(|_| {
                "neither the text of SCST's pr_state, nor SCST's file, nor Lunar's".to_owned()
            })?;
            scst::import_state(text).map_err(|error| format!("the text of pr_state: {error}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// As the API tells of them.
pub(crate) fn told(state: &Reservations) -> wire::ReservationsReply {
    let registrations = state.registrations().map(|registration| wire::Registration {
        initiator: registration.nexus.initiator.to_string(),
        relative_target_port: registration.nexus.target_port.into(),
        key: registration.key,
        holder: registration.holder,
    });
    wire::ReservationsReply {
        registrations: registrations.collect(),
        reservation_type: state.reservation().map_or(0, |held| held.kind as u32),
        generation: state.generation(),
        aptpl: state.persists_through_power_loss(),
        reserved_by: state.legacy_holder().map_or_else(String::new, |holder| {
            format!("{} (port {})", holder.initiator, holder.target_port)
        }),
        lost: state.is_lost(),
        pr_state: scst::export_state(state).unwrap_or_default(),
        in_force: false,
    }
}

/// What was kept of a device, for the core. What cannot be trusted keeps everybody out, and is told loudly.
pub(crate) fn restore(path: &Path, device: &str) -> Option<Record> {
    match find(&mut Disk, path, device) {
        Found::Nothing => None,
        Found::Newest(record) => Some(*record),
        Found::Previous(record, why) => {
            warn!(device, "its reservations are taken from their previous version: {why}");
            // Else it would become the previous version of the next one, in the place of the good one.
            if path.exists()
                && let Err(error) = Disk.rename(path, &with_suffix(path, DAMAGED))
            {
                warn!(device, "{}: it cannot be put aside: {error}", path.display());
            }
            Some(*record)
        }
        Found::Lost(why) => {
            error!(
                device,
                "its reservations are lost, so nobody gets at it until they are cleared or imported with `lunar pr`, \
                 or an initiator replaces them (REPLACE LOST RESERVATION): {why}"
            );
            Some(Record {
                unit: device.to_owned(),
                boot_id: [0; 16],
                operation: None,
                reservations: Reservations::information_lost(),
            })
        }
    }
}

#[cfg(test)]
mod tests;
