//! Sense data: what went wrong, as a value, and its two forms on the wire (SPC-6, sense data). The
//! ASC/ASCQ pairs the target uses are named here and nowhere else.

use crate::writer::Writer;

/// The sense key (SPC-6). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to report.
    NoSense = 0x0,
    /// Completed, after some recovery.
    RecoveredError = 0x1,
    /// The logical unit cannot be accessed now.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// Something other than the medium failed.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// A unit attention condition (SAM-6 5.14).
    UnitAttention = 0x6,
    /// The medium is protected from this operation.
    DataProtect = 0x7,
    /// EXTENDED COPY gave up.
    CopyAborted = 0xA,
    /// The device server gave the command up; trying again may work.
    AbortedCommand = 0xB,
    /// COMPARE AND WRITE or VERIFY found a difference.
    Miscompare = 0xE,
}

/// Which field an ILLEGAL REQUEST is about (SPC-6, field pointer sense key specific
/// data).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldPointer {
    /// True: `byte` counts in the CDB; false: in the data-out parameter list.
    pub in_cdb: bool,
    /// First byte of the field.
    pub byte: u16,
    /// Most significant bit of the field, 0..=7; `None` where the whole byte is meant.
    pub bit: Option<u8>,
}

/// Sense data as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// The sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION: an LBA, or for MISCOMPARE a byte offset. Left out of the fixed format if above 32 bits.
    pub information: Option<u64>,
    /// The field at fault; only ILLEGAL REQUEST carries one.
    pub field: Option<FieldPointer>,
}

// Returned by value on the data path.
const _: () = assert!(size_of::<Sense>() <= 32);

impl Sense {
    /// The most bytes [`Sense::encode`] writes: descriptor header 8, information descriptor 12,
    /// sense key specific descriptor 8.
    pub const BYTES_MAX: usize = 8 + 12 + 8;

    /// 00/00: what REQUEST SENSE reports when there is nothing to report.
    pub const NO_SENSE: Self = Self::new(SenseKey::NoSense, 0x00, 0x00);

