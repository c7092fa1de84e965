//! `rdma/rdma_cma.h`: structures and constants of the connection manager.

use core::ffi::{c_int, c_uint, c_void};

use crate::verbs::{ibv_context, ibv_pd, ibv_qp};

/// What events come through.
#[repr(C)]
#[derive(Debug)]
pub struct rdma_event_channel {
    /// Readable when there is an event.
    pub fd: c_int,
}

/// `struct rdma_addr`: both ends' addresses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct rdma_addr {
    /// Ours.
    pub src_storage: libc::sockaddr_storage,
    /// The peer's.
    pub dst_storage: libc::sockaddr_storage,
    _ibaddr: [u16; 17],
}

/// `struct rdma_route`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct rdma_route {
    /// The addresses.
    pub addr: rdma_addr,
    /// The library's.
    pub path_rec: *mut c_void,
    /// The library's.
    pub num_paths: c_int,
}

/// A connection, or a listening end.
#[repr(C)]
pub struct rdma_cm_id {
    /// The device it is bound to; null while it is to none.
    pub verbs: *mut ibv_context,
    /// Where its events come.
    pub channel: *mut rdma_event_channel,
    /// The user's.
    pub context: *mut c_void,
    /// Its queue pair.
    pub qp: *mut ibv_qp,
    /// Where it leads.
    pub route: rdma_route,
    /// One of `RDMA_PS_*`.
    pub ps: c_uint,
    /// The port of the device, from 1.
    pub port_num: u8,
    /// The library's.
    pub event: *mut rdma_cm_event,
    _cqs_and_srq: [*mut c_void; 5],
    /// Its protection domain.
    pub pd: *mut ibv_pd,
    /// The transport.
    pub qp_type: c_uint,
}

/// What a connection is asked for or accepted with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct rdma_conn_param {
    /// Private data.
    pub private_data: *const c_void,
    /// Bytes of it.
    pub private_data_len: u8,
    /// RDMA READs that the peer may have outstanding to us.
    pub responder_resources: u8,
    /// RDMA READs that we may have outstanding to the peer.
    pub initiator_depth: u8,
    /// Hardware flow control.
    pub flow_control: u8,
    /// Times to send again before giving up; the passive end's is the active end's.
    pub retry_count: u8,
    /// Times to send again when the peer has no receive; 7 is without end.
    pub rnr_retry_count: u8,
    /// Ignored with a queue pair made by the library.
    pub srq: u8,
    /// Ignored with a queue pair made by the library.
    pub qp_num: u32,
}

/// An event.
#[repr(C)]
pub struct rdma_cm_event {
    /// What it is about; for a connection request the new one.
    pub id: *mut rdma_cm_id,
    /// For a connection request, the listening end.
    pub listen_id: *mut rdma_cm_id,
    /// One of `RDMA_CM_EVENT_*`.
    pub event: c_uint,
    /// Why, where something failed: an errno below 0, or the reason of a REJ.
    pub status: c_int,
    /// Of requests, replies and rejects.
    pub conn: rdma_conn_param,
    /// Room for the larger parameters of datagram services.
    _ud: [u64; 4],
}

macro_rules! constants {
    ($($(#[$text:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$text])* pub const $name: c_uint = $value;)*

        /// Every constant of `rdma_cma.h` above by its name, for the comparison with the header.
        pub const RDMA_CMA_CONSTANTS: &[(&str, c_uint)] = &[$((stringify!($name), $name),)*];
    };
}

constants! {
    /// Port space of reliable connections addressed by IP.
    RDMA_PS_TCP = 0x0106;
    /// The address leads to a device.
    RDMA_CM_EVENT_ADDR_RESOLVED = 0;
    /// The address leads nowhere.
    RDMA_CM_EVENT_ADDR_ERROR = 1;
    /// The path is known.
    RDMA_CM_EVENT_ROUTE_RESOLVED = 2;
    /// There is no path.
    RDMA_CM_EVENT_ROUTE_ERROR = 3;
    /// REQ.
    RDMA_CM_EVENT_CONNECT_REQUEST = 4;
    /// REP, at an end without queue pair.
    RDMA_CM_EVENT_CONNECT_RESPONSE = 5;
    /// A connection could not be made.
    RDMA_CM_EVENT_CONNECT_ERROR = 6;
    /// The peer does not answer.
    RDMA_CM_EVENT_UNREACHABLE = 7;
    /// REJ.
    RDMA_CM_EVENT_REJECTED = 8;
    /// RTU, or REP at the active end.
    RDMA_CM_EVENT_ESTABLISHED = 9;
    /// DREQ or DREP.
    RDMA_CM_EVENT_DISCONNECTED = 10;
    /// The device goes.
    RDMA_CM_EVENT_DEVICE_REMOVAL = 11;
    /// The address of the interface changed.
    RDMA_CM_EVENT_ADDR_CHANGE = 14;
    /// The timewait state is over.
    RDMA_CM_EVENT_TIMEWAIT_EXIT = 15;
    /// Level of the options of an id.
    RDMA_OPTION_ID = 0;
    /// An address may be bound while old connections of it are in timewait.
    RDMA_OPTION_ID_REUSEADDR = 1;
    /// How long to wait for an acknowledgement: 4.096 us times two to the power of the value.
    RDMA_OPTION_ID_ACK_TIMEOUT = 3;
}
