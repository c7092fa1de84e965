//! VSCSI's LUN field: logical unit addressing (SAM-6 4.7), in which one client sees buses ("channels") of
//! targets ("ids") of logical units. Which unit a number leads to is the LUN map's business.

use lunar_scsi::lun::{self, LunNumber};

/// The addressing method in the field's first two bits: logical unit addressing.
const METHOD: u16 = 0b10 << 14;
/// What the method leaves of the first two bytes: all the numbers that a client can address.
const NUMBER_MASK: u16 = 0x3FFF;
/// Bits of the logical unit; those of channel and id lie above.
const LUN_BITS: u32 = 5;
const CHANNEL_BITS: u32 = 3;

/// What a LUN field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The logical unit with this number in the client's LUN map.
    Unit(LunNumber),
    /// C101: the REPORT LUNS well known logical unit (SPC-6).
    ReportLuns,
}

/// What the eight bytes name; `None` when no unit can be at that address.
///
/// A client writes `10b | id | channel | lun`, and the 14 bits together are the number in the LUN map:
/// unit 2 of target 3 on channel 0 is 302h, and the first 32 numbers are the units of channel 0, id 0,
/// where a client looks first. Other forms of one level count as the number that they are.
#[inline]
#[must_use]
pub fn decode(field: [u8; 8]) -> Option<Destination> {
    let [first, second, rest @ ..] = field;
    let head = u16::from_be_bytes([first, second]);
    if head & !NUMBER_MASK == METHOD {
        return (rest == [0; 6]).then_some(Destination::Unit(head & NUMBER_MASK));
    }
    if lun::is_report_luns_well_known(field) {
        return Some(Destination::ReportLuns);
    }
    lun::decode(field).map(Destination::Unit)
}

/// The field by which a client addresses the unit with this number; `None` above 16,383, which no client
/// can address.
#[must_use]
pub fn encode(number: LunNumber) -> Option<[u8; 8]> {
    if number & !NUMBER_MASK != 0 {
        return None;
    }
    let [first, second] = (METHOD | number).to_be_bytes();
    Some([first, second, 0, 0, 0, 0, 0, 0])
}

/// The entry for unit `number` in the REPORT LUNS list that a client gets at unit `asked`; `None` when it
/// does not belong there. A client asks each of its targets, and reads the list as the units of that one
/// target.
#[must_use]
pub fn reported(number: LunNumber, asked: Destination) -> Option<[u8; 8]> {
    match asked {
        Destination::ReportLuns => encode(number),
        Destination::Unit(asked) => (number <= NUMBER_MASK
            && number >> LUN_BITS == asked >> LUN_BITS)
            .then(|| lun::encode(Address::from_number(number).lun.into())),
    }
}

/// A unit as a client shows it to its users: `channel:id:lun`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// 0 to 7. A client may look at fewer: Linux at 0 to 3.
    pub channel: u8,
    /// 0 to 63.
    pub id: u8,
    /// 0 to 31.
    pub lun: u8,
}

impl Address {
    /// Buses of an adapter.
    pub const CHANNELS: u8 = 1 << CHANNEL_BITS;
    /// Targets of a bus.
    pub const IDS: u8 = 64;
    /// Units of a target.
    pub const LUNS: u8 = 1 << LUN_BITS;

    /// Where a client sees the unit with this number; of a number above 16,383 the high bits are lost.
    #[must_use]
    pub fn from_number(number: LunNumber) -> Self {
        let bits = |low: u32, count: u8| (number >> low) as u8 & count.wrapping_sub(1);
        Self {
            channel: bits(LUN_BITS, Self::CHANNELS),
            id: bits(LUN_BITS.saturating_add(CHANNEL_BITS), Self::IDS),
            lun: bits(0, Self::LUNS),
        }
    }

    /// The unit's number in the LUN map; `None` when a part is beyond its limit.
    #[must_use]
    pub fn number(self) -> Option<LunNumber> {
        let allowed = self.channel < Self::CHANNELS && self.id < Self::IDS && self.lun < Self::LUNS;
        allowed.then(|| {
            LunNumber::from(self.id) << 8
                | LunNumber::from(self.channel) << LUN_BITS
                | LunNumber::from(self.lun)
        })
    }
}
