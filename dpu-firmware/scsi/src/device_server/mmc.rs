//! The commands of CD/DVD devices (MMC-6): what a drive with one finished disc of one session and one
//! data track has to say. It only reads, and its disc comes and goes.

use super::{Parameter, Verdict};
use crate::cdb::{GetConfiguration, ReadToc};
use crate::sense::Sense;
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// Blocks of the largest CD: 80 minutes of 60 seconds of 75 frames. What is larger is a DVD.
const CD_BLOCKS_MAX: u64 = 80 * 60 * 75;
/// Frames before the first block (MMC-6, MSF addresses).
const PREGAP: u64 = 2 * 75;

/// ADR 1 (Q sub-channel has the position), CONTROL 4 (a data track).
const DATA_TRACK: u8 = 0x14;
const FIRST_TRACK: u8 = 1;
const LEAD_OUT: u8 = 0xAA;

/// READ TOC/PMA/ATIP formats (MMC-6).
const TOC: u8 = 0;
const SESSIONS: u8 = 1;

/// RT of GET CONFIGURATION.
const ALL_FEATURES: u8 = 0;
const CURRENT_FEATURES: u8 = 1;
const ONE_FEATURE: u8 = 2;

/// The class of events that there is, and its bit in NOTIFICATION CLASS REQUEST.
const MEDIA_CLASS: u8 = 4;
const SUPPORTED_CLASSES: u8 = 1 << MEDIA_CLASS;

pub(super) const TOC_BYTES_MAX: u32 = 4 + 2 * 8;
pub(super) const CONFIGURATION_BYTES_MAX: u32 = 8 + 12 + 12 + 8 + 8 + 12 + 4 + 8 + 8 + 4 + 8;
pub(super) const EVENT_STATUS_BYTES_MAX: u32 = 8;
pub(super) const DISC_INFORMATION_BYTES_MAX: u32 = 34;
pub(super) const MECHANISM_STATUS_BYTES_MAX: u32 = 8;

/// MMC-6, READ TOC/PMA/ATIP.
pub(super) fn read_toc(command: ReadToc) -> Verdict {
    let track_is_there = matches!(command.track, 0 | FIRST_TRACK | LEAD_OUT);
    match command.format {
        TOC if !track_is_there => refuse(6, None),
        TOC | SESSIONS => Verdict::Parameter(Parameter::Toc(command)),
        _ => refuse(2, Some(3)),
    }
}

/// MMC-6, GET CONFIGURATION.
pub(super) fn get_configuration(command: GetConfiguration) -> Verdict {
    match command.requested {
        ALL_FEATURES | CURRENT_FEATURES | ONE_FEATURE => {
            Verdict::Parameter(Parameter::Configuration(command))
        }
        _ => refuse(1, Some(1)),
    }
}

/// MMC-6, GET EVENT STATUS NOTIFICATION: polled only.
pub(super) fn event_status(polled: bool, classes: u8, allocation: u16) -> Verdict {
    if polled {
        Verdict::Parameter(Parameter::EventStatus { classes, changed: false, allocation })
    } else {
        refuse(1, Some(0))
    }
}

/// MMC-6, READ DISC INFORMATION: standard disc information only.
pub(super) fn disc_information(data_type: u8, allocation: u16) -> Verdict {
    if data_type == 0 {
        Verdict::Parameter(Parameter::DiscInformation { allocation })
    } else {
        refuse(1, Some(2))
    }
}

fn refuse(byte: u16, bit: Option<u8>) -> Verdict {
    Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(byte, bit)))
}

