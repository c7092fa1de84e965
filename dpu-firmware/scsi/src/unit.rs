//! One logical unit as the device server sees it: plain data, made by configuration and replaced as
//! a whole. No behaviour beyond checking itself.

use core::fmt;

use crate::alua::Tpgs;
use crate::opcodes::HostCommands;

/// A logical unit. [`LogicalUnit::new`] gives the plainest one; whoever sets more fields calls
/// [`LogicalUnit::validate`] afterwards. The device server stays within bounds whatever the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalUnit {
    /// Logical block length in bytes: a power of two, 512..=65,536.
    pub block_bytes: u32,
    /// Capacity in logical blocks. Zero: a removable unit without a medium; every command that needs
    /// one is then NOT READY. A unit without a device has none either.
    pub blocks: u64,
    /// PERIPHERAL DEVICE TYPE.
    pub device_type: DeviceType,
    /// Refuses every write (WP), for whichever reason.
    pub read_only: bool,
    /// SWP in the Control mode page: initiators made it read only. [`LogicalUnit::validate`] sees to
    /// it that `read_only` says so too, which is what the data path looks at.
    pub software_write_protect: bool,
    /// D_SENSE in the Control mode page: sense data has the descriptor format.
    pub descriptor_sense: bool,
    /// Has a volatile write cache (WCE in the Caching mode page).
    pub write_cache: bool,
    /// Takes FUA and DPO (DPOFUA in the MODE SENSE header).
    pub fua: bool,
    /// RMB in INQUIRY.
    pub removable: bool,
    /// Which medium is, or was last, in a removable unit: another number is another medium.
    pub medium: u32,
    /// Reports a rotation rate in VPD page B1h instead of "non-rotating".
    pub rotational: bool,
    /// Thin provisioned: LBPME in READ CAPACITY (16), UNMAP and WRITE SAME with UNMAP, the
    /// provisioning type in VPD page B2h.
    pub thin: bool,
    /// Blocks that were unmapped, or never written, read as zeros (LBPRZ). Only of a thin unit.
    pub unmapped_reads_zero: bool,
    /// Logical blocks per physical block, as a power of two, 0..=15 (SBC-4, READ CAPACITY (16)).
    pub physical_blocks_exponent: u8,
    /// OPTIMAL TRANSFER LENGTH in VPD page B0h, blocks; zero: not reported.
    pub optimal_transfer_blocks: u32,
    /// The longest READ or WRITE, blocks, in VPD page B0h and enforced; zero: no limit.
    pub maximum_transfer_blocks: u32,
    /// TST in the Control mode page: 0, one task set; 1, one per I_T nexus.
    pub tst: u8,
    /// TPGS in INQUIRY: whether it has target port groups.
    pub tpgs: Tpgs,
    /// Names.
    pub identity: Identity,
    /// Has an agent behind it: commands unknown here are forwarded instead of refused.
    pub forwards: bool,
    /// Which of the commands that are the host's its agent executes. What is not among them is
    /// forwarded all the same, but not reported as supported.
    pub host_commands: HostCommands,
}

/// PERIPHERAL DEVICE TYPE (SPC-6, standard INQUIRY data). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeviceType {
    /// Direct access block device.
    Disk = 0x00,
    /// CD/DVD device.
    CdDvd = 0x05,
    /// No device: the unit holds a LUN, says so, and has nothing else (SCST: `dummy`).
    NoDevice = 0x1F,
}

impl DeviceType {
    /// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE (SPC-6, standard INQUIRY data). Qualifier 001b:
    /// there could be a device, but none is connected.
    pub(crate) const fn peripheral(self) -> u8 {
        const NOT_CONNECTED: u8 = 0b001 << 5;
        match self {
            Self::Disk | Self::CdDvd => self as u8,
            Self::NoDevice => NOT_CONNECTED | self as u8,
        }
    }
}

impl LogicalUnit {
    /// A fully provisioned, non-rotating unit without write cache that takes FUA, with TST one and
    /// nothing behind it.
    ///
    /// # Errors
    /// As [`LogicalUnit::validate`].
    pub fn new(block_bytes: u32, blocks: u64, identity: Identity) -> Result<Self, InvalidUnit> {
        Self {
            block_bytes,
            blocks,
            device_type: DeviceType::Disk,
            read_only: false,
            software_write_protect: false,
            descriptor_sense: false,
            write_cache: false,
            fua: true,
            removable: false,
            medium: 0,
            rotational: false,
            thin: false,
            unmapped_reads_zero: false,
            physical_blocks_exponent: 0,
            optimal_transfer_blocks: 0,
            maximum_transfer_blocks: 0,
            tst: 1,
            tpgs: Tpgs::None,
            identity,
            forwards: false,
            host_commands: HostCommands::NONE,
        }
        .validate()
    }

