//! Every attribute by name: what it is set on, what it may be, how it is stored and when it is written. The reader, the
//! writer and the messages about unknown names all use this one list.
//!
//! `lunar_backend`, `lunar_placement` and `lunar_request_limit` are Lunar's own; SCST does not know them. The others
//! have SCST's names and meaning.

use crate::tree::{AccessState, Device, Handler, NullPlace, Placement, Target, TargetGroup};

/// Why a value is refused, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: String,
    /// The way out.
    pub way_out: String,
}

fn refuse<T>(reason: impl Into<String>, way_out: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: reason.into(), way_out: way_out.into() })
}

/// One attribute of a `T`.
pub struct Attribute<T> {
    /// Its name.
    pub name: &'static str,
    /// What it means, for documentation and tools.
    pub meaning: &'static str,
    /// Stores a value.
    pub store: fn(&mut T, &str) -> Result<(), Refusal>,
    /// The value as text, when it is not the default (SCST's rule for what is saved).
    pub show: fn(&T) -> Option<String>,
}

/// One attribute of a device, and the handlers it exists on.
pub struct DeviceAttribute {
    /// The attribute.
    pub attribute: Attribute<Device>,
    /// The handlers.
    pub handlers: &'static [Handler],
}

const ALL: &[Handler] = &Handler::ALL;
const DISKS: &[Handler] = &[Handler::BlockIo, Handler::FileIo, Handler::NullIo];
const WITH_FILE: &[Handler] = &[Handler::BlockIo, Handler::FileIo, Handler::Cdrom];
const FILE_AND_BLOCK: &[Handler] = &[Handler::BlockIo, Handler::FileIo];
const FILE: &[Handler] = &[Handler::FileIo];
const BLOCK_AND_NULL: &[Handler] = &[Handler::BlockIo, Handler::NullIo];
const NULL: &[Handler] = &[Handler::NullIo];

macro_rules! flag {
    ($name:literal, $field:ident, $default:literal, $handlers:expr, $meaning:literal) => {
        DeviceAttribute {
            attribute: Attribute {
                name: $name,
                meaning: $meaning,
                store: |device, value| {
                    device.$field = flag(value)?;
                    Ok(())
                },
                show: |device| (device.$field != $default).then(|| flag_text(device.$field)),
            },
            handlers: $handlers,
        }
    };
}

macro_rules! text {
    ($name:literal, $field:ident, $max:expr, $meaning:literal) => {
        DeviceAttribute {
            attribute: Attribute {
                name: $name,
                meaning: $meaning,
                store: |device, value| {
                    device.identity.$field = Some(ascii(value, $max)?);
                    Ok(())
                },
                show: |device| device.identity.$field.clone(),
            },
            handlers: ALL,
        }
    };
}

