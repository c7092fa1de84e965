//! One of two transports: what a card with both RDMA and VSCSI takes for its HCA. Each poll group has one of them, and the
//! coordinator listens on both. Only choices live here.

use std::os::fd::BorrowedFd;

use lunar_platform::{
    AnsweredRequest, CmError, CmEvent, ConnectRequest, Delivery, Hca, HcaAttributes, Listener,
    Nanoseconds, PostError, QpHandle, QpParameters, ReceiveRequest, SendRequest, WorkCompletion,
};

/// A poll group's transport.
pub enum Transport<R, V> {
    /// RDMA.
    Rdma(R),
    /// VSCSI.
    Vscsi(V),
}

/// A connection request of either.
pub enum TransportConnection<R, V> {
    /// Over RDMA.
    Rdma(R),
    /// Over VSCSI.
    Vscsi(V),
}

/// Where connection requests of both arrive.
pub struct TransportListener<R, V> {
    rdma: R,
    vscsi: V,
}

impl<R, V> TransportListener<R, V> {
    /// A listener on both.
    pub fn new(rdma: R, vscsi: V) -> Self {
        Self { rdma, vscsi }
    }
}

impl<R: Listener, V: Listener> Listener for TransportListener<R, V> {
    type Connection = TransportConnection<R::Connection, V::Connection>;

    fn poll(&mut self) -> Option<ConnectRequest<Self::Connection>> {
        if let Some(request) = self.rdma.poll() {
            return Some(over(request, TransportConnection::Rdma));
        }
        self.vscsi.poll().map(|request| over(request, TransportConnection::Vscsi))
    }

    fn reject(&mut self, connection: Self::Connection, private_data: &[u8]) {
        match connection {
            TransportConnection::Rdma(connection) => self.rdma.reject(connection, private_data),
            TransportConnection::Vscsi(connection) => self.vscsi.reject(connection, private_data),
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        // A VSCSI login is looked for with every turn of the control thread.
        self.rdma.event_fd()
    }
}

fn over<A, B>(request: ConnectRequest<A>, make: impl FnOnce(A) -> B) -> ConnectRequest<B> {
    let ConnectRequest { connection, private_data, peer, device } = request;
    ConnectRequest { connection: make(connection), private_data, peer, device }
}

/// The same call of whichever it is.
macro_rules! either {
    ($transport:expr, $hca:ident => $call:expr) => {
        match $transport {
            Transport::Rdma($hca) => $call,
            Transport::Vscsi($hca) => $call,
        }
    };
}

impl<R: Hca, V: Hca> Hca for Transport<R, V> {
    type Connection = TransportConnection<R::Connection, V::Connection>;

    const SHOWS_IUS: bool = R::SHOWS_IUS || V::SHOWS_IUS;

    fn takes_requests(&self) -> bool {
        either!(self, hca => hca.takes_requests())
    }

    fn reported_lun(&self, number: u16, asked: Option<u16>) -> Option<u16> {
        either!(self, hca => hca.reported_lun(number, asked))
    }

    #[inline]
    fn begin_tick(&mut self, now: Nanoseconds) {
        either!(self, hca => hca.begin_tick(now));
    }

    #[inline]
    fn deliver(&mut self, completion: &WorkCompletion, buffer: &mut [u8]) -> Delivery {
        either!(self, hca => hca.deliver(completion, buffer))
    }

    #[inline]
    fn prepare_answer(&mut self, qp: QpHandle, request: AnsweredRequest, iu: &mut [u8]) {
        either!(self, hca => hca.prepare_answer(qp, request, iu));
    }

    fn forget_request(&mut self, qp: QpHandle, tag: u64) {
        either!(self, hca => hca.forget_request(qp, tag));
    }

    fn attributes(&self) -> HcaAttributes {
        either!(self, hca => hca.attributes())
    }

    fn accept(
        &mut self,
        connection: Self::Connection,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        match (self, connection) {
            (Self::Rdma(hca), TransportConnection::Rdma(connection)) => {
                hca.accept(connection, parameters, private_data)
            }
            (Self::Vscsi(hca), TransportConnection::Vscsi(connection)) => {
                hca.accept(connection, parameters, private_data)
            }
            // A group gets the requests of its own device alone; dropping another refuses it.
            _ => Err(CmError::Invalid),
        }
    }

    fn reject(&mut self, connection: Self::Connection, private_data: &[u8]) {
        match (self, connection) {
            (Self::Rdma(hca), TransportConnection::Rdma(connection)) => {
                hca.reject(connection, private_data);
            }
            (Self::Vscsi(hca), TransportConnection::Vscsi(connection)) => {
                hca.reject(connection, private_data);
            }
            _ => {}
        }
    }

    fn disconnect(&mut self, qp: QpHandle) {
        either!(self, hca => hca.disconnect(qp));
    }

    fn destroy(&mut self, qp: QpHandle) {
        either!(self, hca => hca.destroy(qp));
    }

    #[inline]
    fn poll_cm(&mut self) -> Option<CmEvent> {
        either!(self, hca => hca.poll_cm())
    }

    #[inline]
    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError> {
        either!(self, hca => hca.post_receive(request))
    }

    #[inline]
    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError> {
        either!(self, hca => hca.post_send(qp, chain))
    }

    #[inline]
    fn ring(&mut self, qp: QpHandle) {
        either!(self, hca => hca.ring(qp));
    }

    #[inline]
    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize {
        either!(self, hca => hca.poll(completions))
    }

    fn arm(&mut self) -> bool {
        either!(self, hca => hca.arm())
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        either!(self, hca => hca.event_fd())
    }
}