    /// The unit itself if every field is in its range, `read_only` where SWP makes it so.
    ///
    /// # Errors
    /// The first field that is not, with its value.
    pub fn validate(self) -> Result<Self, InvalidUnit> {
        if !self.block_bytes.is_power_of_two() || !(512..=65_536).contains(&self.block_bytes) {
            return Err(InvalidUnit::BlockBytes(self.block_bytes));
        }
        // The last byte has an offset that fits a signed 64-bit file offset.
        let must_have_blocks = !self.removable && self.device_type != DeviceType::NoDevice;
        let no_medium = self.blocks == 0 && must_have_blocks;
        if no_medium || self.blocks > i64::MAX.unsigned_abs() >> self.block_shift() {
            return Err(InvalidUnit::Blocks(self.blocks));
        }
        if self.physical_blocks_exponent > 15 {
            return Err(InvalidUnit::PhysicalBlocksExponent(self.physical_blocks_exponent));
        }
        if self.tst > 1 {
            return Err(InvalidUnit::Tst(self.tst));
        }
        Ok(Self { read_only: self.read_only || self.software_write_protect, ..self })
    }

    /// Whether a medium is in it. One that is not removable has one always.
    #[must_use]
    pub fn has_medium(&self) -> bool {
        self.blocks != 0
    }

    /// MAXIMUM COMPARE AND WRITE LENGTH, blocks: its length field's largest, but at most 1 MiB, so
    /// that both halves of the data-out fit one SGV buffer.
    #[must_use]
    pub fn compare_and_write_blocks_max(&self) -> u8 {
        let fits = (1_u32 << 20).checked_shr(self.block_shift()).unwrap_or(0);
        u8::try_from(fits).unwrap_or(u8::MAX).max(1)
    }

    /// Bytes = blocks << this.
    #[must_use]
    #[inline]
    pub fn block_shift(&self) -> u32 {
        self.block_bytes.trailing_zeros()
    }
}

/// The names of a logical unit, in SCST's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// T10 VENDOR IDENTIFICATION, padded with spaces (SCST: `t10_vend_id`).
    pub vendor: [u8; 8],
    /// PRODUCT IDENTIFICATION, padded with spaces (SCST: `prod_id`).
    pub product: [u8; 16],
    /// PRODUCT REVISION LEVEL, padded with spaces (SCST: `prod_rev_lvl`).
    pub revision: [u8; 4],
    /// PRODUCT SERIAL NUMBER in VPD page 80h (SCST: `usn`).
    pub serial: Text<64>,
    /// What follows the vendor in the T10 vendor ID designator of VPD page 83h (SCST:
    /// `t10_dev_id`).
    pub t10_id: Text<64>,
    /// NAA designator (SCST: `naa_id`).
    pub naa: Option<Naa>,
    /// EUI-64 designator (SCST: `eui64_id`).
    pub eui64: Option<[u8; 8]>,
    /// The vendor specific bytes 36 to 55 of INQUIRY data, filled up with zeros (SCST:
    /// `inq_vend_specific`).
    pub vendor_specific: Text<20>,
    /// VERSION DESCRIPTORs in INQUIRY; zero: no more.
    pub version_descriptors: [u16; 8],
}

/// SAM-5, SPC-4, SBC-3 and SRP, each without a claim to one revision (SPC-6, version descriptor
/// values).
const VERSION_DESCRIPTORS: [u16; 8] = [0x00A0, 0x0940, 0x0460, 0x04C0, 0, 0, 0, 0];

