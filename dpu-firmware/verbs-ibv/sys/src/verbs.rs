//! `infiniband/verbs.h`: structures, constants and the functions that the header inlines.
//!
//! Only what is used is declared. Structures that the libraries allocate and we read through a
//! pointer end at the last field we need; those that we allocate are complete.
#![allow(unsafe_code)] // calls through function pointers, which verbs.h inlines

use core::ffi::{c_char, c_int, c_uint, c_void};

/// Declares a structure that is only handled by pointer.
macro_rules! opaque {
    ($($(#[$text:meta])* $name:ident;)*) => {$(
        $(#[$text])*
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            _opaque: [u8; 0],
        }
    )*};
}

opaque! {
    /// `struct _compat_ibv_port_attr`: what the exported `ibv_query_port` believes to be given; the
    /// first bytes of [`ibv_port_attr`].
    _compat_ibv_port_attr;
}

/// An open device.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_context {
    /// The device behind it.
    pub device: *mut c_void,
    /// The provider's functions.
    pub ops: ibv_context_ops,
    /// The descriptor of commands.
    pub cmd_fd: c_int,
    /// Readable when `ibv_get_async_event` has something.
    pub async_fd: c_int,
    /// Interrupt vectors that a CQ can be put on.
    pub num_comp_vectors: c_int,
    /// The library's.
    pub mutex: libc::pthread_mutex_t,
    /// All ones: this is the tail of a [`verbs_context`].
    pub abi_compat: *mut c_void,
}

/// A place in the table of functions that has no meaning any more, or none for us.
type Unused = *mut c_void;

/// The data path functions of a provider.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_context_ops {
    _before_poll_cq: [Unused; 11],
    /// Takes completions.
    pub poll_cq:
        Option<unsafe extern "C" fn(cq: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int>,
    /// Asks for an event at the next completion.
    pub req_notify_cq:
        Option<unsafe extern "C" fn(cq: *mut ibv_cq, solicited_only: c_int) -> c_int>,
    _before_post_srq_recv: [Unused; 7],
    /// Posts receives to an SRQ.
    pub post_srq_recv: Option<
        unsafe extern "C" fn(
            srq: *mut ibv_srq,
            wr: *mut ibv_recv_wr,
            bad: *mut *mut ibv_recv_wr,
        ) -> c_int,
    >,
    _before_post_send: [Unused; 4],
    /// Posts a chain to a send queue.
    pub post_send: Option<
        unsafe extern "C" fn(
            qp: *mut ibv_qp,
            wr: *mut ibv_send_wr,
            bad: *mut *mut ibv_send_wr,
        ) -> c_int,
    >,
    /// Posts receives to a queue pair without SRQ.
    pub post_recv: Option<
        unsafe extern "C" fn(
            qp: *mut ibv_qp,
            wr: *mut ibv_recv_wr,
            bad: *mut *mut ibv_recv_wr,
        ) -> c_int,
    >,
    _after_post_recv: [Unused; 5],
}

/// The end of `struct verbs_context`, which grows at its front: everything from the one function
/// that we need.
#[repr(C)]
#[derive(Debug)]
pub struct verbs_context {
    /// Makes a CQ for extended polling.
    pub create_cq_ex: Option<
        unsafe extern "C" fn(
            context: *mut ibv_context,
            attr: *mut ibv_cq_init_attr_ex,
        ) -> *mut ibv_cq_ex,
    >,
    _after_create_cq_ex: [Unused; 12],
    _placeholder: u64,
    /// Bytes of the whole structure as the library knows it.
    pub sz: usize,
    /// What is handed around.
    pub context: ibv_context,
}

/// A protection domain.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_pd {
    /// Its device.
    pub context: *mut ibv_context,
    /// The kernel's name for it.
    pub handle: u32,
}

/// A memory region.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_mr {
    /// Its device.
    pub context: *mut ibv_context,
    /// Its protection domain.
    pub pd: *mut ibv_pd,
    /// First byte.
    pub addr: *mut c_void,
    /// Bytes.
    pub length: usize,
    /// The kernel's name for it.
    pub handle: u32,
    /// For scatter/gather entries.
    pub lkey: u32,
    /// For the peer.
    pub rkey: u32,
}

/// What a device can do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // IBTA 11.2.2.2, by the same names
pub struct ibv_device_attr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_uint,
    pub max_ee: c_int,
    pub max_rdd: c_int,
    pub max_mw: c_int,
    pub max_raw_ipv6_qp: c_int,
    pub max_raw_ethy_qp: c_int,
    pub max_mcast_grp: c_int,
    pub max_mcast_qp_attach: c_int,
    pub max_total_mcast_qp_attach: c_int,
    pub max_ah: c_int,
    pub max_fmr: c_int,
    pub max_map_per_fmr: c_int,
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// What a port can do and how it is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // IBTA 11.2.2.3, by the same names
pub struct ibv_port_attr {
    pub state: c_uint,
    pub max_mtu: c_uint,
    pub active_mtu: c_uint,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
}