    /// 1A/00: a data-out parameter list is cut, or longer than it may be.
    pub const PARAMETER_LIST_LENGTH_ERROR: Self = Self::new(SenseKey::IllegalRequest, 0x1A, 0x00);
    /// 20/00: no such command.
    pub const INVALID_COMMAND_OPERATION_CODE: Self =
        Self::new(SenseKey::IllegalRequest, 0x20, 0x00);
    /// 21/00: the range leaves the medium; INFORMATION has the first LBA that does.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(SenseKey::IllegalRequest, 0x21, 0x00);
    /// 24/00: a CDB field is wrong.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(SenseKey::IllegalRequest, 0x24, 0x00);
    /// 25/00: nothing at this LUN.
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x25, 0x00);
    /// 26/00: a parameter list field is wrong.
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self =
        Self::new(SenseKey::IllegalRequest, 0x26, 0x00);
    /// 26/04: INVALID RELEASE OF PERSISTENT RESERVATION, of another type than is held; or REPLACE LOST
    /// RESERVATION where none was lost.
    pub const INVALID_RELEASE: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x04);
    /// 26/06: EXTENDED COPY names more copy targets than [`crate::extended_copy`] takes.
    pub const TOO_MANY_TARGET_DESCRIPTORS: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x06);
    /// 26/07: EXTENDED COPY has a target descriptor of a kind not known here.
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x07);
    /// 26/08: EXTENDED COPY has more segments than [`crate::extended_copy`] takes.
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x08);
    /// 26/09: EXTENDED COPY has a segment descriptor of a kind not known here.
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Self =
        Self::new(SenseKey::IllegalRequest, 0x26, 0x09);
    /// 39/00: MODE SENSE asked for saved values.
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self =
        Self::new(SenseKey::IllegalRequest, 0x39, 0x00);

    /// 53/02: an I_T nexus prevents the medium's removal.
    pub const MEDIUM_REMOVAL_PREVENTED: Self = Self::new(SenseKey::IllegalRequest, 0x53, 0x02);

    /// 3A/00: no medium in a removable unit.
    pub const MEDIUM_NOT_PRESENT: Self = Self::new(SenseKey::NotReady, 0x3A, 0x00);
    /// 04/01: becoming ready.
    pub const NOT_READY_BECOMING_READY: Self = Self::new(SenseKey::NotReady, 0x04, 0x01);
    /// 04/0A: ALUA, the target port group is changing state.
    pub const NOT_READY_TRANSITIONING: Self = Self::new(SenseKey::NotReady, 0x04, 0x0A);
    /// 04/0B: ALUA, the target port is in standby state.
    pub const TARGET_PORT_IN_STANDBY: Self = Self::new(SenseKey::NotReady, 0x04, 0x0B);
    /// 04/0C: ALUA, the target port is in unavailable state.
    pub const TARGET_PORT_UNAVAILABLE: Self = Self::new(SenseKey::NotReady, 0x04, 0x0C);
    /// 04/12: ALUA, the target port is offline.
    pub const NOT_READY_OFFLINE: Self = Self::new(SenseKey::NotReady, 0x04, 0x12);

    /// 11/00: UNRECOVERED READ ERROR.
    pub const MEDIUM_ERROR_READ: Self = Self::new(SenseKey::MediumError, 0x11, 0x00);
    /// 0C/00: WRITE ERROR.
    pub const MEDIUM_ERROR_WRITE: Self = Self::new(SenseKey::MediumError, 0x0C, 0x00);
    /// 44/00: the target itself failed.
    pub const INTERNAL_TARGET_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);

    /// 67/0A: SET TARGET PORT GROUPS COMMAND FAILED.
    pub const SET_TARGET_PORT_GROUPS_FAILED: Self = Self::new(SenseKey::HardwareError, 0x67, 0x0A);

    /// 27/00: the logical unit is read only.
    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x00);
    /// 27/02: LOGICAL UNIT SOFTWARE WRITE PROTECTED, by SWP in the Control mode page.
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x02);
    /// 27/07: SPACE ALLOCATION FAILED WRITE PROTECT, the backing of a thin unit is full.
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x07);

    /// 44/01: PERSISTENT RESERVATION INFORMATION LOST; only REPLACE LOST RESERVATION ends that.
    pub const RESERVATION_INFORMATION_LOST: Self = Self::new(SenseKey::DataProtect, 0x44, 0x01);

    /// 1D/00: MISCOMPARE DURING VERIFY OPERATION; INFORMATION has the offset in the data-out buffer of
    /// the first byte that differs.
    pub const MISCOMPARE: Self = Self::new(SenseKey::Miscompare, 0x1D, 0x00);

    /// 00/00 with COPY ABORTED: EXTENDED COPY gave up in a segment.
    pub const COPY_ABORTED: Self = Self::new(SenseKey::CopyAborted, 0x00, 0x00);
    /// 0D/02: COPY TARGET DEVICE NOT REACHABLE, a segment names a copy target that is not there.
    pub const COPY_TARGET_NOT_REACHABLE: Self = Self::new(SenseKey::CopyAborted, 0x0D, 0x02);

    /// 00/00 with ABORTED COMMAND: given up, no more to say.
    pub const COMMAND_ABORTED: Self = Self::new(SenseKey::AbortedCommand, 0x00, 0x00);
    /// 08/00: LOGICAL UNIT COMMUNICATION FAILURE, whoever executed the command is gone and with it
    /// whether it was executed.
    pub const OUTCOME_LOST: Self = Self::new(SenseKey::AbortedCommand, 0x08, 0x00);
    /// 4B/00: DATA PHASE ERROR, moving the data failed.
    pub const DATA_PHASE_ERROR: Self = Self::new(SenseKey::AbortedCommand, 0x4B, 0x00);
    /// 4B/05: DATA OFFSET ERROR, the initiator's data buffers do not fit the transfer.
    pub const DATA_OFFSET_ERROR: Self = Self::new(SenseKey::AbortedCommand, 0x4B, 0x05);
    /// 0E/00: INVALID INFORMATION UNIT, the transport's command unit contradicts itself.
    pub const INVALID_INFORMATION_UNIT: Self = Self::new(SenseKey::AbortedCommand, 0x0E, 0x00);
    /// 0E/01: INFORMATION UNIT TOO SHORT.
    pub const INFORMATION_UNIT_TOO_SHORT: Self = Self::new(SenseKey::AbortedCommand, 0x0E, 0x01);
    /// 55/04: INSUFFICIENT REGISTRATION RESOURCES, more registrations than
    /// [`crate::reservations::REGISTRATIONS_MAX`].
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Self =
        Self::new(SenseKey::IllegalRequest, 0x55, 0x04);
    /// 55/03: INSUFFICIENT RESOURCES.
    pub const INSUFFICIENT_RESOURCES: Self = Self::new(SenseKey::IllegalRequest, 0x55, 0x03);

    /// Sense data with neither information nor field pointer.
    #[must_use]
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None }
    }

    /// The same, about a field of the CDB: its first byte and its most significant bit (0..=7),
    /// `None` where the field begins with the byte.
    #[must_use]
    pub const fn with_field(self, byte: u16, bit: Option<u8>) -> Self {
        self.with_field_pointer(FieldPointer { in_cdb: true, byte, bit })
    }

    /// The same, about any field.
    #[must_use]
    pub const fn with_field_pointer(self, field: FieldPointer) -> Self {
        Self { field: Some(field), ..self }
    }

    /// The same, with an INFORMATION field.
    #[must_use]
    pub const fn with_information(self, information: u64) -> Self {
        Self { information: Some(information), ..self }
    }

    /// Writes the sense data, current (not deferred), in the fixed or the descriptor format
    /// (SPC-6), cut where `out` ends. Gives the bytes written, at most [`Sense::BYTES_MAX`].
    pub fn encode(&self, descriptor_format: bool, out: &mut [u8]) -> usize {
        let mut writer = Writer::new(out);
        self.write(descriptor_format, &mut writer);
        writer.written()
    }

    pub(crate) fn write(&self, descriptor_format: bool, writer: &mut Writer<'_>) {
        if descriptor_format { self.descriptors(writer) } else { self.fixed(writer) }
    }

    /// SPC-6, fixed format sense data, 18 bytes.
    fn fixed(&self, writer: &mut Writer<'_>) {
        // VALID stays zero for a value that does not fit the four bytes.
        let information = self.information.and_then(|value| u32::try_from(value).ok());
        let valid = if information.is_some() { 0x80 } else { 0 };
        writer.put(&[valid | 0x70, 0, self.key as u8]);
        writer.put(&information.unwrap_or(0).to_be_bytes());
        writer.put(&[10]); // ADDITIONAL SENSE LENGTH: the rest
        writer.put(&[0, 0, 0, 0, self.asc, self.ascq, 0]);
        writer.put(&self.field.map_or([0; 3], FieldPointer::sense_key_specific));
    }

    /// SPC-6, descriptor format sense data, 8 to 28 bytes.
    fn descriptors(&self, writer: &mut Writer<'_>) {
        writer.put(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0]);
        writer.put(&[match (self.information, self.field) {
            (None, None) => 0,
            (None, Some(_)) => 8,
            (Some(_), None) => 12,
            (Some(_), Some(_)) => 20,
        }]);
        if let Some(information) = self.information {
            writer.put(&[0x00, 0x0A, 0x80, 0x00]); // VALID
            writer.put(&information.to_be_bytes());
        }
        if let Some(field) = self.field {
            writer.put(&[0x02, 0x06, 0, 0]);
            writer.put(&field.sense_key_specific());
            writer.put(&[0]);
        }
    }
}