impl Identity {
    /// An identity with vendor, product and revision, and the serial number and device id that SCST
    /// gives a device: the `t10_dev_id`, say `5ad3c1f0-disk1`, and the `usn`, say `5ad3c1f0`.
    ///
    /// # Errors
    /// A text that is too long or has a character outside printable ASCII (SPC-6, ASCII data
    /// fields).
    pub fn new(
        vendor: &str,
        product: &str,
        revision: &str,
        serial: &str,
        t10_id: &str,
    ) -> Result<Self, InvalidUnit> {
        Ok(Self {
            vendor: Text::<8>::named("vendor", vendor)?.padded(),
            product: Text::<16>::named("product", product)?.padded(),
            revision: Text::<4>::named("revision", revision)?.padded(),
            serial: Text::named("serial number", serial)?,
            t10_id: Text::named("T10 device id", t10_id)?,
            naa: None,
            eui64: None,
            vendor_specific: Text::EMPTY,
            version_descriptors: VERSION_DESCRIPTORS,
        })
    }
}

/// A Network Address Authority name (SPC-6, NAA designator).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naa {
    /// Eight bytes: IEEE extended (2h), locally assigned (3h) or IEEE registered (5h).
    Short([u8; 8]),
    /// Sixteen bytes: IEEE registered extended (6h).
    Extended([u8; 16]),
}

impl Naa {
    /// The name in these bytes.
    ///
    /// # Errors
    /// Neither 8 bytes that begin with nibble 2, 3 or 5 nor 16 that begin with 6.
    pub fn new(name: &[u8]) -> Result<Self, InvalidUnit> {
        let authority = name.first().map(|first| first >> 4);
        if let (Ok(short), Some(2 | 3 | 5)) = (name.try_into(), authority) {
            Ok(Self::Short(short))
        } else if let (Ok(extended), Some(6)) = (name.try_into(), authority) {
            Ok(Self::Extended(extended))
        } else {
            Err(InvalidUnit::Naa)
        }
    }

    /// The bytes of the designator.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(name) => name,
            Self::Extended(name) => name,
        }
    }
}

/// Up to `N` printable ASCII characters (SPC-6, ASCII data fields).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Self = Self { bytes: [b' '; N], length: 0 };

    /// The text, unless it is longer than `N` or has a character outside 20h..=7Eh.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        Self::named("", text).ok()
    }

    fn named(field: &'static str, text: &str) -> Result<Self, InvalidUnit> {
        if !text.bytes().all(|byte| (0x20..=0x7E).contains(&byte)) {
            return Err(InvalidUnit::NotPrintable { field });
        }
        let mut bytes = [b' '; N];
        let Some(head) = bytes.get_mut(..text.len()) else {
            return Err(InvalidUnit::TooLong { field, bytes: text.len(), bytes_max: N });
        };
        head.copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length: text.len() })
    }

    /// The characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }

    /// The characters and as many spaces as fill the field.
    #[must_use]
    pub fn padded(&self) -> [u8; N] {
        self.bytes
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// Why a [`LogicalUnit`] or [`Identity`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidUnit {
    /// Not a block length.
    BlockBytes(u32),
    /// Not a capacity.
    Blocks(u64),
    /// Not an exponent.
    PhysicalBlocksExponent(u8),
    /// Not a task set type.
    Tst(u8),
    /// A text does not fit its field.
    TooLong {
        /// Which field.
        field: &'static str,
        /// What it would need.
        bytes: usize,
        /// What it has.
        bytes_max: usize,
    },
    /// A text has characters that the field may not hold.
    NotPrintable {
        /// Which field.
        field: &'static str,
    },
    /// Not a NAA name.
    Naa,
}

impl fmt::Display for InvalidUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockBytes(bytes) => {
                write!(f, "a block of {bytes} bytes: must be a power of two from 512 to 65536")
            }
            Self::Blocks(blocks) => {
                write!(f, "a capacity of {blocks} blocks: must be from 1 block to 8 EiB")
            }
            Self::PhysicalBlocksExponent(exponent) => {
                write!(
                    f,
                    "2^{exponent} logical blocks a physical block: the exponent is at most 15"
                )
            }
            Self::Tst(tst) => write!(f, "task set type {tst}: must be 0 or 1"),
            Self::TooLong { field, bytes, bytes_max } => {
                write!(f, "a {field} of {bytes} characters: there is room for {bytes_max}")
            }
            Self::NotPrintable { field } => {
                write!(f, "a {field} with characters outside printable ASCII")
            }
            Self::Naa => f.write_str(
                "a NAA name must be 8 bytes that begin with 2h, 3h or 5h, or 16 that begin with 6h",
            ),
        }
    }
}

impl core::error::Error for InvalidUnit {}