/// MMC-6, READ TOC/PMA/ATIP response data, formats 0000b and 0001b.
pub(super) fn write_toc(command: &ReadToc, unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&[0, 0, FIRST_TRACK, FIRST_TRACK]);
    let mut descriptor = |track, block| {
        writer.put(&[0, DATA_TRACK, track, 0]);
        writer.put(&address(block, command.msf));
    };
    if command.format == SESSIONS {
        // The first track of the last session, which is the only one.
        descriptor(FIRST_TRACK, 0);
    } else {
        if command.track != LEAD_OUT {
            descriptor(FIRST_TRACK, 0);
        }
        descriptor(LEAD_OUT, unit.blocks);
    }
    patch_length(writer);
}

/// A block's address: its number, or minute, second and frame, whose greatest stands for what is beyond.
fn address(block: u64, msf: bool) -> [u8; 4] {
    if !msf {
        return u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes();
    }
    let frames = block.saturating_add(PREGAP);
    match u8::try_from(frames / (60 * 75)) {
        Ok(minute) => [0, minute, (frames / 75 % 60) as u8, (frames % 75) as u8],
        Err(_) => [0, u8::MAX, 59, 74],
    }
}

/// A length of two bytes at the beginning that does not count itself.
fn patch_length(writer: &mut Writer<'_>) {
    let length = u16::try_from(writer.position().saturating_sub(2)).unwrap_or(u16::MAX);
    writer.patch(0, &length.to_be_bytes());
}

/// What a drive is at the moment (MMC-6, profiles).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    None = 0x0000,
    CdRom = 0x0008,
    DvdRom = 0x0010,
}

impl Profile {
    fn of(unit: &LogicalUnit) -> Self {
        match unit.blocks {
            0 => Self::None,
            1..=CD_BLOCKS_MAX => Self::CdRom,
            _ => Self::DvdRom,
        }
    }
}

/// A feature descriptor (MMC-6, features).
struct Feature {
    code: u16,
    version: u8,
    /// There whatever the disc.
    persistent: bool,
    current: bool,
    /// What follows its header; only as much of it as `bytes` says.
    data: [u8; 8],
    bytes: u8,
}

impl Feature {
    fn new(code: u16, version: u8, data: &[u8]) -> Self {
        let mut padded = [0; 8];
        Writer::new(&mut padded).put(data);
        let bytes = u8::try_from(data.len()).unwrap_or(8);
        Self { code, version, persistent: true, current: true, data: padded, bytes }
    }

    /// One that comes and goes with the disc.
    fn current_if(self, current: bool) -> Self {
        Self { persistent: false, current, ..self }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let flags = self.version << 2 | u8::from(self.persistent) << 1 | u8::from(self.current);
        writer.put(&self.code.to_be_bytes());
        writer.put(&[flags, self.bytes]);
        writer.put(self.data.get(..usize::from(self.bytes)).unwrap_or_default());
    }
}

/// The features of the drive, ascending.
fn features(unit: &LogicalUnit) -> [Feature; 10] {
    let profile = Profile::of(unit);
    let listed = |one: Profile| [0, one as u8, u8::from(profile == one), 0];
    let ([d0, d1, d2, d3], [c0, c1, c2, c3]) = (listed(Profile::DvdRom), listed(Profile::CdRom));
    let [b0, b1, b2, b3] = unit.block_bytes.to_be_bytes();
    // Tray; Load, Eject and Lock.
    const TRAY: u8 = 0x20 | 0x10 | 0x08 | 0x01;
    [
        Feature::new(0x0000, 0, &[d0, d1, d2, d3, c0, c1, c2, c3]), // Profile List
        // Core: PHYSICAL INTERFACE STANDARD 1, the SCSI family.
        Feature::new(0x0001, 2, &[0, 0, 0, 1, 0, 0, 0, 0]),
        Feature::new(0x0002, 1, &[0; 4]), // Morphing: events are polled
        Feature::new(0x0003, 2, &[TRAY, 0, 0, 0]), // Removable Medium
        // Random Readable: the block size, and BLOCKING 1.
        Feature::new(0x0010, 0, &[b0, b1, b2, b3, 0, 1, 0, 0]).current_if(profile != Profile::None),
        Feature::new(0x001D, 0, &[]).current_if(profile == Profile::CdRom), // Multi-Read
        Feature::new(0x001E, 2, &[0; 4]).current_if(profile == Profile::CdRom), // CD Read
        Feature::new(0x001F, 1, &[0; 4]).current_if(profile == Profile::DvdRom), // DVD Read
        Feature::new(0x0100, 0, &[]),                                       // Power Management
        Feature::new(0x0105, 1, &[0; 4]),                                   // Timeout
    ]
}

