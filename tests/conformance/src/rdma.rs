//! A blocking RDMA peer over the C interface, independent of the provider under test. It knows no SRP.
#![allow(unsafe_code)] // calls into librdmacm and libibverbs

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lunar_platform::RemoteAddress;
use lunar_verbs_ibv_sys as sys;
use lunar_verbs_ibv_sys::Library;

/// Where its receives are posted in its buffer, and how long each is.
pub const RECEIVES_AT: usize = 0;
pub const RECEIVE_BYTES: usize = 4096;
pub const RECEIVES: usize = 144;
/// Sends that may be posted and not completed.
pub const SENDS: usize = 320;
/// Where the rest of the buffer, for RDMA, begins.
pub const DATA_AT: usize = RECEIVES_AT + RECEIVES * RECEIVE_BYTES;

/// `wr_id` of a send; that of a receive is its number.
pub const SENT: u64 = u64::MAX;

/// A registration of the buffer.
pub struct Exposed {
    library: &'static Library,
    mr: *mut sys::ibv_mr,
}

impl Exposed {
    /// The peer's key for it.
    pub fn key(&self) -> u32 {
        // SAFETY: registered until `drop`.
        unsafe { (*self.mr).rkey }
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        // SAFETY: registered by us.
        unsafe { (self.library.ibv_dereg_mr)(self.mr) };
    }
}

pub enum Answer {
    Accepted(Initiator, Vec<u8>),
    Rejected(Vec<u8>),
}

pub struct Initiator {
    library: &'static Library,
    id: *mut sys::rdma_cm_id,
    pd: *mut sys::ibv_pd,
    cq: *mut sys::ibv_cq,
    mr: *mut sys::ibv_mr,
    buffer: Vec<u8>,
    connected: bool,
}

// SAFETY: the libraries take calls from any thread.
unsafe impl Send for Initiator {}

fn check(result: i32, what: &'static str) -> anyhow::Result<()> {
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context(what);
    }
    Ok(())
}

impl Initiator {
    /// Connects to `port` at `address` with `private_data`, and [`RECEIVES`] receives posted; waits for the
    /// answer.
    pub fn connect(
        address: Ipv4Addr,
        port: u16,
        private_data: &[u8],
        bytes: usize,
    ) -> anyhow::Result<Answer> {
        Self::connect_with(address, port, private_data, bytes, RECEIVES)
    }

