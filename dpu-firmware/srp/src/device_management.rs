//! Device management: what an InfiniBand port answers when `srp_daemon` asks which SRP targets it has
//! (IBTA volume 1, chapter 16.3; SRP annex B).
//!
//! Pure functions from a MAD to its answer. Who receives MADs and sends them is not here, nor who
//! tells the subnet manager that the port has an answer to give (capability bit IsDeviceManagement).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of every MAD.
pub const MAD_BYTES: usize = 256;
/// Controllers that can be told: the slots of IOUnitInfo's list that one port uses here.
pub const CONTROLLERS_MAX: usize = 16;

/// Management class Device Management.
const CLASS: u8 = 0x06;
/// Base version and class version.
const VERSION: u8 = 1;
/// Entries of a ServiceEntries attribute.
const ENTRIES: usize = 4;

mod method {
    pub const GET: u8 = 0x01;
    pub const SET: u8 = 0x02;
    pub const GET_RESPONSE: u8 = 0x81;
    /// Set in the method of every response.
    pub const RESPONSE: u8 = 0x80;
}

mod attribute {
    pub const CLASS_PORT_INFO: u16 = 0x0001;
    pub const IO_UNIT_INFO: u16 = 0x0010;
    pub const IO_CONTROLLER_PROFILE: u16 = 0x0011;
    pub const SERVICE_ENTRIES: u16 = 0x0012;
}

/// The status of an answer, as in a MAD's header.
mod status {
    pub const GOOD: u16 = 0;
    pub const METHOD_NOT_SUPPORTED: u16 = 0x0008;
    pub const METHOD_ATTRIBUTE_NOT_SUPPORTED: u16 = 0x000c;
    pub const INVALID_FIELD: u16 = 0x001c;
    pub const NO_CONTROLLER: u16 = 0x0100;
}

/// A target, as an I/O controller of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller<'a> {
    /// The target port's `ioc_guid`: the low half of its SRP port identifier.
    pub guid: u64,
    /// Its `id_ext`: the high half. `srp_daemon` finds it in the name of the service.
    pub identifier_extension: u64,
    /// The service ID that its logins go to.
    pub service_id: u64,
    /// Vendor's OUI, 24 bits.
    pub vendor: u32,
    /// Device ID and version of the HCA.
    pub device: (u32, u16),
    /// Depth of a channel's send queue.
    pub send_queue_depth: u16,
    /// RDMA READs outstanding on a channel.
    pub rdma_read_depth: u8,
    /// Longest IU an initiator may send, in bytes (`srp_max_req_size`).
    pub it_iu_bytes_max: u32,
    /// Longest RDMA transfer, in bytes.
    pub rdma_bytes_max: u32,
    /// Words for people; cut after 64 bytes.
    pub name: &'a str,
}

/// A MAD. Everything between header and data is reserved in this class.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Mad {
    base_version: u8,
    class: u8,
    class_version: u8,
    method: u8,
    status: U16,
    class_specific: U16,
    transaction: U64,
    attribute: U16,
    reserved_18: [u8; 2],
    modifier: U32,
    reserved_24: [u8; 40],
    data: [u8; 192],
}
const _: () = assert!(size_of::<Mad>() == MAD_BYTES);