/// The attributes of a `DEVICE`.
pub static DEVICE_ATTRIBUTES: &[DeviceAttribute] = &[
    DeviceAttribute {
        attribute: Attribute {
            name: "filename",
            meaning: "absolute path of the file or block device; required, but for vdisk_cdrom, which is empty without",
            store: |device, value| {
                if value.is_empty() && device.handler == Handler::Cdrom {
                    device.filename = None;
                    return Ok(());
                }
                if !value.starts_with('/') {
                    return refuse(
                        format!("filename `{value}` is not absolute"),
                        "give the path from the root, for example /var/lib/lunar/disk1.img",
                    );
                }
                device.filename = Some(value.to_owned());
                Ok(())
            },
            show: |device| device.filename.clone(),
        },
        handlers: WITH_FILE,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "blocksize",
            meaning: "logical block size in bytes: 512, 1024, 2048 or 4096; default 512",
            store: |device, value| {
                let bytes = number(value)?;
                match u32::try_from(bytes) {
                    Ok(bytes) if bytes.is_power_of_two() && (512..=4096).contains(&bytes) => {
                        device.block_bytes = bytes;
                        Ok(())
                    }
                    _ => refuse(
                        format!("blocksize {value} is not a power of two from 512 to 4096"),
                        "use 512, 1024, 2048 or 4096",
                    ),
                }
            },
            show: |device| {
                (device.block_bytes != crate::tree::BLOCK_BYTES_DEFAULT)
                    .then(|| device.block_bytes.to_string())
            },
        },
        handlers: DISKS,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "size",
            meaning: "capacity in bytes, a multiple of blocksize; default: all of the block device, 1 TiB for nullio",
            store: |device, value| {
                device.size_bytes = Some(capacity(number(value)?)?);
                Ok(())
            },
            show: |device| device.size_bytes.map(|bytes| bytes.to_string()),
        },
        handlers: BLOCK_AND_NULL,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "size_mb",
            meaning: "capacity in MiB; the same as size",
            store: |device, value| {
                let bytes = number(value)?.saturating_mul(1 << 20);
                device.size_bytes = Some(capacity(bytes)?);
                Ok(())
            },
            // Never saved: `size` says the same, exactly.
            show: |_| None,
        },
        handlers: BLOCK_AND_NULL,
    },
    flag!("read_only", read_only, false, DISKS, "1: writes are refused; default 0"),
    flag!(
        "nv_cache",
        nv_cache,
        false,
        FILE_AND_BLOCK,
        "1: the cache survives power loss, so flushes and FUA do nothing; default 0"
    ),
    flag!(
        "write_through",
        write_through,
        false,
        FILE_AND_BLOCK,
        "1: a write ends when it is on the medium; default 0"
    ),
    flag!("o_direct", o_direct, false, FILE, "1: pass the page cache by; default 0"),
    flag!("rotational", rotational, true, DISKS, "0: the device says it is solid state; default 1"),
    flag!(
        "thin_provisioned",
        thin_provisioned,
        false,
        FILE_AND_BLOCK,
        "1: unmapped blocks take no room (UNMAP, WRITE SAME with UNMAP); the backing must be able to; default 0"
    ),
    flag!(
        "read_zero",
        read_zero,
        false,
        NULL,
        "1: reads give zeroes instead of anything, with lunar_backend host; default 0"
    ),
    flag!(
        "dummy",
        dummy,
        false,
        NULL,
        "1: no device, only an INQUIRY that says so, for a LUN 0 that nobody is to use; default 0"
    ),
    flag!(
        "removable",
        removable,
        false,
        DISKS,
        "1: the medium is removable, and initiators can eject and load it if the device is on the host; default 0"
    ),
    DeviceAttribute {
        attribute: Attribute {
            name: "opt_trans_len",
            meaning: "optimal transfer length in bytes, a multiple of blocksize; default 524288",
            store: |device, value| match u32::try_from(number(value)?) {
                Ok(bytes) if bytes > 0 => {
                    device.optimal_transfer_bytes = Some(bytes);
                    Ok(())
                }
                _ => refuse(
                    format!("opt_trans_len {value} is not between 1 and 4294967295"),
                    "use for example 524288",
                ),
            },
            show: |device| device.optimal_transfer_bytes.map(|bytes| bytes.to_string()),
        },
        handlers: DISKS,
    },
    flag!(
        "lb_per_pb_exp",
        physical_block_exponent,
        true,
        FILE_AND_BLOCK,
        "1: the device tells of 4 KiB physical blocks; default 1"
    ),
    flag!(
        "expl_alua",
        explicit_alua,
        false,
        FILE_AND_BLOCK,
        "1: initiators may change the states of its device group's target groups; default 0"
    ),
    flag!(
        "tst",
        separate_task_sets,
        true,
        ALL,
        "task set type: 1, a task set for each initiator; 0, one for all of them; default 1"
    ),
    text!("t10_vend_id", t10_vend_id, 8, "T10 vendor identification, 8 characters; default LUNAR"),
    text!("prod_id", prod_id, 16, "product identification, 16 characters; default the name"),
    text!("prod_rev_lvl", prod_rev_lvl, 4, "product revision level, 4 characters"),
    text!(
        "inq_vend_specific",
        inq_vend_specific,
        20,
        "vendor specific text in INQUIRY data from byte 36 on, 20 characters; default none"
    ),
    text!("usn", usn, 20, "unit serial number, 20 characters; default made from the name"),
    text!(
        "t10_dev_id",
        t10_dev_id,
        crate::tree::T10_ID_CHARACTERS_MAX,
        "vendor specific part of the T10 designator; default serial number, -, name"
    ),
    DeviceAttribute {
        attribute: Attribute {
            name: "naa_id",
            meaning: "NAA designator in hexadecimal: 8 bytes that begin with 2, 3 or 5, or 16 that begin with 6",
            store: |device, value| {
                let bytes = hexadecimal(value)?;
                let nibble = bytes.first().map_or(0, |byte| byte >> 4);
                match (bytes.len(), nibble) {
                    (8, 2 | 3 | 5) | (16, 6) => {
                        device.identity.naa_id = Some(bytes);
                        Ok(())
                    }
                    _ => refuse(
                        format!("naa_id `{value}` is no NAA designator (SPC-6 7.7.6.6)"),
                        "use 16 hexadecimal digits that begin with 2, 3 or 5, or 32 that begin with 6",
                    ),
                }
            },
            show: |device| device.identity.naa_id.as_deref().map(hexadecimal_text),
        },
        handlers: ALL,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "eui64_id",
            meaning: "EUI-64 designator: 8 bytes in hexadecimal",
            store: |device, value| {
                let bytes = hexadecimal(value)?;
                match <[u8; 8]>::try_from(bytes.as_slice()) {
                    Ok(bytes) => {
                        device.identity.eui64_id = Some(bytes);
                        Ok(())
                    }
                    Err(_) => refuse(
                        format!("eui64_id `{value}` has {} bytes instead of 8", bytes.len()),
                        "use 16 hexadecimal digits",
                    ),
                }
            },
            show: |device| device.identity.eui64_id.map(|bytes| hexadecimal_text(&bytes)),
        },
        handlers: ALL,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "pr_file_name",
            meaning: "file that persistent reservations are kept in, absolute; default the name in the agent's --pr-dir",
            store: |device, value| {
                if !value.starts_with('/') || value.ends_with('/') {
                    return refuse(
                        format!("pr_file_name `{value}` is not an absolute path of a file"),
                        "give the path from the root, or leave the attribute out",
                    );
                }
                device.pr_file_name = Some(value.to_owned());
                Ok(())
            },
            show: |device| device.pr_file_name.clone(),
        },
        handlers: ALL,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "lunar_backend",
            meaning: "Lunar's own: card (default): the device is on the card; host: on the host, through the ring",
            store: |device, value| {
                device.null_place = match value {
                    "card" => NullPlace::Card,
                    "host" => NullPlace::Host,
                    _ => {
                        return refuse(
                            format!("lunar_backend `{value}` is not card or host"),
                            "use card (on the card) or host (on the host, through the ring)",
                        );
                    }
                };
                Ok(())
            },
            show: |device| (device.null_place == NullPlace::Host).then(|| "host".to_owned()),
        },
        handlers: NULL,
    },
    DeviceAttribute {
        attribute: Attribute {
            name: "lunar_placement",
            meaning: "Lunar's own: which memory data goes through: host_dram (default of what is on the host) or card_dram",
            store: |device, value| {
                device.placement_override = Some(match value {
                    "host_dram" => Placement::HostDram,
                    "card_dram" => Placement::CardDram,
                    _ => {
                        return refuse(
                            format!("lunar_placement `{value}` is not host_dram or card_dram"),
                            "use host_dram (nothing is copied) or card_dram (copied by the card's DMA)",
                        );
                    }
                });
                Ok(())
            },
            show: |device| {
                device.placement_override.map(|placement| {
                    match placement {
                        Placement::HostDram => "host_dram",
                        Placement::CardDram => "card_dram",
                    }
                    .to_owned()
                })
            },
        },
        handlers: ALL,
    },
];

