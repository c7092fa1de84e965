//! The connection manager's ids and events, owned: an event is copied and acknowledged at once, so
//! an id can always be destroyed. And a connection request on its way to the group that answers.
#![allow(unsafe_code)] // calls into librdmacm

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;

use lunar_platform::{PeerAddress, PrivateData};
use lunar_verbs_ibv_sys as sys;
use lunar_verbs_ibv_sys::Library;

use crate::address;
use crate::device::DeviceState;
use crate::error::{checked, checked_errno, checked_pointer};

/// The longest private data of a CM REJ (IBTA 12.6.7).
const REJECT_BYTES_MAX: usize = 148;
/// "No limit" of RNR retries (IBTA 9.7.5.2.8).
pub(crate) const RNR_RETRY_UNLIMITED: u8 = 7;
/// How often what is not acknowledged is sent again. Not the 7 that the field can hold: soft RoCE takes that for "for ever",
/// and a peer that is gone would never be found out.
const RETRY_COUNT: u8 = 6;
/// Encoded 0.64 ms: how long a peer waits after an RNR NAK (IBTA table 46).
const MIN_RNR_TIMER: u8 = 12;

/// Where the events of some ids come.
#[derive(Debug)]
pub(crate) struct EventChannel {
    library: &'static Library,
    channel: *mut sys::rdma_event_channel,
}

// SAFETY: librdmacm's functions may be called from any thread.
unsafe impl Send for EventChannel {}

/// An event, its private data copied.
pub(crate) struct Event {
    pub(crate) kind: u32,
    /// Which id. Not to be followed: only to be compared with ids that are owned.
    pub(crate) id: *mut sys::rdma_cm_id,
    /// What was set as the id's context.
    pub(crate) context: usize,
    pub(crate) private_data: PrivateData,
    /// Of a connection request.
    pub(crate) peer: PeerAddress,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    /// For a connection request, the new id.
    pub(crate) request: Option<CmId>,
    pub(crate) status: i32,
}

impl EventChannel {
    pub(crate) fn new(library: &'static Library) -> io::Result<Self> {
        // SAFETY: takes nothing.
        let channel = checked_pointer(unsafe { (library.rdma_create_event_channel)() })?;
        let channel = Self { library, channel };
        rustix::io::ioctl_fionbio(channel.fd(), true)?;
        Ok(channel)
    }

    /// Readable when [`Self::next`] has something.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `drop`.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    /// The next event, if any. A system call.
    pub(crate) fn next(&self) -> Option<Event> {
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is open and does not block. What an event points to lives until it is
        // acknowledged, and everything is copied before.
        unsafe {
            checked((self.library.rdma_get_cm_event)(self.channel, &raw mut raw)).ok()?;
            let event = &*raw;
            let (data, length) = (event.conn.private_data, event.conn.private_data_len);
            let private_data = if data.is_null() {
                PrivateData::new(&[])
            } else {
                PrivateData::new(std::slice::from_raw_parts(data.cast(), usize::from(length)))
            };
            let request = (event.event == sys::RDMA_CM_EVENT_CONNECT_REQUEST)
                .then(|| CmId { library: self.library, id: event.id });
            let event = Event {
                kind: event.event,
                id: event.id,
                context: (*event.id).context as usize,
                private_data,
                peer: address::peer(&(*event.id).route.addr.dst_storage),
                responder_resources: event.conn.responder_resources,
                initiator_depth: event.conn.initiator_depth,
                request,
                status: event.status,
            };
            (self.library.rdma_ack_cm_event)(raw);
            Some(event)
        }
    }

    /// A new id whose events come here.
    pub(crate) fn create_id(&self) -> io::Result<CmId> {
        let mut id = ptr::null_mut();
        // SAFETY: an open channel, and room for the id.
        checked(unsafe {
            (self.library.rdma_create_id)(
                self.channel,
                &raw mut id,
                ptr::null_mut(),
                sys::RDMA_PS_TCP,
            )
        })?;
        Ok(CmId { library: self.library, id })
    }