#[derive(Default, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct ClassPortInfo {
    base_version: u8,
    class_version: u8,
    capabilities: U16,
    /// The low five bits say how long an answer takes: 4.096 us << 20, some 4 s.
    response_time: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct IoUnitInfo {
    change: U16,
    controllers_max: u8,
    flags: u8,
    /// A nibble for each slot, the first in the high one.
    controllers: [u8; 128],
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct IoControllerProfile {
    guid: U64,
    vendor: U32,
    device: U32,
    device_version: U16,
    reserved_18: [u8; 2],
    subsystem_vendor: U32,
    subsystem_device: U32,
    io_class: U16,
    io_subclass: U16,
    protocol: U16,
    protocol_version: U16,
    service_connections: U16,
    initiators: U16,
    send_queue_depth: U16,
    reserved_42: u8,
    rdma_read_depth: u8,
    send_bytes: U32,
    rdma_bytes: U32,
    operations: u8,
    services: u8,
    service_entries: u8,
    reserved_55: [u8; 9],
    identifier: [u8; 64],
}
const _: () = assert!(size_of::<IoControllerProfile>() == 128);

/// IO class of SRP (SRP annex B); an I/O class of FF00h says that the target follows revision 10.
const IO_CLASS: u16 = 0x0100;
/// IO subclass: T10.
const IO_SUBCLASS: u16 = 0x609e;
/// Protocol: SRP.
const PROTOCOL: u16 = 0x0108;
/// SENDs to and from it, RDMA READs and WRITEs from it.
const OPERATIONS: u8 = 0x01 | 0x02 | 0x08 | 0x20;

/// Answers the MAD in `request` for a port whose targets are `controllers`, of which the first
/// [`CONTROLLERS_MAX`] are told. `None` for what is answered by silence: bytes that are no request of
/// this class.
#[must_use]
pub fn answer(request: &[u8], controllers: &[Controller<'_>]) -> Option<[u8; MAD_BYTES]> {
    let request = Mad::ref_from_bytes(request).ok()?;
    if request.base_version != VERSION
        || request.class != CLASS
        || request.method & method::RESPONSE != 0
    {
        return None;
    }
    let controllers = controllers.get(..CONTROLLERS_MAX).unwrap_or(controllers);
    let mut data = [0; 192];
    let (attribute, modifier) = (request.attribute.get(), request.modifier.get());
    let status = match (request.class_version, request.method) {
        (VERSION, method::GET) => fill(attribute, modifier, controllers, &mut data),
        (VERSION, method::SET) => status::METHOD_ATTRIBUTE_NOT_SUPPORTED,
        _ => status::METHOD_NOT_SUPPORTED,
    };
    let answer = Mad {
        method: method::GET_RESPONSE,
        status: status.into(),
        reserved_18: [0; 2],
        reserved_24: [0; 40],
        data,
        ..*request
    };
    Some(zerocopy::transmute!(answer))
}

/// Writes an attribute and gives the status.
fn fill(
    attribute: u16,
    modifier: u32,
    controllers: &[Controller<'_>],
    data: &mut [u8; 192],
) -> u16 {
    match attribute {
        attribute::CLASS_PORT_INFO => {
            let port = ClassPortInfo {
                base_version: VERSION,
                class_version: VERSION,
                response_time: 20.into(),
                ..ClassPortInfo::default()
            };
            put(&port, data)
        }
        attribute::IO_UNIT_INFO => put(&unit(controllers), data),
        attribute::IO_CONTROLLER_PROFILE => match controller(controllers, modifier) {
            Ok(controller) => put(&profile(controller), data),
            Err(status) => status,
        },
        attribute::SERVICE_ENTRIES => {
            // The slot, the last and the first entry wanted. Each controller has one entry.
            let [_, slot, last, first] = modifier.to_be_bytes();
            match controller(controllers, u32::from(slot)) {
                Ok(_) if first > last || usize::from(last) >= ENTRIES => status::INVALID_FIELD,
                Ok(controller) if first == 0 => put(&service(controller), data),
                Ok(_) => status::INVALID_FIELD,
                Err(status) => status,
            }
        }
        _ => status::METHOD_ATTRIBUTE_NOT_SUPPORTED,
    }
}

fn put<T: IntoBytes + Immutable>(value: &T, data: &mut [u8; 192]) -> u16 {
    // Every attribute is shorter than a MAD's data.
    let _ = value.write_to_prefix(data);
    status::GOOD
}

/// The controller in `slot`, which counts from 1.
fn controller<'a, 'n>(
    controllers: &'a [Controller<'n>],
    slot: u32,
) -> Result<&'a Controller<'n>, u16> {
    let place = usize::try_from(slot).ok().and_then(|slot| slot.checked_sub(1));
    match place {
        Some(place) if place < CONTROLLERS_MAX => {
            controllers.get(place).ok_or(status::NO_CONTROLLER)
        }
        _ => Err(status::INVALID_FIELD),
    }
}

fn unit(controllers: &[Controller<'_>]) -> IoUnitInfo {
    let mut list = [0; 128];
    for (place, pair) in list.iter_mut().zip(controllers.chunks(2)) {
        *place = if pair.len() == 2 { 0x11 } else { 0x10 };
    }
    IoUnitInfo {
        change: 1.into(),
        controllers_max: CONTROLLERS_MAX as u8,
        flags: 0,
        controllers: list,
    }
}

fn profile(controller: &Controller<'_>) -> IoControllerProfile {
    let mut identifier = [0; 64];
    for (to, from) in identifier.iter_mut().zip(controller.name.bytes()) {
        *to = from;
    }
    let (device, device_version) = controller.device;
    IoControllerProfile {
        guid: controller.guid.into(),
        vendor: controller.vendor.wrapping_shl(8).into(),
        device: device.into(),
        device_version: device_version.into(),
        reserved_18: [0; 2],
        subsystem_vendor: controller.vendor.wrapping_shl(8).into(),
        subsystem_device: device.into(),
        io_class: IO_CLASS.into(),
        io_subclass: IO_SUBCLASS.into(),
        protocol: PROTOCOL.into(),
        protocol_version: 1.into(),
        service_connections: 0.into(),
        initiators: 0.into(),
        send_queue_depth: controller.send_queue_depth.into(),
        reserved_42: 0,
        rdma_read_depth: controller.rdma_read_depth,
        send_bytes: controller.it_iu_bytes_max.into(),
        rdma_bytes: controller.rdma_bytes_max.into(),
        operations: OPERATIONS,
        services: 0,
        service_entries: 1,
        reserved_55: [0; 9],
        identifier,
    }
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct ServiceEntry {
    name: [u8; 40],
    service_id: U64,
}

/// The one service of a controller: its name holds the identifier extension in hexadecimal digits.
fn service(controller: &Controller<'_>) -> ServiceEntry {
    let mut name = [0; 40];
    let digits = (0_u32..16).map(|place| {
        let nibble = controller
            .identifier_extension
            .wrapping_shr(60_u32.saturating_sub(place.saturating_mul(4)));
        char::from_digit(u32::try_from(nibble & 0xf).unwrap_or(0), 16).map_or(b'0', |c| c as u8)
    });
    for (to, from) in name.iter_mut().zip(b"SRP.T10:".iter().copied().chain(digits)) {
        *to = from;
    }
    ServiceEntry { name, service_id: controller.service_id.into() }
}