impl FieldPointer {
    /// SPC-6, field pointer sense key specific data: SKSV, C/D, BPV, bit pointer, field pointer.
    fn sense_key_specific(self) -> [u8; 3] {
        let in_cdb = if self.in_cdb { 0x40 } else { 0 };
        let bit = self.bit.map_or(0, |bit| 0x08 | (bit & 0x07));
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | in_cdb | bit, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What an initiator makes of sense data: a decoder written from the tables of SPC-6, not from
    /// the encoder.
    #[derive(Debug, Default, PartialEq)]
    struct Decoded {
        key: u8,
        asc: u8,
        ascq: u8,
        information: Option<u64>,
        field: Option<FieldPointer>,
    }

    fn field(specific: &[u8]) -> Option<FieldPointer> {
        (specific[0] & 0x80 != 0).then(|| FieldPointer {
            in_cdb: specific[0] & 0x40 != 0,
            byte: u16::from_be_bytes([specific[1], specific[2]]),
            bit: (specific[0] & 0x08 != 0).then_some(specific[0] & 0x07),
        })
    }

    fn decode(bytes: &[u8]) -> Decoded {
        match bytes[0] & 0x7F {
            0x70 => {
                assert_eq!(bytes.len(), 8 + usize::from(bytes[7]));
                let information = u32::from_be_bytes(bytes[3..7].try_into().unwrap());
                Decoded {
                    key: bytes[2],
                    asc: bytes[12],
                    ascq: bytes[13],
                    information: (bytes[0] & 0x80 != 0).then_some(u64::from(information)),
                    field: field(&bytes[15..18]),
                }
            }
            0x72 => {
                assert_eq!(bytes.len(), 8 + usize::from(bytes[7]));
                let mut decoded =
                    Decoded { key: bytes[1], asc: bytes[2], ascq: bytes[3], ..Decoded::default() };
                let mut rest = &bytes[8..];
                while !rest.is_empty() {
                    let (descriptor, after) = rest.split_at(2 + usize::from(rest[1]));
                    match descriptor[0] {
                        0x00 => {
                            assert_eq!(descriptor[2], 0x80);
                            let information = descriptor[4..12].try_into().unwrap();
                            decoded.information = Some(u64::from_be_bytes(information));
                        }
                        0x02 => decoded.field = field(&descriptor[4..7]),
                        other => panic!("descriptor type {other:#04x}"),
                    }
                    rest = after;
                }
                decoded
            }
            other => panic!("response code {other:#04x}"),
        }
    }

    fn any_sense() -> impl Strategy<Value = Sense> {
        let key = prop::sample::select(vec![
            SenseKey::NoSense,
            SenseKey::RecoveredError,
            SenseKey::NotReady,
            SenseKey::MediumError,
            SenseKey::HardwareError,
            SenseKey::IllegalRequest,
            SenseKey::UnitAttention,
            SenseKey::DataProtect,
            SenseKey::CopyAborted,
            SenseKey::AbortedCommand,
            SenseKey::Miscompare,
        ]);
        let information = prop::option::of(prop_oneof![
            any::<u64>(),
            any::<u32>().prop_map(u64::from),
            Just(u64::from(u32::MAX)),
            Just(u64::from(u32::MAX) + 1),
        ]);
        let field = prop::option::of(
            (any::<bool>(), any::<u16>(), prop::option::of(0_u8..8))
                .prop_map(|(in_cdb, byte, bit)| FieldPointer { in_cdb, byte, bit }),
        );
        (key, any::<(u8, u8)>(), information, field).prop_map(
            |(key, (asc, ascq), information, field)| Sense { key, asc, ascq, information, field },
        )
    }

    proptest! {
        #[test]
        fn both_formats_say_what_the_value_says(sense in any_sense(), descriptor_format: bool) {
            let mut bytes = [0xEE; 252];
            let length = sense.encode(descriptor_format, &mut bytes);
            prop_assert!(length <= Sense::BYTES_MAX);
            prop_assert!(bytes[length..].iter().all(|&byte| byte == 0xEE));
            let fits = descriptor_format
                || sense.information.is_none_or(|value| value <= u64::from(u32::MAX));
            let expected = Decoded {
                key: sense.key as u8,
                asc: sense.asc,
                ascq: sense.ascq,
                information: sense.information.filter(|_| fits),
                field: sense.field,
            };
            prop_assert_eq!(decode(&bytes[..length]), expected);
        }

        #[test]
        fn too_little_room_cuts_the_same_bytes(
            sense in any_sense(), descriptor_format: bool, room in 0_usize..=Sense::BYTES_MAX,
        ) {
            let mut whole = [0; Sense::BYTES_MAX];
            let length = sense.encode(descriptor_format, &mut whole);
            let mut cut = vec![0xEE; room];
            prop_assert_eq!(sense.encode(descriptor_format, &mut cut), length.min(room));
            let kept = length.min(room);
            prop_assert_eq!(&cut[..kept], &whole[..kept]);
        }
    }

    #[test]
    fn spc_6_fixed_format_of_an_invalid_cdb_field() {
        let mut bytes = [0; 18];
        let sense = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(3));
        assert_eq!(sense.encode(false, &mut bytes), 18);
        assert_eq!(
            bytes,
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0x80 | 0x40 | 0x08 | 3, 0, 1]
        );
    }

    #[test]
    fn spc_6_descriptor_format_of_a_far_lba() {
        let mut bytes = [0; 20];
        let sense = Sense::LBA_OUT_OF_RANGE.with_information(0x0102_0304_0506_0708);
        assert_eq!(sense.encode(true, &mut bytes), 20);
        assert_eq!(
            bytes,
            [0x72, 5, 0x21, 0, 0, 0, 0, 12, 0, 0x0A, 0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8]
        );
    }
}