    /// Has the events of `id` come here from now on.
    pub(crate) fn adopt(&self, id: &CmId) -> io::Result<()> {
        // SAFETY: both are alive.
        checked(unsafe { (self.library.rdma_migrate_id)(id.id, self.channel) })
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: its ids are gone: their owners hold them ahead of this.
        unsafe { (self.library.rdma_destroy_event_channel)(self.channel) };
    }
}

/// An id of the connection manager, with its queue pair if it has one. Owned.
#[derive(Debug)]
pub(crate) struct CmId {
    library: &'static Library,
    id: *mut sys::rdma_cm_id,
}

// SAFETY: librdmacm takes calls about an id from any thread.
unsafe impl Send for CmId {}

/// What a queue pair is made with.
pub(crate) struct QpWishes {
    pub(crate) send_cq: *mut sys::ibv_cq,
    pub(crate) receive_cq: *mut sys::ibv_cq,
    /// Null: a receive queue of its own.
    pub(crate) srq: *mut sys::ibv_srq,
    pub(crate) send_depth: u32,
    pub(crate) receive_depth: u32,
    /// Bytes wanted inline; less where the device gives less.
    pub(crate) inline_bytes: u32,
}

/// A queue pair as it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeQp {
    pub(crate) qp: *mut sys::ibv_qp,
    pub(crate) number: u32,
    pub(crate) inline_bytes: u32,
}

impl CmId {
    pub(crate) fn raw(&self) -> *mut sys::rdma_cm_id {
        self.id
    }

    /// Comes with every event.
    pub(crate) fn set_context(&self, context: usize) {
        // SAFETY: the id is alive; the field is the user's.
        unsafe { (*self.id).context = context as *mut c_void };
    }

    /// The device it is bound to, or null.
    pub(crate) fn verbs(&self) -> *mut sys::ibv_context {
        // SAFETY: the id is alive.
        unsafe { (*self.id).verbs }
    }

    pub(crate) fn port_number(&self) -> u8 {
        // SAFETY: the id is alive.
        unsafe { (*self.id).port_num }
    }

    /// The RDMA port it is bound to.
    pub(crate) fn local_port(&self) -> u16 {
        // SAFETY: the id is alive.
        u16::from_be(unsafe { (self.library.rdma_get_src_port)(self.id) })
    }

    pub(crate) fn listen(&self, address: &std::net::SocketAddr, backlog: i32) -> io::Result<()> {
        let mut storage = address::to_c(address);
        let mut yes = 1i32;
        // SAFETY: the id is alive, the address and the option are valid for the calls. An old kernel
        // without the option only makes rebinding slower.
        unsafe {
            let _ = (self.library.rdma_set_option)(
                self.id,
                sys::RDMA_OPTION_ID as i32,
                sys::RDMA_OPTION_ID_REUSEADDR as i32,
                (&raw mut yes).cast(),
                size_of::<i32>(),
            );
            checked((self.library.rdma_bind_addr)(self.id, (&raw mut storage).cast()))?;
            checked((self.library.rdma_listen)(self.id, backlog))
        }
    }

    /// Waits for acknowledgements 4.096 us times two to the power of `code` (IBTA 9.7.6.1.3), and not as
    /// long as the connection manager thinks. To be set before connecting; an old kernel ignores it.
    pub(crate) fn set_ack_timeout(&self, mut code: u8) {
        // SAFETY: the id is alive and the option valid for the call.
        let _ = unsafe {
            (self.library.rdma_set_option)(
                self.id,
                sys::RDMA_OPTION_ID as i32,
                sys::RDMA_OPTION_ID_ACK_TIMEOUT as i32,
                (&raw mut code).cast(),
                size_of::<u8>(),
            )
        };
    }

