//! The bytes of SRP's structures, field by field (SRP r16a clauses 5 and 6).
//!
//! Layouts and constants only; what a value means, and whether it is allowed, is said in the modules
//! that use them. Everything is big-endian and unaligned. Reserved fields are zero when sent and
//! ignored when received.

use zerocopy::byteorder::big_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// IU type codes (SRP 5.2 table: byte 0 of every IU).
pub mod opcode {
    /// SRP_LOGIN_REQ, initiator to target.
    pub const LOGIN_REQUEST: u8 = 0x00;
    /// SRP_TSK_MGMT, initiator to target.
    pub const TASK_MANAGEMENT: u8 = 0x01;
    /// SRP_CMD, initiator to target.
    pub const COMMAND: u8 = 0x02;
    /// SRP_I_LOGOUT, initiator to target.
    pub const INITIATOR_LOGOUT: u8 = 0x03;
    /// SRP_CRED_RSP, initiator to target.
    pub const CREDIT_RESPONSE: u8 = 0x41;
    /// SRP_AER_RSP, initiator to target.
    pub const EVENT_RESPONSE: u8 = 0x42;
    /// SRP_T_LOGOUT, target to initiator.
    pub const TARGET_LOGOUT: u8 = 0x80;
    /// SRP_CRED_REQ, target to initiator.
    pub const CREDIT_REQUEST: u8 = 0x81;
    /// SRP_AER_REQ, target to initiator.
    pub const EVENT_REQUEST: u8 = 0x82;
    /// SRP_LOGIN_RSP, target to initiator.
    pub const LOGIN_RESPONSE: u8 = 0xc0;
    /// SRP_RSP, target to initiator.
    pub const RESPONSE: u8 = 0xc1;
    /// SRP_LOGIN_REJ, target to initiator.
    pub const LOGIN_REJECT: u8 = 0xc2;
}

/// Data buffer descriptor formats: nibbles in SRP_CMD, bit numbers in the login's masks (SRP 5.6.2).
pub mod format {
    /// No data in this direction.
    pub const NONE: u8 = 0;
    /// One memory descriptor.
    pub const DIRECT: u8 = 1;
    /// A table of memory descriptors, part or all of it inlined in the IU.
    pub const INDIRECT: u8 = 2;
    /// The data follows in the IU itself (SRP-2).
    pub const IMMEDIATE: u8 = 3;
    /// Login mask bit of [`DIRECT`].
    pub const DIRECT_BIT: u16 = 1 << DIRECT;
    /// Login mask bit of [`INDIRECT`].
    pub const INDIRECT_BIT: u16 = 1 << INDIRECT;
}

/// Bits of the `flags` byte in [`Response`] (SRP 6.9).
pub mod response_flag {
    /// Response data is there.
    pub const RESPONSE_VALID: u8 = 0x01;
    /// Sense data is there.
    pub const SENSE_VALID: u8 = 0x02;
    /// `data_out_residual` bytes did not fit the initiator's data-out buffer.
    pub const DATA_OUT_OVER: u8 = 0x04;
    /// `data_out_residual` bytes of the data-out buffer were not used.
    pub const DATA_OUT_UNDER: u8 = 0x08;
    /// `data_in_residual` bytes did not fit the initiator's data-in buffer.
    pub const DATA_IN_OVER: u8 = 0x10;
    /// `data_in_residual` bytes of the data-in buffer were not used.
    pub const DATA_IN_UNDER: u8 = 0x20;
}

/// Bits of the login request's `flags` (SRP 6.2; immediate data: SRP-2).
pub mod login_flag {
    /// Multi-channel action, two bits wide: 0 SINGLE, 1 MULTI.
    pub const ACTION_MASK: u8 = 0x03;
    /// Multi-channel action MULTI.
    pub const MULTI: u8 = 0x01;
    /// Request: the initiator would like to send immediate data.
    pub const IMMEDIATE_REQUESTED: u8 = 0x80;
    /// Response: other channels of the nexus were terminated.
    pub const TERMINATED: u8 = 0x01;
    /// Response: other channels of the nexus were kept.
    pub const MAINTAINED: u8 = 0x02;
    /// Response: the target takes immediate data.
    pub const IMMEDIATE_SUPPORTED: u8 = 0x80;
}

