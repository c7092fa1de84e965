//! The management tree: devices, target drivers, targets, groups, LUNs. Plain data; a value of these types that came
//! from [`crate::read`] is valid. What a user did not say is the default here, in one place.

use std::collections::{BTreeMap, BTreeSet};

pub use lunar_offload_proto::alua::AccessState;

/// Greatest LUN of the flat space addressing method (SAM-6 4.7: 14 bits).
pub const LUN_MAX: u16 = 16383;

/// Block size when `blocksize` is not given, as in SCST, in bytes.
pub const BLOCK_BYTES_DEFAULT: u32 = 512;

/// Block size of every CD/DVD device, in bytes.
pub const CDROM_BLOCK_BYTES: u32 = 2048;

/// Capacity of a vdisk_nullio device without `size` and `size_mb`: 1 TiB.
pub const NULLIO_BYTES_DEFAULT: u64 = 1 << 40;

/// The initial request limit of a channel when `lunar_request_limit` is not given. Linux takes it as its queue depth.
pub const REQUEST_LIMIT_DEFAULT: u32 = 128;

/// Everything that is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// SCST's `setup_id`: goes into generated serial numbers, so that two hosts with equal device names differ.
    pub setup_id: u32,
    /// Devices by name. Names are unique over all handlers.
    pub devices: BTreeMap<String, Device>,
    /// Targets by driver and name.
    pub drivers: BTreeMap<Driver, BTreeMap<String, Target>>,
    /// Device groups by name. A device is in at most one.
    pub device_groups: BTreeMap<String, DeviceGroup>,
}

/// Target groups of a device group, and targets of a target group, at most.
pub const TARGET_GROUPS_MAX: usize = lunar_offload_proto::checked::PORT_GROUPS_MAX;

/// Devices that are reached through the same target groups, in the same states (ALUA).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGroup {
    /// Names of its devices.
    pub devices: BTreeSet<String>,
    /// Its target groups by name.
    pub target_groups: BTreeMap<String, TargetGroup>,
}

/// Targets through which the devices of a device group are reached in the same state (SPC-6: target port group).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetGroup {
    /// TARGET PORT GROUP, 1..=65535, each once in its device group.
    pub id: u16,
    /// The state that it begins with.
    pub state: AccessState,
    /// PREF: the primary way to the devices.
    pub preferred: bool,
    /// Its targets by name, each in one target group of the device group. One of this host with `None`; one of another
    /// node with its relative target port identifier.
    pub targets: BTreeMap<String, Option<u16>>,
}

/// The device handlers that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Handler {
    /// A file, through the page cache or with O_DIRECT.
    FileIo,
    /// A block device, with O_DIRECT.
    BlockIo,
    /// No medium: writes vanish, reads give whatever the buffer held.
    NullIo,
    /// A file as the disc of a CD/DVD drive, or no disc.
    Cdrom,
}

impl Handler {
    /// All of them, in the order they are written.
    pub const ALL: [Self; 4] = [Self::BlockIo, Self::FileIo, Self::NullIo, Self::Cdrom];

    /// The name in `scst.conf`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileIo => "vdisk_fileio",
            Self::BlockIo => "vdisk_blockio",
            Self::NullIo => "vdisk_nullio",
            Self::Cdrom => "vdisk_cdrom",
        }
    }

    /// The handler of a name; `vcdrom` is what SCST calls vdisk_cdrom.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "vcdrom" => Some(Self::Cdrom),
            _ => Self::ALL.into_iter().find(|handler| handler.name() == name),
        }
    }

    /// Whether it has a medium behind a path.
    pub const fn has_file(self) -> bool {
        matches!(self, Self::FileIo | Self::BlockIo | Self::Cdrom)
    }
}

/// The target drivers that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    /// SRP over RDMA, by the name SCST gives it.
    IbSrpt,
}

impl Driver {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::IbSrpt];

    /// The name in `scst.conf`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IbSrpt => "ib_srpt",
        }
    }

    /// The driver of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| driver.name() == name)
    }
}

/// Where a vdisk_nullio device lives (`lunar_backend`, Lunar's own attribute).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NullPlace {
    /// On the card: a command never crosses to the host.
    #[default]
    Card,
    /// On the host, through the ring: what a command costs on the way.
    Host,
}

/// Which memory a device's data goes through (`lunar_placement`, Lunar's own attribute).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Host memory, which the card's HCA reads and writes directly.
    HostDram,
    /// The card's own memory, copied to the host by DMA where the device is there.
    CardDram,
}