    /// Starts finding the device that leads to `address`.
    pub(crate) fn resolve_address(
        &self,
        address: &std::net::SocketAddr,
        timeout_ms: i32,
    ) -> io::Result<()> {
        let mut storage = address::to_c(address);
        // SAFETY: the id is alive and the address valid for the call.
        checked(unsafe {
            (self.library.rdma_resolve_addr)(
                self.id,
                ptr::null_mut(),
                (&raw mut storage).cast(),
                timeout_ms,
            )
        })
    }

    /// Starts finding the path.
    pub(crate) fn resolve_route(&self, timeout_ms: i32) -> io::Result<()> {
        // SAFETY: the id is alive.
        checked(unsafe { (self.library.rdma_resolve_route)(self.id, timeout_ms) })
    }

    /// Makes its queue pair. A device that cannot send so much inline is asked for less.
    pub(crate) fn create_qp(
        &self,
        device: &Arc<DeviceState>,
        wishes: &QpWishes,
    ) -> io::Result<MadeQp> {
        let mut inline_bytes = wishes.inline_bytes;
        loop {
            let mut attr = sys::ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: wishes.send_cq,
                recv_cq: wishes.receive_cq,
                srq: wishes.srq,
                cap: sys::ibv_qp_cap {
                    max_send_wr: wishes.send_depth,
                    max_recv_wr: wishes.receive_depth,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: inline_bytes,
                },
                qp_type: sys::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: the id, the protection domain, the queues and the attributes are alive.
            let made = checked(unsafe {
                (self.library.rdma_create_qp)(self.id, device.pd, &raw mut attr)
            });
            match made {
                Ok(()) => {
                    // SAFETY: the id has a queue pair now.
                    let (qp, number) = unsafe { ((*self.id).qp, (*(*self.id).qp).qp_num) };
                    // The device may give more; only what was asked for is used.
                    return Ok(MadeQp { qp, number, inline_bytes });
                }
                Err(error) if inline_bytes == 0 => return Err(error),
                Err(_) => inline_bytes /= 2,
            }
        }
    }

    /// Sends REP; the queue pair is ready to send.
    pub(crate) fn accept(&self, private_data: &[u8], reads: Reads) -> io::Result<()> {
        let mut parameters = parameters(private_data, reads);
        // SAFETY: the id has a queue pair; the parameters and the data stay for the call.
        unsafe {
            checked((self.library.rdma_accept)(self.id, &raw mut parameters))?;
            let mut attr =
                sys::ibv_qp_attr { min_rnr_timer: MIN_RNR_TIMER, ..sys::ibv_qp_attr::default() };
            // The default is 655 ms; a device that refuses keeps it.
            let mask = sys::IBV_QP_MIN_RNR_TIMER as i32;
            let _ = (self.library.ibv_modify_qp)((*self.id).qp, &raw mut attr, mask);
        }
        Ok(())
    }

    /// Sends REQ.
    pub(crate) fn connect(&self, private_data: &[u8], reads: Reads) -> io::Result<()> {
        let mut parameters = parameters(private_data, reads);
        // SAFETY: as in `accept`.
        checked(unsafe { (self.library.rdma_connect)(self.id, &raw mut parameters) })
    }

    /// Sends REJ, consumer defined.
    pub(crate) fn reject(&self, private_data: &[u8]) {
        let length = private_data.len().min(REJECT_BYTES_MAX);
        // SAFETY: the id is alive and the data valid for the call. A peer that is gone needs none.
        let _ = unsafe {
            (self.library.rdma_reject)(
                self.id,
                private_data.as_ptr().cast(),
                u8::try_from(length).unwrap_or(0),
            )
        };
    }

    /// A message came before the RTU: the connection is there.
    pub(crate) fn notify_established(&self) {
        // SAFETY: the id is alive. It fails where the RTU came meanwhile.
        let _ = unsafe { (self.library.rdma_notify)(self.id, sys::IBV_EVENT_COMM_EST) };
    }

