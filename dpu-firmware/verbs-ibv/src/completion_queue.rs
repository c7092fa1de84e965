//! A completion queue with a channel of its own: extended polling where the device offers it, plain
//! polling otherwise.
#![allow(unsafe_code)] // calls into libibverbs and its providers

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;

use lunar_platform::CompletionStatus;
use lunar_verbs_ibv_sys as sys;

use crate::device::DeviceState;
use crate::error::{OpenError, checked_errno, checked_pointer};

/// Completions taken with one poll.
const BATCH: usize = 32;

/// A completion as the device reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawCompletion {
    pub(crate) wr_id: u64,
    pub(crate) status: CompletionStatus,
    pub(crate) length: u32,
    pub(crate) qp_number: u32,
}

impl RawCompletion {
    pub(crate) const EMPTY: Self =
        Self { wr_id: 0, status: CompletionStatus::Success, length: 0, qp_number: 0 };
}

/// The device's word for how a work request ended, in ours.
pub(crate) fn status(code: u32) -> CompletionStatus {
    match code {
        sys::IBV_WC_SUCCESS => CompletionStatus::Success,
        sys::IBV_WC_LOC_LEN_ERR => CompletionStatus::LocalLength,
        sys::IBV_WC_LOC_PROT_ERR | sys::IBV_WC_LOC_ACCESS_ERR => CompletionStatus::LocalProtection,
        sys::IBV_WC_WR_FLUSH_ERR => CompletionStatus::Flushed,
        sys::IBV_WC_REM_ACCESS_ERR => CompletionStatus::RemoteAccess,
        sys::IBV_WC_REM_OP_ERR
        | sys::IBV_WC_REM_INV_REQ_ERR
        | sys::IBV_WC_REM_INV_RD_REQ_ERR
        | sys::IBV_WC_REM_ABORT_ERR => CompletionStatus::RemoteOperation,
        sys::IBV_WC_RETRY_EXC_ERR | sys::IBV_WC_RESP_TIMEOUT_ERR => CompletionStatus::RetryExceeded,
        sys::IBV_WC_RNR_RETRY_EXC_ERR => CompletionStatus::RnrRetryExceeded,
        sys::IBV_WC_FATAL_ERR => CompletionStatus::Fatal,
        // IBV_WC_LOC_QP_OP_ERR, and what reliable connections do not have.
        _ => CompletionStatus::LocalQpOperation,
    }
}

/// The functions of extended polling, all there.
#[derive(Clone, Copy, Debug)]
struct Extended {
    cq: *mut sys::ibv_cq_ex,
    start: unsafe extern "C" fn(*mut sys::ibv_cq_ex, *mut sys::ibv_poll_cq_attr) -> i32,
    next: unsafe extern "C" fn(*mut sys::ibv_cq_ex) -> i32,
    end: unsafe extern "C" fn(*mut sys::ibv_cq_ex),
    length: unsafe extern "C" fn(*mut sys::ibv_cq_ex) -> u32,
    qp_number: unsafe extern "C" fn(*mut sys::ibv_cq_ex) -> u32,
    /// Each completion is begun and ended by itself.
    singly: bool,
}

/// What rxe says its vendor is.
const RXE_VENDOR: u32 = 0x00ff_ffff;

/// One completion queue.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    device: Arc<DeviceState>,
    channel: *mut sys::ibv_comp_channel,
    cq: *mut sys::ibv_cq,
    extended: Option<Extended>,
    plain: Box<[sys::ibv_wc]>,
    /// Events that were read and not acknowledged yet.
    unacknowledged: u32,
}