/// One device of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its handler.
    pub handler: Handler,
    /// Path of the medium, absolute; `Some` exactly for handlers with a file, but that a CD/DVD drive may be
    /// without a disc.
    pub filename: Option<String>,
    /// Logical block size in bytes: a power of two, 512..=4096.
    pub block_bytes: u32,
    /// Capacity in bytes of a nullio device, or that is used of a block device; a multiple of the block size. `None` is
    /// the default capacity, or all of it.
    pub size_bytes: Option<u64>,
    /// Writes are refused with WRITE PROTECTED.
    pub read_only: bool,
    /// The medium's cache survives power loss: SYNCHRONIZE CACHE and FUA do nothing.
    pub nv_cache: bool,
    /// Every write reaches the medium before GOOD.
    pub write_through: bool,
    /// The page cache is passed by.
    pub o_direct: bool,
    /// The MEDIUM ROTATION RATE in VPD page B1h says a spinning disk.
    pub rotational: bool,
    /// UNMAP is offered (VPD page B2h).
    pub thin_provisioned: bool,
    /// TST of the Control mode page: each I_T nexus has a task set of its own.
    pub separate_task_sets: bool,
    /// Reads of a nullio device on the host give zeroes.
    pub read_zero: bool,
    /// A nullio device that is none: INQUIRY says that no device is connected.
    pub dummy: bool,
    /// RMB in INQUIRY.
    pub removable: bool,
    /// Optimal transfer length in bytes (VPD page B0h), a multiple of the block size.
    pub optimal_transfer_bytes: Option<u32>,
    /// 1: the physical block exponent tells of 4 KiB physical blocks under smaller logical ones (`lb_per_pb_exp`).
    pub physical_block_exponent: bool,
    /// Initiators may change the states of its device group's target groups (`expl_alua`).
    pub explicit_alua: bool,
    /// Where its persistent reservations are kept, absolute; `None`: in the agent's directory for them.
    pub pr_file_name: Option<String>,
    /// What the device says it is, as far as the user said so.
    pub identity: IdentityOverrides,
    /// Where a nullio device lives.
    pub null_place: NullPlace,
    /// Which memory data goes through; `None` is [`Device::placement`]'s choice.
    pub placement_override: Option<Placement>,
}

/// Identity as the user set it; what is `None` is generated, see [`Device::identity`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityOverrides {
    /// T10 VENDOR IDENTIFICATION, at most 8 characters.
    pub t10_vend_id: Option<String>,
    /// PRODUCT IDENTIFICATION, at most 16 characters.
    pub prod_id: Option<String>,
    /// PRODUCT REVISION LEVEL, at most 4 characters.
    pub prod_rev_lvl: Option<String>,
    /// Unit serial number (VPD page 80h), at most 20 characters.
    pub usn: Option<String>,
    /// Vendor specific part of the T10 designator (VPD page 83h), at most 64 characters.
    pub t10_dev_id: Option<String>,
    /// NAA designator: 8 bytes with the first nibble 2, 3 or 5, or 16 bytes with the first nibble 6.
    pub naa_id: Option<Vec<u8>>,
    /// EUI-64 designator: 8 bytes.
    pub eui64_id: Option<[u8; 8]>,
    /// Vendor specific text in INQUIRY data, at most 20 characters.
    pub inq_vend_specific: Option<String>,
}

/// What a device says it is, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL.
    pub revision: String,
    /// Unit serial number.
    pub serial: String,
    /// Vendor specific part of the T10 designator.
    pub t10_id: String,
    /// NAA designator, empty without one.
    pub naa: Vec<u8>,
    /// EUI-64 designator.
    pub eui64: Option<[u8; 8]>,
    /// Vendor specific text in INQUIRY data, empty without one.
    pub vendor_specific: String,
}

impl Device {
    /// A device of `handler` with nothing set. A handler with a file still needs its `filename`.
    pub fn new(handler: Handler) -> Self {
        let is_cdrom = handler == Handler::Cdrom;
        Self {
            handler,
            filename: None,
            block_bytes: if is_cdrom { CDROM_BLOCK_BYTES } else { BLOCK_BYTES_DEFAULT },
            size_bytes: None,
            read_only: is_cdrom,
            nv_cache: false,
            write_through: false,
            o_direct: false,
            rotational: true,
            thin_provisioned: false,
            separate_task_sets: true,
            read_zero: false,
            dummy: false,
            removable: is_cdrom,
            optimal_transfer_bytes: None,
            physical_block_exponent: !is_cdrom,
            explicit_alua: false,
            pr_file_name: None,
            identity: IdentityOverrides::default(),
            null_place: NullPlace::default(),
            placement_override: None,
        }
    }