/// The attributes of a `TARGET`.
pub static TARGET_ATTRIBUTES: &[Attribute<Target>] = &[
    Attribute {
        name: "enabled",
        meaning: "1: logins are accepted; default 0",
        store: |target, value| {
            target.enabled = flag(value)?;
            Ok(())
        },
        show: |target| target.enabled.then(|| flag_text(true)),
    },
    Attribute {
        name: "rel_tgt_id",
        meaning: "relative target port identifier, 1 to 65535; default the smallest free one",
        store: |target, value| match u16::try_from(number(value)?) {
            Ok(0) => {
                target.relative_target_port = None;
                Ok(())
            }
            Ok(id) => {
                target.relative_target_port = Some(id);
                Ok(())
            }
            Err(_) => refuse(
                format!("rel_tgt_id {value} is greater than 65535"),
                "use 1 to 65535, or leave it out for the smallest free one",
            ),
        },
        show: |target| target.relative_target_port.map(|id| id.to_string()),
    },
    Attribute {
        name: "lunar_request_limit",
        meaning: "Lunar's own: commands a channel may have under way, 2 to 4096; default 128",
        store: |target, value| match u32::try_from(number(value)?) {
            Ok(limit @ 2..=4096) => {
                target.request_limit = limit;
                Ok(())
            }
            _ => refuse(
                format!("lunar_request_limit {value} is not between 2 and 4096"),
                "use for example 128, which is the default",
            ),
        },
        show: |target| {
            (target.request_limit != crate::tree::REQUEST_LIMIT_DEFAULT)
                .then(|| target.request_limit.to_string())
        },
    },
];