    /// The queue pair to the error state, then DREQ, or DREP where the peer asked.
    pub(crate) fn disconnect(&self) {
        // SAFETY: the id is alive. Either call fails where the connection is over already.
        unsafe {
            if !(*self.id).qp.is_null() {
                let state =
                    sys::ibv_qp_attr { qp_state: sys::IBV_QPS_ERR, ..sys::ibv_qp_attr::default() };
                let (mut state, mask) = (state, sys::IBV_QP_STATE as i32);
                let modified = (self.library.ibv_modify_qp)((*self.id).qp, &raw mut state, mask);
                if let Err(error) = checked_errno(modified) {
                    tracing::debug!(%error, "a queue pair did not take the error state");
                }
            }
            let _ = (self.library.rdma_disconnect)(self.id);
        }
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: the id is alive and nobody else has it; its queue pair goes first.
        unsafe {
            if !(*self.id).qp.is_null() {
                (self.library.rdma_destroy_qp)(self.id);
            }
            (self.library.rdma_destroy_id)(self.id);
        }
    }
}

/// Outstanding RDMA READs of a connection in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reads {
    /// Ours at the peer.
    pub(crate) initiator: u8,
    /// The peer's at us.
    pub(crate) responder: u8,
}

impl Reads {
    /// What both ends and the device can do, where `wanted` is what we ask for and the request says
    /// what the peer can: its REQ's fields, as the connection manager hands them to the passive end.
    pub(crate) fn agree(wanted: u32, request: Self, attributes: &sys::ibv_device_attr) -> Self {
        let ours = |limit: i32| u8::try_from(limit.clamp(0, 255)).unwrap_or(0);
        let wanted = u8::try_from(wanted).unwrap_or(u8::MAX);
        Self {
            initiator: wanted.min(request.initiator).min(ours(attributes.max_qp_init_rd_atom)),
            responder: request.responder.min(ours(attributes.max_qp_rd_atom)),
        }
    }
}

fn parameters(private_data: &[u8], reads: Reads) -> sys::rdma_conn_param {
    let length = private_data.len().min(PrivateData::MAX);
    sys::rdma_conn_param {
        private_data: private_data.as_ptr().cast(),
        private_data_len: u8::try_from(length).unwrap_or(0),
        responder_resources: reads.responder,
        initiator_depth: reads.initiator,
        flow_control: 1,
        retry_count: RETRY_COUNT,
        rnr_retry_count: RNR_RETRY_UNLIMITED,
        srq: 0,
        qp_num: 0,
    }
}

/// A connection request that was not answered yet. Dropping it rejects without private data.
#[derive(Debug)]
pub struct IbvConnection {
    /// `None` once it is answered.
    id: Option<CmId>,
    pub(crate) reads: Reads,
}

impl IbvConnection {
    pub(crate) fn new(id: CmId, reads: Reads) -> Self {
        Self { id: Some(id), reads }
    }

    /// Takes the id; the caller answers.
    pub(crate) fn into_id(mut self) -> Option<CmId> {
        self.id.take()
    }

    pub(crate) fn reject(self, private_data: &[u8]) {
        if let Some(id) = self.into_id() {
            id.reject(private_data);
        }
    }
}

impl Drop for IbvConnection {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            id.reject(&[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_of_the_limits_on_outstanding_reads_holds() {
        // SAFETY: integers only.
        let mut device: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
        (device.max_qp_init_rd_atom, device.max_qp_rd_atom) = (16, 128);
        let agree = |wanted, initiator, responder, device: &_| {
            let agreed = Reads::agree(wanted, Reads { initiator, responder }, device);
            (agreed.initiator, agreed.responder)
        };
        assert_eq!(agree(16, 4, 0, &device), (4, 0));
        assert_eq!(agree(2, 4, 255, &device), (2, 128));
        assert_eq!(agree(1000, 255, 1, &device), (16, 1));
        device.max_qp_init_rd_atom = -1;
        assert_eq!(agree(16, 4, 0, &device).0, 0);
        device.max_qp_init_rd_atom = 4096;
        assert_eq!(agree(1000, 255, 0, &device).0, 255);
    }
}
