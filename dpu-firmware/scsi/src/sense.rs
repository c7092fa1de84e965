//! Sense data: what went wrong, as a value, and its two forms on the wire (SPC-6 4.4). The ASC/ASCQ
//! pairs the target uses are named here and nowhere else.

/// The sense key (SPC-6 4.4.6). The discriminant is the code on the wire.
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
    /// The device server gave the command up; trying again may work.
    AbortedCommand = 0xB,
    /// COMPARE AND WRITE or VERIFY found a difference.
    Miscompare = 0xE,
}

/// Which field an ILLEGAL REQUEST is about (SPC-6 4.4.2.4.2, field pointer sense key specific data).
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
    /// INFORMATION: for the commands here, an LBA. Left out of the fixed format if above 32 bits.
    pub information: Option<u64>,
    /// The field at fault; only ILLEGAL REQUEST carries one.
    pub field: Option<FieldPointer>,
}

// Returned by value on the data path.
const _: () = assert!(size_of::<Sense>() <= 32);

impl Sense {
    /// The most bytes [`Sense::encode`] writes: descriptor header 8, information descriptor 12, sense key
    /// specific descriptor 8.
    pub const BYTES_MAX: usize = 8 + 12 + 8;

    /// 00/00: what REQUEST SENSE reports when there is nothing to report.
    pub const NO_SENSE: Self = Self::new(SenseKey::NoSense, 0x00, 0x00);

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
    /// 39/00: MODE SENSE asked for saved values.
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self =
        Self::new(SenseKey::IllegalRequest, 0x39, 0x00);

    /// 04/01: becoming ready.
    pub const NOT_READY_BECOMING_READY: Self = Self::new(SenseKey::NotReady, 0x04, 0x01);
    /// 04/0A: ALUA, the target port group is changing state.
    pub const NOT_READY_TRANSITIONING: Self = Self::new(SenseKey::NotReady, 0x04, 0x0A);

    /// 11/00: UNRECOVERED READ ERROR.
    pub const MEDIUM_ERROR_READ: Self = Self::new(SenseKey::MediumError, 0x11, 0x00);
    /// 0C/00: WRITE ERROR.
    pub const MEDIUM_ERROR_WRITE: Self = Self::new(SenseKey::MediumError, 0x0C, 0x00);
    /// 44/00: the target itself failed.
    pub const INTERNAL_TARGET_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);

    /// 27/00: the logical unit is read only.
    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x00);
    /// 27/07: SPACE ALLOCATION FAILED WRITE PROTECT, the backing of a thin unit is full.
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x07);

    /// 00/00 with ABORTED COMMAND: given up, no more to say.
    pub const COMMAND_ABORTED: Self = Self::new(SenseKey::AbortedCommand, 0x00, 0x00);
    /// 08/00: LOGICAL UNIT COMMUNICATION FAILURE, whoever executed the command is gone and with it whether
    /// it was executed.
    pub const OUTCOME_LOST: Self = Self::new(SenseKey::AbortedCommand, 0x08, 0x00);
    /// 4B/00: DATA PHASE ERROR, moving the data failed.
    pub const DATA_PHASE_ERROR: Self = Self::new(SenseKey::AbortedCommand, 0x4B, 0x00);
    /// 4B/05: DATA OFFSET ERROR, the initiator's data buffers do not fit the transfer.
    pub const DATA_OFFSET_ERROR: Self = Self::new(SenseKey::AbortedCommand, 0x4B, 0x05);
    /// 0E/00: INVALID INFORMATION UNIT, the transport's command unit contradicts itself.
    pub const INVALID_INFORMATION_UNIT: Self = Self::new(SenseKey::AbortedCommand, 0x0E, 0x00);
    /// 0E/01: INFORMATION UNIT TOO SHORT.
    pub const INFORMATION_UNIT_TOO_SHORT: Self = Self::new(SenseKey::AbortedCommand, 0x0E, 0x01);
    /// 55/03: INSUFFICIENT RESOURCES.
    pub const INSUFFICIENT_RESOURCES: Self = Self::new(SenseKey::IllegalRequest, 0x55, 0x03);

    /// Sense data with neither information nor field pointer.
    #[must_use]
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None }
    }

    /// The same, about a field of the CDB: its first byte and its most significant bit (0..=7), `None`
    /// where the field begins with the byte.
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

    /// Writes the sense data, current (not deferred), in the fixed (SPC-6 4.4.3) or descriptor format
    /// (SPC-6 4.4.2), cut where `out` ends. Gives the bytes written, at most [`Sense::BYTES_MAX`].
    pub fn encode(&self, descriptor_format: bool, out: &mut [u8]) -> usize {
        let mut bytes = [0; Self::BYTES_MAX];
        let length =
            if descriptor_format { self.descriptors(&mut bytes) } else { self.fixed(&mut bytes) };
        let encoded = bytes.get(..length).unwrap_or(&bytes);
        let length = encoded.len().min(out.len());
        for (to, from) in out.iter_mut().zip(encoded) {
            *to = *from;
        }
        length
    }

    /// SPC-6 4.4.3, 18 bytes.
    fn fixed(&self, bytes: &mut [u8; Self::BYTES_MAX]) -> usize {
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        bytes[7] = 10; // ADDITIONAL SENSE LENGTH: up to byte 17
        // SPC-6 4.4.3: VALID stays zero for a value that does not fit the four bytes.
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            bytes[0] |= 0x80;
            [bytes[3], bytes[4], bytes[5], bytes[6]] = information.to_be_bytes();
        }
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(field) = self.field {
            [bytes[15], bytes[16], bytes[17]] = field.sense_key_specific();
        }
        18
    }

    /// SPC-6 4.4.2, 8 to 28 bytes.
    fn descriptors(&self, bytes: &mut [u8; Self::BYTES_MAX]) -> usize {
        let (header, rest) = bytes.split_at_mut(8);
        let mut additional: u8 = 0;
        let rest = match self.information {
            None => rest,
            Some(information) => {
                let (descriptor, rest) = rest.split_at_mut(12);
                descriptor[..4].copy_from_slice(&[0x00, 0x0A, 0x80, 0x00]);
                descriptor[4..].copy_from_slice(&information.to_be_bytes());
                additional = 12;
                rest
            }
        };
        if let Some(field) = self.field {
            let [high, middle, low] = field.sense_key_specific();
            rest[..8].copy_from_slice(&[0x02, 0x06, 0, 0, high, middle, low, 0]);
            additional += 8;
        }
        header.copy_from_slice(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, additional]);
        8 + usize::from(additional)
    }
}

impl FieldPointer {
    /// SPC-6 4.4.2.4.2: SKSV, C/D, BPV, bit pointer, field pointer.
    fn sense_key_specific(self) -> [u8; 3] {
        let in_cdb = if self.in_cdb { 0x40 } else { 0 };
        let bit = self.bit.map_or(0, |bit| 0x08 | (bit & 0x07));
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | in_cdb | bit, high, low]
    }
}