/// The attributes of a `TARGET_GROUP`. All of them are written, but for `preferred 0`.
pub static TARGET_GROUP_ATTRIBUTES: &[Attribute<TargetGroup>] = &[
    Attribute {
        name: "group_id",
        meaning: "target port group identifier, 1 to 65535, each once in its device group; required",
        store: |group, value| match u16::try_from(number(value)?) {
            Ok(id @ 1..) => {
                group.id = id;
                Ok(())
            }
            _ => refuse(format!("group_id {value} is not between 1 and 65535"), "use 1 to 65535"),
        },
        show: |group| Some(group.id.to_string()),
    },
    Attribute {
        name: "state",
        meaning: "the state that its targets begin with: active (default), nonoptimized, standby, unavailable, \
                  lba-dependent, offline or transitioning",
        store: |group, value| match AccessState::from_name(value) {
            Some(state) => {
                group.state = state;
                Ok(())
            }
            None => refuse(
                format!("state `{value}` is not known"),
                format!("known: {}", AccessState::names()),
            ),
        },
        show: |group| Some(group.state.name().to_owned()),
    },
    Attribute {
        name: "preferred",
        meaning: "1: the primary way to the devices; default 0",
        store: |group, value| {
            group.preferred = flag(value)?;
            Ok(())
        },
        show: |group| group.preferred.then(|| flag_text(true)),
    },
];

/// Names of the attributes of a target group, for messages.
pub fn target_group_attribute_names() -> String {
    let names: Vec<_> = TARGET_GROUP_ATTRIBUTES.iter().map(|known| known.name).collect();
    names.join(", ")
}

/// Names of the attributes that a device of `handler` has, for messages.
pub fn device_attribute_names(handler: Handler) -> String {
    let names: Vec<_> = DEVICE_ATTRIBUTES
        .iter()
        .filter(|known| known.handlers.contains(&handler))
        .map(|known| known.attribute.name)
        .collect();
    names.join(", ")
}

/// Names of the attributes of a target, for messages.
pub fn target_attribute_names() -> String {
    let names: Vec<_> = TARGET_ATTRIBUTES.iter().map(|known| known.name).collect();
    names.join(", ")
}

/// `0` or `1`.
pub(crate) fn flag(value: &str) -> Result<bool, Refusal> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => refuse(format!("`{value}` is not 0 or 1"), "use 1 for yes, 0 for no"),
    }
}

fn flag_text(value: bool) -> String {
    if value { "1" } else { "0" }.to_owned()
}

/// A number, decimal or hexadecimal with `0x`.
pub(crate) fn number(value: &str) -> Result<u64, Refusal> {
    let digits = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    let parsed = match digits {
        // from_str_radix and parse take a sign; a configuration does not.
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if !value.starts_with('+') => value.parse().ok(),
        _ => None,
    };
    match parsed {
        Some(number) => Ok(number),
        None => refuse(
            format!("`{value}` is not a number from 0 to {}", u64::MAX),
            "use decimal digits, or hexadecimal ones after 0x",
        ),
    }
}

/// SBC-4: LBAs are 64 bits, and a byte offset has to fit the file offset of the operating system.
fn capacity(bytes: u64) -> Result<u64, Refusal> {
    if bytes == 0 || i64::try_from(bytes).is_err() {
        return refuse(
            format!("a capacity of {bytes} bytes is not possible"),
            "use at least one block and less than 8 EiB",
        );
    }
    Ok(bytes)
}

fn ascii(value: &str, characters_max: usize) -> Result<String, Refusal> {
    if value.is_empty() || value.len() > characters_max {
        return refuse(
            format!("`{value}` has {} characters", value.chars().count()),
            format!("use 1 to {characters_max} characters"),
        );
    }
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return refuse(
            format!("`{value}` has characters that SCSI text fields cannot hold (SPC-6 4.3.1)"),
            "use ASCII letters, digits, punctuation and blanks",
        );
    }
    Ok(value.to_owned())
}

fn hexadecimal(value: &str) -> Result<Vec<u8>, Refusal> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            let all_digits = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            if all_digits { u8::from_str_radix(pair, 16).ok() } else { None }
        })
        .collect();
    match bytes {
        Some(bytes) => Ok(bytes),
        None => refuse(
            format!("`{value}` is not an even count of hexadecimal digits"),
            "use two digits a byte, with or without 0x in front",
        ),
    }
}

fn hexadecimal_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