    /// Whether its commands cross to the host.
    pub fn on_host(&self) -> bool {
        self.handler.has_file() || (self.null_place == NullPlace::Host && !self.dummy)
    }

    /// Which memory its data goes through: what the user said, else host memory for what is executed on the host
    /// (nothing is copied then) and the card's for what is executed on the card.
    pub fn placement(&self) -> Placement {
        self.placement_override.unwrap_or(if self.on_host() {
            Placement::HostDram
        } else {
            Placement::CardDram
        })
    }

    /// The capacity of a nullio device in blocks. The capacity of the others is their medium's, which only its handler
    /// knows.
    pub fn nullio_blocks(&self) -> u64 {
        let bytes = self.size_bytes.unwrap_or(NULLIO_BYTES_DEFAULT);
        bytes.checked_div(u64::from(self.block_bytes)).unwrap_or(0)
    }

    /// The complete identity of the device called `name`. What the user did not set is generated from the name and
    /// `setup_id`, so that it is the same after every restart: serial = CRC-32 of the name, exclusive-or `setup_id`, in
    /// eight hexadecimal digits; T10 designator = serial, `-`, name; product = name. A device with neither NAA nor
    /// EUI-64 designator of its own gets a locally assigned NAA (SPC-6 7.7.6.6.4) from the T10 designator: that one
    /// has up to 72 characters, and a copy target (SPC-6 6.6.5.2) is named with at most 20.
    pub fn identity(&self, name: &str, setup_id: u32) -> Identity {
        let own = &self.identity;
        let serial =
            own.usn.clone().unwrap_or_else(|| format!("{:08x}", crc32(name.as_bytes()) ^ setup_id));
        let t10_id = own
            .t10_dev_id
            .clone()
            .unwrap_or_else(|| printable(&format!("{serial}-{name}"), T10_ID_CHARACTERS_MAX));
        let naa = match (&own.naa_id, own.eui64_id) {
            (Some(naa), _) => naa.clone(),
            (None, Some(_)) => Vec::new(),
            (None, None) => locally_assigned_naa(&t10_id).to_vec(),
        };
        Identity {
            vendor: own.t10_vend_id.clone().unwrap_or_else(|| "LUNAR".to_owned()),
            product: own.prod_id.clone().unwrap_or_else(|| printable(name, 16)),
            revision: own.prod_rev_lvl.clone().unwrap_or_else(|| "0001".to_owned()),
            t10_id,
            naa,
            eui64: own.eui64_id,
            vendor_specific: own.inq_vend_specific.clone().unwrap_or_default(),
            serial,
        }
    }
}

/// Characters of a T10 designator's vendor specific part.
pub const T10_ID_CHARACTERS_MAX: usize = 64;

/// SPC-6 4.3.1: ASCII data fields hold 20h to 7Eh. Other characters become `_`.
fn printable(text: &str, characters_max: usize) -> String {
    text.chars()
        .take(characters_max)
        .map(|character| if matches!(character, ' '..='~') { character } else { '_' })
        .collect()
}

/// One LUN of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Name of the device.
    pub device: String,
    /// Writes through this LUN are refused, whatever the device says.
    pub read_only: bool,
}

/// LUNs by number, 0..=[`LUN_MAX`].
pub type Luns = BTreeMap<u16, Lun>;

/// One initiator group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Patterns of initiator names (`*`, `?`, leading `!`), in the order given. A pattern is in one group of a target.
    pub initiators: Vec<String>,
    /// What its initiators see.
    pub luns: Luns,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Logins are accepted.
    pub enabled: bool,
    /// A hardware port (`HW_TARGET`): not made by the configuration and not removed by it.
    pub hardware: bool,
    /// Relative target port identifier, 1..=65535; `None`: the smallest free one.
    pub relative_target_port: Option<u16>,
    /// The initial request limit of a channel (`lunar_request_limit`, Lunar's own attribute).
    pub request_limit: u32,
    /// What initiators of no group see.
    pub luns: Luns,
    /// Initiator groups by name; the first one by name with a matching pattern wins.
    pub groups: BTreeMap<String, Group>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            enabled: false,
            hardware: false,
            relative_target_port: None,
            request_limit: REQUEST_LIMIT_DEFAULT,
            luns: Luns::new(),
            groups: BTreeMap::new(),
        }
    }
}