/// Declares a wire structure together with a check of its size.
macro_rules! wire {
    ($(#[$meta:meta])* $name:ident, $bytes:literal { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        #[allow(missing_docs)] // the names are the standard's; the meaning is in the parsing modules
        pub struct $name { $($(#[$field_meta])* pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

wire!(
    /// SRP_CMD up to and including the 16-byte CDB (SRP 6.8).
    Command, 48 {
    opcode: u8,
    solicited: u8,
    reserved_2: [u8; 3],
    /// High nibble: data-out format; low nibble: data-in format.
    formats: u8,
    data_out_count: u8,
    data_in_count: u8,
    tag: U64,
    reserved_16: [u8; 4],
    lun: [u8; 8],
    reserved_28: u8,
    attribute: u8,
    reserved_30: u8,
    /// Additional CDB length in bytes; the low two bits are reserved.
    additional_cdb: u8,
    cdb: [u8; 16],
});

wire!(
    /// An immediate data descriptor (SRP-2): the length of the data that follows in the IU.
    ImmediateDescriptor, 4 {
    length: U32,
});

wire!(
    /// SRP_TSK_MGMT (SRP 6.7).
    TaskManagement, 48 {
    opcode: u8,
    solicited: u8,
    reserved_2: [u8; 6],
    tag: U64,
    reserved_16: [u8; 4],
    lun: [u8; 8],
    reserved_28: [u8; 2],
    function: u8,
    reserved_31: u8,
    task_tag: U64,
    reserved_40: [u8; 8],
});

wire!(
    /// SRP_I_LOGOUT, SRP_CRED_RSP and SRP_AER_RSP: an opcode and a tag (SRP 6.5, 6.11, 6.13).
    Tagged, 16 {
    opcode: u8,
    reserved_1: [u8; 7],
    tag: U64,
});

wire!(
    /// SRP_T_LOGOUT (SRP 6.6) and SRP_CRED_REQ (SRP 6.10): a 32-bit value and a tag.
    Valued, 16 {
    opcode: u8,
    solicited: u8,
    reserved_2: [u8; 2],
    /// Logout reason, or request limit delta.
    value: I32,
    tag: U64,
});

wire!(
    /// SRP_RSP without its data (SRP 6.9); response data, then sense data follow.
    Response, 36 {
    opcode: u8,
    solicited: u8,
    reserved_2: [u8; 2],
    request_limit_delta: I32,
    tag: U64,
    reserved_16: [u8; 2],
    flags: u8,
    status: u8,
    data_out_residual: U32,
    data_in_residual: U32,
    sense_bytes: U32,
    response_bytes: U32,
});

wire!(
    /// SRP_AER_REQ without its sense data (SRP 6.12).
    EventRequest, 36 {
    opcode: u8,
    solicited: u8,
    reserved_2: [u8; 2],
    request_limit_delta: I32,
    tag: U64,
    reserved_16: [u8; 4],
    lun: [u8; 8],
    sense_bytes: U32,
    reserved_32: [u8; 4],
});

wire!(
    /// A memory descriptor (SRP 5.6.2.4).
    MemoryDescriptor, 16 {
    address: U64,
    key: U32,
    length: U32,
});

wire!(
    /// Head of an indirect data buffer descriptor; the partial list follows (SRP 5.6.2.5).
    IndirectDescriptor, 20 {
    table: MemoryDescriptor,
    total_bytes: U32,
});

wire!(
    /// SRP_LOGIN_REQ as in an IB CM REQ (SRP 6.2).
    LoginRequest, 64 {
    opcode: u8,
    reserved_1: [u8; 7],
    tag: U64,
    it_iu_bytes: U32,
    reserved_20: [u8; 4],
    formats: U16,
    flags: u8,
    reserved_27: u8,
    immediate_offset: U16,
    reserved_30: [u8; 2],
    initiator_port: [u8; 16],
    target_port: [u8; 16],
});

wire!(
    /// SRP_LOGIN_REQ squeezed into the 56 bytes that the RDMA/CM leaves of a REQ's private data.
    LoginRequestRdmaCm, 56 {
    tag: U64,
    formats: U16,
    flags: u8,
    opcode: u8,
    it_iu_bytes: U32,
    initiator_port: [u8; 16],
    target_port: [u8; 16],
    immediate_offset: U16,
    reserved_50: [u8; 6],
});

wire!(
    /// SRP_LOGIN_RSP (SRP 6.3).
    LoginResponse, 52 {
    opcode: u8,
    reserved_1: [u8; 3],
    request_limit_delta: I32,
    tag: U64,
    it_iu_bytes_max: U32,
    ti_iu_bytes_max: U32,
    formats: U16,
    flags: u8,
    reserved_27: [u8; 25],
});

wire!(
    /// SRP_LOGIN_REJ (SRP 6.4).
    LoginReject, 32 {
    opcode: u8,
    reserved_1: [u8; 3],
    reason: U32,
    tag: U64,
    reserved_16: [u8; 8],
    formats: U16,
    reserved_26: [u8; 6],
});