    /// [`Self::connect`] with so many receives posted.
    pub fn connect_with(
        address: Ipv4Addr,
        port: u16,
        private_data: &[u8],
        bytes: usize,
        receives: usize,
    ) -> anyhow::Result<Answer> {
        let library = Library::get()?;
        let mut to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: an id without channel makes the calls block; every pointer is alive.
        unsafe {
            let mut id = ptr::null_mut();
            let (none, ps) = (ptr::null_mut(), sys::RDMA_PS_TCP);
            check((library.rdma_create_id)(none, &raw mut id, ptr::null_mut(), ps), "create")?;
            let mut this = Self {
                library,
                id,
                pd: ptr::null_mut(),
                cq: ptr::null_mut(),
                mr: ptr::null_mut(),
                buffer: vec![0; DATA_AT + bytes],
                connected: false,
            };
            let address = (&raw mut to).cast();
            let resolved = (library.rdma_resolve_addr)(id, ptr::null_mut(), address, 2000);
            check(resolved, "resolve the address")?;
            check((library.rdma_resolve_route)(id, 2000), "resolve the route")?;
            this.pd = (library.ibv_alloc_pd)((*id).verbs);
            this.cq = (library.ibv_create_cq)(
                (*id).verbs,
                (RECEIVES + SENDS) as i32,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
            );
            let access = sys::IBV_ACCESS_LOCAL_WRITE
                | sys::IBV_ACCESS_REMOTE_READ
                | sys::IBV_ACCESS_REMOTE_WRITE;
            let (first, length) = (this.buffer.as_mut_ptr().cast(), this.buffer.len());
            this.mr = (library.ibv_reg_mr)(this.pd, first, length, access as i32);
            ensure!(!this.pd.is_null() && !this.cq.is_null() && !this.mr.is_null(), "no resources");
            let mut attr = sys::ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: this.cq,
                recv_cq: this.cq,
                srq: ptr::null_mut(),
                cap: sys::ibv_qp_cap {
                    max_send_wr: SENDS as u32,
                    max_recv_wr: RECEIVES as u32,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: 0,
                },
                qp_type: sys::IBV_QPT_RC,
                sq_sig_all: 1,
            };
            check((library.rdma_create_qp)(id, this.pd, &raw mut attr), "create the queue pair")?;
            for receive in 0..receives {
                this.post_receive(receive)?;
            }
            let mut parameters = sys::rdma_conn_param {
                private_data: private_data.as_ptr().cast(),
                private_data_len: private_data.len() as u8,
                responder_resources: 4,
                initiator_depth: 0,
                flow_control: 1,
                retry_count: 2,
                rnr_retry_count: 7,
                srq: 0,
                qp_num: 0,
            };
            let connected = (library.rdma_connect)(id, &raw mut parameters);
            let event = (*id).event;
            ensure!(!event.is_null(), "connect: {}", std::io::Error::last_os_error());
            let (data, length) = ((*event).conn.private_data, (*event).conn.private_data_len);
            let answer = if data.is_null() {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data.cast::<u8>(), length.into()).to_vec()
            };
            if connected == 0 {
                this.connected = true;
                return Ok(Answer::Accepted(this, answer));
            }
            let kind = (*event).event;
            ensure!(kind == sys::RDMA_CM_EVENT_REJECTED, "connect: event {kind}");
            ensure!((*event).status == 28, "rejected with reason {}", (*event).status);
            Ok(Answer::Rejected(answer))
        }
    }

    /// The same, where the answer must be yes.
    pub fn accepted(
        address: SocketAddrV4,
        private_data: &[u8],
        bytes: usize,
    ) -> anyhow::Result<(Self, Vec<u8>)> {
        match Self::connect(*address.ip(), address.port(), private_data, bytes)? {
            Answer::Accepted(this, answer) => Ok((this, answer)),
            Answer::Rejected(_) => bail!("rejected"),
        }
    }

    pub fn remote(&self, offset: usize) -> RemoteAddress {
        // SAFETY: registered.
        let key = unsafe { (*self.mr).rkey };
        RemoteAddress { address: self.buffer.as_ptr() as u64 + offset as u64, key }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    pub fn post_receive(&mut self, receive: usize) -> anyhow::Result<()> {
        // SAFETY: inside the registered buffer.
        unsafe {
            let mut entry = sys::ibv_sge {
                addr: self.buffer.as_ptr() as u64 + (receive * RECEIVE_BYTES) as u64,
                length: RECEIVE_BYTES as u32,
                lkey: (*self.mr).lkey,
            };
            let mut work = sys::ibv_recv_wr {
                wr_id: receive as u64,
                next: ptr::null_mut(),
                sg_list: &raw mut entry,
                num_sge: 1,
            };
            let mut bad = ptr::null_mut();
            check(sys::ibv_post_recv((*self.id).qp, &raw mut work, &raw mut bad), "post a receive")
        }
    }

    /// Posts a send of `length` bytes from `offset`. Its completion is [`SENT`].
    pub fn post_send(&mut self, offset: usize, length: usize) -> anyhow::Result<()> {
        // SAFETY: inside the registered buffer.
        unsafe {
            let mut entry = sys::ibv_sge {
                addr: self.buffer.as_ptr() as u64 + offset as u64,
                length: length as u32,
                lkey: (*self.mr).lkey,
            };
            let mut work = sys::ibv_send_wr {
                wr_id: SENT,
                sg_list: &raw mut entry,
                num_sge: 1,
                opcode: sys::IBV_WR_SEND,
                send_flags: sys::IBV_SEND_SIGNALED,
                ..sys::ibv_send_wr::EMPTY
            };
            let mut bad = ptr::null_mut();
            check(sys::ibv_post_send((*self.id).qp, &raw mut work, &raw mut bad), "post a send")
        }
    }

    /// Sends `length` bytes from `offset`; waits until they are acknowledged.
    pub fn send(&mut self, offset: usize, length: usize) -> anyhow::Result<()> {
        self.post_send(offset, length)?;
        let completion = self.completion()?;
        ensure!(completion.wr_id == SENT, "a receive completed first");
        Ok(())
    }

    /// A key for the buffer from `offset` on, beside the one of [`Self::remote`], which is over when it is dropped.
    pub fn expose(&mut self, offset: usize) -> anyhow::Result<Exposed> {
        let access = sys::IBV_ACCESS_LOCAL_WRITE
            | sys::IBV_ACCESS_REMOTE_READ
            | sys::IBV_ACCESS_REMOTE_WRITE;
        let bytes = &mut self.buffer[offset..];
        let (first, length) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the buffer is there as long as the protection domain, which outlives its regions.
        let mr = unsafe { (self.library.ibv_reg_mr)(self.pd, first, length, access as i32) };
        ensure!(!mr.is_null(), "register: {}", std::io::Error::last_os_error());
        Ok(Exposed { library: self.library, mr })
    }

    /// The next successful completion.
    pub fn completion(&mut self) -> anyhow::Result<sys::ibv_wc> {
        self.completion_within(Duration::from_secs(20))?.context("no completion within 20 s")
    }

    /// The next successful completion, if it comes within `patience`.
    pub fn completion_within(&mut self, patience: Duration) -> anyhow::Result<Option<sys::ibv_wc>> {
        let until = Instant::now() + patience;
        let mut completion = sys::ibv_wc::default();
        while Instant::now() < until {
            // SAFETY: the queue is alive, and there is room for one.
            match unsafe { sys::ibv_poll_cq(self.cq, 1, &raw mut completion) } {
                0 => std::thread::sleep(Duration::from_micros(200)),
                1 => {
                    ensure!(completion.status == 0, "a work request failed: {completion:?}");
                    return Ok(Some(completion));
                }
                other => bail!("poll: {other}"),
            }
        }
        Ok(None)
    }

    pub fn disconnect(&mut self) {
        if std::mem::take(&mut self.connected) {
            // SAFETY: connected.
            unsafe { (self.library.rdma_disconnect)(self.id) };
        }
    }

    /// Goes without a word: the queue pair is destroyed, no DREQ is sent.
    pub fn vanish(&mut self) {
        self.connected = false;
        // SAFETY: it has a queue pair.
        unsafe { (self.library.rdma_destroy_qp)(self.id) };
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        self.disconnect();
        // SAFETY: each is ours, and destroyed ahead of what it stands on.
        unsafe {
            if !(*self.id).qp.is_null() {
                (self.library.rdma_destroy_qp)(self.id);
            }
            if !self.mr.is_null() {
                (self.library.ibv_dereg_mr)(self.mr);
            }
            if !self.cq.is_null() {
                (self.library.ibv_destroy_cq)(self.cq);
            }
            if !self.pd.is_null() {
                (self.library.ibv_dealloc_pd)(self.pd);
            }
            (self.library.rdma_destroy_id)(self.id);
        }
    }
}