/// What an asynchronous event is about.
#[repr(C)]
#[derive(Clone, Copy)]
pub union ibv_async_element {
    /// IBV_EVENT_QP_* and IBV_EVENT_COMM_EST.
    pub qp: *mut ibv_qp,
    /// IBV_EVENT_PORT_*.
    pub port_num: c_int,
    /// The rest.
    pub other: *mut c_void,
}

/// An asynchronous event (IBTA 11.6.3).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_async_event {
    /// What it is about.
    pub element: ibv_async_element,
    /// Which: one of `IBV_EVENT_*`.
    pub event_type: c_uint,
}

/// A work completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // IBTA 11.4.2.1, by the same names
pub struct ibv_wc {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

/// Sizes of an SRQ.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ibv_srq_attr {
    /// Receives it holds.
    pub max_wr: u32,
    /// Scatter entries of each.
    pub max_sge: u32,
    /// Below how many IBV_EVENT_SRQ_LIMIT_REACHED comes.
    pub srq_limit: u32,
}

/// How an SRQ is made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_srq_init_attr {
    /// The user's.
    pub srq_context: *mut c_void,
    /// Its sizes.
    pub attr: ibv_srq_attr,
}

/// Sizes of a queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // say what they are
pub struct ibv_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// How a queue pair is made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // say what they are
pub struct ibv_qp_init_attr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub cap: ibv_qp_cap,
    pub qp_type: c_uint,
    pub sq_sig_all: c_int,
}

/// `struct ibv_ah_attr`, which we never fill in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ibv_ah_attr {
    words: [u64; 4],
}

/// Attributes of a queue pair that `ibv_modify_qp` changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // IBTA 11.2.5.2, by the same names
pub struct ibv_qp_attr {
    pub qp_state: c_uint,
    pub cur_qp_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: ibv_qp_cap,
    pub ah_attr: ibv_ah_attr,
    pub alt_ah_attr: ibv_ah_attr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// A scatter/gather entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ibv_sge {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// Key of the region it lies in.
    pub lkey: u32,
}

/// A send-queue work request. Atomics, datagrams and the rest have their room and no names.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_send_wr {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// The next one of the chain.
    pub next: *mut ibv_send_wr,
    /// What is sent, or where what is read goes.
    pub sg_list: *mut ibv_sge,
    /// Entries of it.
    pub num_sge: c_int,
    /// One of `IBV_WR_*`.
    pub opcode: c_uint,
    /// Of `IBV_SEND_*`.
    pub send_flags: c_uint,
    /// Immediate data, in network byte order.
    pub imm_data: u32,
    /// RDMA: address at the peer.
    pub remote_addr: u64,
    /// RDMA: the peer's key.
    pub rkey: u32,
    /// The rest of what atomics have here.
    pub rest_of_wr: [u64; 2],
    /// XRC's.
    pub qp_type: u64,
    /// Memory windows' and TSO's.
    pub bind_mw_or_tso: [u64; 6],
}

impl ibv_send_wr {
    /// One that does nothing yet.
    pub const EMPTY: Self = Self {
        wr_id: 0,
        next: core::ptr::null_mut(),
        sg_list: core::ptr::null_mut(),
        num_sge: 0,
        opcode: 0,
        send_flags: 0,
        imm_data: 0,
        remote_addr: 0,
        rkey: 0,
        rest_of_wr: [0; 2],
        qp_type: 0,
        bind_mw_or_tso: [0; 6],
    };
}

/// A receive work request.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_recv_wr {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// The next one of the chain.
    pub next: *mut ibv_recv_wr,
    /// Where the message goes.
    pub sg_list: *mut ibv_sge,
    /// Entries of it.
    pub num_sge: c_int,
}

/// A shared receive queue, as far as we look into it.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_srq {
    /// Its device.
    pub context: *mut ibv_context,
}

/// A queue pair, as far as we look into it.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs)] // say what they are
pub struct ibv_qp {
    pub context: *mut ibv_context,
    pub qp_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub handle: u32,
    pub qp_num: u32,
}

/// A channel that completion events come through.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_comp_channel {
    /// Its device.
    pub context: *mut ibv_context,
    /// Readable when there is an event.
    pub fd: c_int,
    /// The library's.
    pub refcnt: c_int,
}

/// A completion queue.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_cq {
    /// Its device.
    pub context: *mut ibv_context,
    /// Where its events come.
    pub channel: *mut ibv_comp_channel,
    /// The user's.
    pub cq_context: *mut c_void,
    /// The kernel's name for it.
    pub handle: u32,
    /// Completions it holds.
    pub cqe: c_int,
    /// The library's.
    pub mutex: libc::pthread_mutex_t,
    /// The library's.
    pub cond: libc::pthread_cond_t,
    /// The library's.
    pub comp_events_completed: u32,
    /// The library's.
    pub async_events_completed: u32,
}