// SAFETY: CQs may be used from any thread; `&mut self` makes it one at a time.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `depth` completions, its interrupt on `vector`.
    pub(crate) fn new(
        device: &Arc<DeviceState>,
        depth: u32,
        vector: u32,
    ) -> Result<Self, OpenError> {
        let library = device.library;
        // SAFETY: an open device.
        let channel = unsafe { checked_pointer((library.ibv_create_comp_channel)(device.context)) }
            .map_err(device.failed("a completion channel"))?;
        let mut queue = Self {
            device: Arc::clone(device),
            channel,
            cq: ptr::null_mut(),
            extended: None,
            plain: Box::new([]),
            unacknowledged: 0,
        };
        // SAFETY: the channel is open until `queue` is dropped.
        let fd = unsafe { BorrowedFd::borrow_raw((*channel).fd) };
        rustix::io::ioctl_fionbio(fd, true)
            .map_err(|error| device.failed("a completion channel")(error.into()))?;
        // SAFETY: an open device.
        let vectors = unsafe { (*device.context).num_comp_vectors };
        let vector = vector % u32::try_from(vectors).unwrap_or(1).max(1);
        queue.create(depth, vector).map_err(
            device.failed(format!("a completion queue of {depth} entries (--slots, --channels)")),
        )?;
        Ok(queue)
    }

    fn create(&mut self, depth: u32, vector: u32) -> io::Result<()> {
        let mut wanted = sys::ibv_cq_init_attr_ex {
            cqe: depth,
            cq_context: ptr::null_mut(),
            channel: self.channel,
            comp_vector: vector,
            wc_flags: u64::from(sys::IBV_WC_EX_WITH_BYTE_LEN | sys::IBV_WC_EX_WITH_QP_NUM),
            comp_mask: 0,
            flags: 0,
            parent_domain: ptr::null_mut(),
        };
        // SAFETY: an open device, valid attributes; the functions are read from the new CQ.
        unsafe {
            let cq = sys::ibv_create_cq_ex(self.device.context, &raw mut wanted);
            if !cq.is_null() {
                self.cq = cq.cast();
                if let (Some(start), Some(next), Some(end), Some(length), Some(qp_number)) = (
                    (*cq).start_poll,
                    (*cq).next_poll,
                    (*cq).end_poll,
                    (*cq).read_byte_len,
                    (*cq).read_qp_num,
                ) {
                    // When `next` finds nothing, librxe (seen in 44) has let go of the queue already,
                    // and `end`, which must follow, moves on by one that is not there.
                    let singly = self.device.attributes.vendor_id == RXE_VENDOR;
                    self.extended =
                        Some(Extended { cq, start, next, end, length, qp_number, singly });
                    return Ok(());
                }
            }
        }
        self.plain = vec![sys::ibv_wc::default(); BATCH].into_boxed_slice();
        if self.cq.is_null() {
            let entries = i32::try_from(depth).unwrap_or(i32::MAX);
            let vector = i32::try_from(vector).unwrap_or(0);
            // SAFETY: an open device and its channel.
            self.cq = checked_pointer(unsafe {
                (self.device.library.ibv_create_cq)(
                    self.device.context,
                    entries,
                    ptr::null_mut(),
                    self.channel,
                    vector,
                )
            })?;
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> *mut sys::ibv_cq {
        self.cq
    }

    /// Whether extended polling is used.
    pub(crate) fn is_extended(&self) -> bool {
        self.extended.is_some()
    }

    /// Takes completions; gives their number.
    #[inline]
    pub(crate) fn poll(&mut self, out: &mut [RawCompletion]) -> usize {
        match self.extended {
            Some(extended) => poll_extended(&extended, out),
            None => self.poll_plain(out),
        }
    }

    fn poll_plain(&mut self, out: &mut [RawCompletion]) -> usize {
        let entries = i32::try_from(out.len().min(self.plain.len())).unwrap_or(0);
        // SAFETY: the queue is alive and there is room for so many.
        let count = unsafe { sys::ibv_poll_cq(self.cq, entries, self.plain.as_mut_ptr()) };
        let count = usize::try_from(count).unwrap_or(0);
        for (out, wc) in out.iter_mut().zip(self.plain.iter().take(count)) {
            *out = RawCompletion {
                wr_id: wc.wr_id,
                status: status(wc.status),
                length: wc.byte_len,
                qp_number: wc.qp_num,
            };
        }
        count
    }

    /// Asks for an event at the next completion, after taking those that were reported before.
    pub(crate) fn arm(&mut self) -> io::Result<()> {
        loop {
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is alive and does not block.
            let result = unsafe {
                (self.device.library.ibv_get_cq_event)(self.channel, &raw mut cq, &raw mut context)
            };
            if result != 0 {
                break;
            }
            self.unacknowledged += 1;
        }
        if self.unacknowledged >= 1024 {
            self.acknowledge();
        }
        // SAFETY: the queue is alive.
        checked_errno(unsafe { sys::ibv_req_notify_cq(self.cq) })
    }

    fn acknowledge(&mut self) {
        if self.unacknowledged > 0 {
            // SAFETY: so many events were read and not acknowledged.
            unsafe { (self.device.library.ibv_ack_cq_events)(self.cq, self.unacknowledged) };
            self.unacknowledged = 0;
        }
    }

    /// Readable at a completion after [`Self::arm`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `drop`.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }
}

/// Takes every completion from the queue that `queue` names in its owner, and has the owner deal with each.
#[inline]
pub(crate) fn take_all<T>(
    owner: &mut T,
    queue: impl Fn(&mut T) -> &mut CompletionQueue,
    complete: impl Fn(&mut T, &RawCompletion),
) {
    let mut raw = [RawCompletion::EMPTY; BATCH];
    loop {
        let count = queue(owner).poll(&mut raw);
        raw[..count].iter().for_each(|raw| complete(owner, raw));
        if count < raw.len() {
            return;
        }
    }
}

#[inline]
fn poll_extended(extended: &Extended, out: &mut [RawCompletion]) -> usize {
    let cq = extended.cq;
    let mut nothing = sys::ibv_poll_cq_attr::default();
    let mut count = 0;
    // SAFETY: the queue is alive; a completion is read between a successful start or next and the
    // following next or end, and length and number were asked for when the queue was made.
    unsafe {
        while count < out.len() {
            if (extended.start)(cq, &raw mut nothing) != 0 {
                break;
            }
            loop {
                out[count] = RawCompletion {
                    wr_id: (*cq).wr_id,
                    status: status((*cq).status),
                    length: (extended.length)(cq),
                    qp_number: (extended.qp_number)(cq),
                };
                count += 1;
                if extended.singly || count == out.len() || (extended.next)(cq) != 0 {
                    break;
                }
            }
            (extended.end)(cq);
            if !extended.singly {
                break;
            }
        }
    }
    count
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let library = self.device.library;
        if !self.cq.is_null() {
            self.acknowledge();
            // SAFETY: its queue pairs are gone: their owners hold them ahead of this.
            unsafe { (library.ibv_destroy_cq)(self.cq) };
        }
        // SAFETY: its only queue is gone.
        unsafe { (library.ibv_destroy_comp_channel)(self.channel) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_the_device_has_a_meaning_and_only_success_is_success() {
        assert_eq!(status(0), CompletionStatus::Success);
        assert!((1..64).all(|code| status(code) != CompletionStatus::Success));
        assert_eq!(status(sys::IBV_WC_WR_FLUSH_ERR), CompletionStatus::Flushed);
        assert_eq!(status(sys::IBV_WC_REM_INV_REQ_ERR), CompletionStatus::RemoteOperation);
        assert_eq!(status(u32::MAX), CompletionStatus::LocalQpOperation);
    }
}