/// The SRP target port identifier of the target called `name`: its GUID twice, as ib_srpt's initiators expect it
/// (`id_ext` = `ioc_guid`). The GUID is the lower half of a name in the form of a port GID (eight groups of four
/// hexadecimal digits), the whole of one in the form of a port GUID (four groups), and for any other name a hash of it
/// with the locally administered bit set, the same at every start.
pub fn srp_port_id(name: &str) -> [u8; 16] {
    let guid = guid_of_name(name).to_be_bytes();
    let mut id = [0; 16];
    for (place, byte) in id.iter_mut().zip(guid.iter().chain(guid.iter())) {
        *place = *byte;
    }
    id
}

fn guid_of_name(name: &str) -> u64 {
    let groups: Vec<&str> = name.split(':').collect();
    let is_group =
        |group: &&str| group.len() == 4 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
    if matches!(groups.len(), 4 | 8) && groups.iter().all(is_group) {
        let digits: String = groups.iter().rev().take(4).rev().copied().collect();
        if let Ok(guid) = u64::from_str_radix(&digits, 16) {
            return guid;
        }
    }
    // Bit 57 of an EUI-64 is "locally administered".
    fnv1a(name) | 1 << 57
}

/// SPC-6 7.7.6.6.4, NAA Locally Assigned: 60 bits that nobody gave out, here a hash of `t10_id`, the same at every
/// start.
fn locally_assigned_naa(t10_id: &str) -> [u8; 8] {
    const LOCALLY_ASSIGNED: u64 = 3;
    (LOCALLY_ASSIGNED << 60 | fnv1a(t10_id) >> 4).to_be_bytes()
}

/// FNV-1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// CRC-32 (IEEE 802.3), bitwise: it runs once a device and configuration.
pub fn crc32(bytes: &[u8]) -> u32 {
    let remainder = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    });
    !remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_gives_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn srp_port_id_is_the_guid_of_a_gid_twice() {
        let id = srp_port_id("fe80:0000:0000:0000:0002:c903:0005:f34b");
        assert_eq!(id, *b"\x00\x02\xc9\x03\x00\x05\xf3\x4b\x00\x02\xc9\x03\x00\x05\xf3\x4b");
        assert_eq!(srp_port_id("0002:c903:0005:f34b"), id);
        let other = srp_port_id("ib_srpt_target_0");
        assert_eq!(other[..8], other[8..]);
        assert_eq!(other[0] & 2, 2, "locally administered");
        assert_ne!(other, srp_port_id("ib_srpt_target_1"));
    }

    #[test]
    fn generated_identity_is_stable_and_differs_by_name_and_setup() {
        let device = Device::new(Handler::NullIo);
        let one = device.identity("disk1", 0);
        assert_eq!(one, device.identity("disk1", 0));
        assert_eq!(one.serial, format!("{:08x}", crc32(b"disk1")));
        assert_eq!(one.t10_id, format!("{}-disk1", one.serial));
        assert_ne!(one.serial, device.identity("disk2", 0).serial);
        assert_ne!(one.serial, device.identity("disk1", 7).serial);
        assert_eq!(device.identity("größe", 0).product, "gr__e");
    }

    /// SPC-6 6.6.5.2: a copy target is named with at most 20 bytes, and VPD page 83h has to offer such a name.
    #[test]
    fn a_device_has_a_designator_that_a_copy_target_holds() {
        let mut device = Device::new(Handler::NullIo);
        let one = device.identity("disk1", 0);
        assert_eq!((one.naa.len(), one.naa.first().map(|byte| byte >> 4)), (8, Some(3)));
        assert_eq!(one.naa, device.identity("disk1", 0).naa);
        assert_ne!(one.naa, device.identity("disk2", 0).naa);
        assert_ne!(one.naa, device.identity("disk1", 7).naa, "of another setup");
        device.identity.eui64_id = Some([2; 8]);
        assert!(device.identity("disk1", 0).naa.is_empty(), "what the user gave is enough");
        device.identity.naa_id = Some(vec![0x53; 8]);
        assert_eq!(device.identity("disk1", 0).naa, [0x53; 8]);
    }
}