/// A completion queue for extended polling: the current completion is read field by field.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_cq_ex {
    /// May be used as a plain one.
    pub cq: ibv_cq,
    /// Which optional parts there are.
    pub comp_mask: u32,
    /// Of the current completion.
    pub status: c_uint,
    /// Of the current completion.
    pub wr_id: u64,
    /// Finds the first completion; ENOENT when there is none.
    pub start_poll:
        Option<unsafe extern "C" fn(cq: *mut Self, attr: *mut ibv_poll_cq_attr) -> c_int>,
    /// Finds the next one; ENOENT when there is none.
    pub next_poll: Option<unsafe extern "C" fn(cq: *mut Self) -> c_int>,
    /// Ends what a successful `start_poll` began.
    pub end_poll: Option<unsafe extern "C" fn(cq: *mut Self)>,
    /// One of `IBV_WC_*`.
    pub read_opcode: Option<unsafe extern "C" fn(cq: *mut Self) -> c_uint>,
    /// The vendor's reason.
    pub read_vendor_err: Option<unsafe extern "C" fn(cq: *mut Self) -> u32>,
    /// Bytes received.
    pub read_byte_len: Option<unsafe extern "C" fn(cq: *mut Self) -> u32>,
    /// Immediate data, in network byte order.
    pub read_imm_data: Option<unsafe extern "C" fn(cq: *mut Self) -> u32>,
    /// The queue pair.
    pub read_qp_num: Option<unsafe extern "C" fn(cq: *mut Self) -> u32>,
}

/// What `start_poll` is given.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ibv_poll_cq_attr {
    /// Must be 0.
    pub comp_mask: u32,
}

/// How a CQ for extended polling is made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // say what they are
pub struct ibv_cq_init_attr_ex {
    pub cqe: u32,
    pub cq_context: *mut c_void,
    pub channel: *mut ibv_comp_channel,
    pub comp_vector: u32,
    pub wc_flags: u64,
    pub comp_mask: u32,
    pub flags: u32,
    pub parent_domain: *mut ibv_pd,
}