/// MMC-6, GET CONFIGURATION response data.
pub(super) fn write_configuration(
    command: &GetConfiguration,
    unit: &LogicalUnit,
    writer: &mut Writer<'_>,
) {
    writer.zeros(6);
    writer.put(&(Profile::of(unit) as u16).to_be_bytes());
    for feature in features(unit) {
        let wanted = match command.requested {
            ONE_FEATURE => feature.code == command.first,
            CURRENT_FEATURES => feature.current && feature.code >= command.first,
            _ => feature.code >= command.first,
        };
        if wanted {
            feature.write(writer);
        }
    }
    // DATA LENGTH does not count itself.
    let length = u32::try_from(writer.position().saturating_sub(4)).unwrap_or(u32::MAX);
    writer.patch(0, &length.to_be_bytes());
}

/// Whether NOTIFICATION CLASS REQUEST has the media class, the only one there is.
pub(super) fn asks_for_media(classes: u8) -> bool {
    classes & SUPPORTED_CLASSES != 0
}

/// MMC-6, GET EVENT STATUS NOTIFICATION response data. `changed`: a disc came or went since the
/// nexus asked the last time.
pub(super) fn write_event_status(
    classes: u8,
    changed: bool,
    unit: &LogicalUnit,
    writer: &mut Writer<'_>,
) {
    const NO_EVENT_AVAILABLE: u8 = 0x80;
    const NEW_MEDIA: u8 = 2;
    const MEDIA_REMOVAL: u8 = 3;
    const MEDIA_PRESENT: u8 = 0x02;
    if !asks_for_media(classes) {
        writer.put(&[0, 2, NO_EVENT_AVAILABLE, SUPPORTED_CLASSES]);
        return;
    }
    let (event, status) = match (changed, unit.has_medium()) {
        (true, true) => (NEW_MEDIA, MEDIA_PRESENT),
        (true, false) => (MEDIA_REMOVAL, 0),
        (false, true) => (0, MEDIA_PRESENT),
        (false, false) => (0, 0),
    };
    writer.put(&[0, 6, MEDIA_CLASS, SUPPORTED_CLASSES, event, status, 0, 0]);
}

/// MMC-6, READ DISC INFORMATION, standard disc information: a finished disc.
pub(super) fn write_disc_information(writer: &mut Writer<'_>) {
    const LAST_SESSION_COMPLETE: u8 = 0x0C;
    const FINALIZED: u8 = 0x02;
    const UNRESTRICTED_USE: u8 = 0x20;
    writer.put(&[0, 0, LAST_SESSION_COMPLETE | FINALIZED, FIRST_TRACK]);
    // One session, whose first and last track are the same; DISC TYPE 00h is CD-DA or CD-ROM.
    writer.put(&[1, FIRST_TRACK, FIRST_TRACK, UNRESTRICTED_USE, 0, 0, 0, 0]);
    writer.zeros(4); // DISC IDENTIFICATION is not valid
    // Nothing can be written behind a finished disc.
    writer.put(&[0xFF; 8]);
    writer.zeros(8 + 2); // no bar code, no application code, no OPC tables
    patch_length(writer);
}

/// MMC-6, MECHANISM STATUS: nothing is wrong, there is no changer, and the door is closed.
pub(super) fn write_mechanism_status(writer: &mut Writer<'_>) {
    writer.zeros(MECHANISM_STATUS_BYTES_MAX as usize);
}