macro_rules! constants {
    ($($(#[$text:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$text])* pub const $name: c_uint = $value;)*

        /// Every constant of `verbs.h` above by its name, for the comparison with the header.
        pub const VERBS_CONSTANTS: &[(&str, c_uint)] = &[$((stringify!($name), $name),)*];
    };
}

constants! {
    /// Transport type "reliable connection".
    IBV_QPT_RC = 2;
    /// The error state.
    IBV_QPS_ERR = 6;
    /// `ibv_qp_attr::qp_state` counts.
    IBV_QP_STATE = 1;
    /// `ibv_qp_attr::min_rnr_timer` counts.
    IBV_QP_MIN_RNR_TIMER = 1 << 15;
    /// The device may write.
    IBV_ACCESS_LOCAL_WRITE = 1;
    /// Peers with the rkey may write.
    IBV_ACCESS_REMOTE_WRITE = 2;
    /// Peers with the rkey may read.
    IBV_ACCESS_REMOTE_READ = 4;
    /// RDMA WRITE.
    IBV_WR_RDMA_WRITE = 0;
    /// SEND.
    IBV_WR_SEND = 2;
    /// RDMA READ.
    IBV_WR_RDMA_READ = 4;
    /// Begin after all earlier RDMA READs of the queue pair.
    IBV_SEND_FENCE = 1;
    /// Report success.
    IBV_SEND_SIGNALED = 2;
    /// The bytes are copied while posting.
    IBV_SEND_INLINE = 8;
    /// Extended polling: the length is read.
    IBV_WC_EX_WITH_BYTE_LEN = 1;
    /// Extended polling: the queue pair is read.
    IBV_WC_EX_WITH_QP_NUM = 4;
    /// Done.
    IBV_WC_SUCCESS = 0;
    /// Too long, or a bad length.
    IBV_WC_LOC_LEN_ERR = 1;
    /// The queue pair was not in a state for it.
    IBV_WC_LOC_QP_OP_ERR = 2;
    /// A local key or range was wrong.
    IBV_WC_LOC_PROT_ERR = 4;
    /// The queue pair failed before.
    IBV_WC_WR_FLUSH_ERR = 5;
    /// A local access was not allowed.
    IBV_WC_LOC_ACCESS_ERR = 8;
    /// The peer found the request invalid.
    IBV_WC_REM_INV_REQ_ERR = 9;
    /// The peer's key, range or rights were wrong.
    IBV_WC_REM_ACCESS_ERR = 10;
    /// The peer could not.
    IBV_WC_REM_OP_ERR = 11;
    /// The peer did not answer.
    IBV_WC_RETRY_EXC_ERR = 12;
    /// The peer had no receive posted.
    IBV_WC_RNR_RETRY_EXC_ERR = 13;
    /// The peer found the RDMA READ invalid.
    IBV_WC_REM_INV_RD_REQ_ERR = 15;
    /// The peer aborted it.
    IBV_WC_REM_ABORT_ERR = 16;
    /// The device died.
    IBV_WC_FATAL_ERR = 19;
    /// The peer did not answer.
    IBV_WC_RESP_TIMEOUT_ERR = 20;
    /// The queue pair failed on its own.
    IBV_EVENT_QP_FATAL = 1;
    /// A request of the peer was invalid.
    IBV_EVENT_QP_REQ_ERR = 2;
    /// A request of the peer was not allowed.
    IBV_EVENT_QP_ACCESS_ERR = 3;
    /// A message came before the RTU.
    IBV_EVENT_COMM_EST = 4;
    /// The device died.
    IBV_EVENT_DEVICE_FATAL = 8;
    /// A port came up.
    IBV_EVENT_PORT_ACTIVE = 9;
    /// A port went down.
    IBV_EVENT_PORT_ERR = 10;
    /// A failed queue pair took its last receive from the SRQ.
    IBV_EVENT_QP_LAST_WQE_REACHED = 16;
}

/// Makes a CQ for extended polling; null with errno EOPNOTSUPP when the provider has none.
///
/// # Safety
/// `context` must come from the library and `attr` be valid.
pub unsafe fn ibv_create_cq_ex(
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
) -> *mut ibv_cq_ex {
    const EXTENDED: usize = usize::MAX;
    // SAFETY: the caller's; `abi_compat` says that the context is the tail of a verbs_context, and
    // `sz` that this library's one reaches back to our first field.
    unsafe {
        if (*context).abi_compat as usize == EXTENDED {
            let outer = context.byte_sub(core::mem::offset_of!(verbs_context, context));
            let outer = outer.cast::<verbs_context>();
            if (*outer).sz >= size_of::<verbs_context>()
                && let Some(create) = (*outer).create_cq_ex
            {
                return create(context, attr);
            }
        }
        *libc::__errno_location() = libc::EOPNOTSUPP;
    }
    core::ptr::null_mut()
}

/// Takes up to `entries` completions; their number, or below 0.
///
/// # Safety
/// `cq` must be alive and `wc` have room for `entries`.
#[inline]
pub unsafe fn ibv_poll_cq(cq: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: the caller's; providers fill in their functions.
    match unsafe { (*(*cq).context).ops.poll_cq } {
        // SAFETY: the caller's.
        Some(poll) => unsafe { poll(cq, entries, wc) },
        None => -libc::EOPNOTSUPP,
    }
}

/// Asks for an event at the next completion; an errno.
///
/// # Safety
/// `cq` must be alive.
pub unsafe fn ibv_req_notify_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the caller's.
    match unsafe { (*(*cq).context).ops.req_notify_cq } {
        // SAFETY: the caller's.
        Some(request) => unsafe { request(cq, 0) },
        None => libc::EOPNOTSUPP,
    }
}

/// Posts a chain to a send queue; an errno, and then where the refused rest begins.
///
/// # Safety
/// `qp` must be alive, the chain valid, and memory it names stay until its completions.
#[inline]
pub unsafe fn ibv_post_send(
    qp: *mut ibv_qp,
    chain: *mut ibv_send_wr,
    refused: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller's.
    match unsafe { (*(*qp).context).ops.post_send } {
        // SAFETY: the caller's.
        Some(post) => unsafe { post(qp, chain, refused) },
        None => libc::EOPNOTSUPP,
    }
}

/// Posts receives; an errno, and then where the refused rest begins.
///
/// # Safety
/// As [`ibv_post_send`].
#[inline]
pub unsafe fn ibv_post_recv(
    qp: *mut ibv_qp,
    chain: *mut ibv_recv_wr,
    refused: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's.
    match unsafe { (*(*qp).context).ops.post_recv } {
        // SAFETY: the caller's.
        Some(post) => unsafe { post(qp, chain, refused) },
        None => libc::EOPNOTSUPP,
    }
}

/// Posts receives to an SRQ; an errno, and then where the refused rest begins.
///
/// # Safety
/// As [`ibv_post_send`].
#[inline]
pub unsafe fn ibv_post_srq_recv(
    srq: *mut ibv_srq,
    chain: *mut ibv_recv_wr,
    refused: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's.
    match unsafe { (*(*srq).context).ops.post_srq_recv } {
        // SAFETY: the caller's.
        Some(post) => unsafe { post(srq, chain, refused) },
        None => libc::EOPNOTSUPP,
    }
}
