//! Login: what travels in the private data of the connection manager's REQ, REP and REJ
//! (SRP 6.2 to 6.4, and SRP's annexes for InfiniBand and the RDMA/CM).
//!
//! Parsing, the decision that needs nothing but the request and the target port's policy, and the
//! words for the log when the answer is no. Decisions that need counts of what is there (channels of
//! the nexus, free slots) are the target's; their reasons are here.

use core::fmt;

use zerocopy::{FromBytes, IntoBytes};

use crate::iu::put;
use crate::wire::{self, login_flag, opcode};

/// Smallest `REQUESTED MAX IT IU LENGTH` a login may ask for (SRP 6.2): one command with one
/// direct descriptor.
pub const IT_IU_BYTES_MIN: u32 = 64;
/// Descriptor formats this target takes: direct and indirect.
pub const FORMATS: u16 = wire::format::DIRECT_BIT | wire::format::INDIRECT_BIT;

/// An SRP port identifier: 8 bytes of identifier extension and 8 of GUID, in either order
/// (SRP annex B; I/O class FF00h has them swapped).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub [u8; 16]);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#034x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which layout a login request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginForm {
    /// 64 bytes, in an InfiniBand CM REQ, whose private data is zero-padded to 92.
    InfiniBand,
    /// 56 bytes, through the RDMA/CM.
    RdmaCm,
}

/// Multi-channel action (SRP 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Every other channel of the same nexus is terminated.
    Single,
    /// Other channels of the same nexus stay.
    Multi,
}

/// An SRP_LOGIN_REQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// Which layout it came in, or is to be encoded in.
    pub form: LoginForm,
    /// Echoed in the answer.
    pub tag: u64,
    /// Longest IU in bytes that the initiator wants to send.
    pub it_iu_bytes: u32,
    /// Descriptor formats the initiator wants to use ([`wire::format`] bits).
    pub formats: u16,
    /// What happens to the nexus's other channels.
    pub action: Action,
    /// Offset in bytes at which the initiator would put immediate data, if it asks for it (SRP-2).
    /// This target does not grant it yet.
    pub immediate_offset: Option<u16>,
    /// The initiator port: half of the nexus's name.
    pub initiator_port: PortId,
    /// The target port: the other half.
    pub target_port: PortId,
}

/// Parses a login request. The form is told by the length: 64 bytes or more are the InfiniBand form
/// (what follows is the REQ's padding), 56 to 63 the RDMA/CM form. The opcode must stand in that
/// form's place.
///
/// # Errors
/// [`LoginReject::CannotEstablish`] when it is no login request; [`explain_malformed`] says why.
pub fn parse(private_data: &[u8]) -> Result<LoginRequest, LoginReject> {
    if let Ok((request, _)) = wire::LoginRequest::ref_from_prefix(private_data) {
        if request.opcode != opcode::LOGIN_REQUEST {
            return Err(LoginReject::CannotEstablish);
        }
        Ok(LoginRequest {
            form: LoginForm::InfiniBand,
            tag: request.tag.get(),
            it_iu_bytes: request.it_iu_bytes.get(),
            formats: request.formats.get(),
            action: action_from_wire(request.flags),
            immediate_offset: immediate_from_wire(request.flags, request.immediate_offset.get()),
            initiator_port: PortId(request.initiator_port),
            target_port: PortId(request.target_port),
        })
    } else if let Ok((request, _)) = wire::LoginRequestRdmaCm::ref_from_prefix(private_data) {
        if request.opcode != opcode::LOGIN_REQUEST {
            return Err(LoginReject::CannotEstablish);
        }
        Ok(LoginRequest {
            form: LoginForm::RdmaCm,
            tag: request.tag.get(),
            it_iu_bytes: request.it_iu_bytes.get(),
            formats: request.formats.get(),
            action: action_from_wire(request.flags),
            immediate_offset: immediate_from_wire(request.flags, request.immediate_offset.get()),
            initiator_port: PortId(request.initiator_port),
            target_port: PortId(request.target_port),
        })
    } else {
        Err(LoginReject::CannotEstablish)
    }
}

/// Says why [`parse`] refused `private_data`.
#[must_use]
pub fn explain_malformed(private_data: &[u8]) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| {
        let bytes = private_data.len();
        let opcode_offset = match bytes {
            64.. => 0,
            56..64 => core::mem::offset_of!(wire::LoginRequestRdmaCm, opcode),
            _ => {
                return write!(
                    f,
                    "login refused: {bytes} bytes of private data, but an SRP login request has 64 \
                     (InfiniBand) or 56 (RDMA/CM); does the peer speak SRP?"
                );
            }
        };
        let found = private_data.get(opcode_offset).copied().unwrap_or_default();
        write!(
            f,
            "login refused: byte {opcode_offset} of {bytes} is {found:#04x}, but an SRP login request \
             has 0x00 there; does the peer speak SRP?"
        )
    })
}

/// Encodes a login request in its form; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_request(request: &LoginRequest, out: &mut [u8]) -> Option<usize> {
    let mut flags = match request.action {
        Action::Single => 0,
        Action::Multi => login_flag::MULTI,
    };
    if request.immediate_offset.is_some() {
        flags |= login_flag::IMMEDIATE_REQUESTED;
    }
    let immediate_offset = request.immediate_offset.unwrap_or(0).into();
    let mut at = 0;
    match request.form {
        LoginForm::InfiniBand => {
            let wire = wire::LoginRequest {
                opcode: opcode::LOGIN_REQUEST,
                reserved_1: [0; 7],
                tag: request.tag.into(),
                it_iu_bytes: request.it_iu_bytes.into(),
                reserved_20: [0; 4],
                formats: request.formats.into(),
                flags,
                reserved_27: 0,
                immediate_offset,
                reserved_30: [0; 2],
                initiator_port: request.initiator_port.0,
                target_port: request.target_port.0,
            };
            put(out, &mut at, wire.as_bytes())?;
        }
        LoginForm::RdmaCm => {
            let wire = wire::LoginRequestRdmaCm {
                tag: request.tag.into(),
                formats: request.formats.into(),
                flags,
                opcode: opcode::LOGIN_REQUEST,
                it_iu_bytes: request.it_iu_bytes.into(),
                initiator_port: request.initiator_port.0,
                target_port: request.target_port.0,
                immediate_offset,
                reserved_50: [0; 6],
            };
            put(out, &mut at, wire.as_bytes())?;
        }
    }
    Some(at)
}

/// Reserved codes count as SINGLE: a stale channel is the greater harm.
fn action_from_wire(flags: u8) -> Action {
    match flags & login_flag::ACTION_MASK {
        login_flag::MULTI => Action::Multi,
        _ => Action::Single,
    }
}

fn immediate_from_wire(flags: u8, offset: u16) -> Option<u16> {
    (flags & login_flag::IMMEDIATE_REQUESTED != 0).then_some(offset)
}

/// Where immediate data may begin at the least: behind a CDB of 16 bytes and its own descriptor.
pub const IMMEDIATE_OFFSET_MIN: u16 = 48 + 4;

/// Where the initiator's immediate data will lie, if it asked for that and can have it: the offset must
/// leave room for a command and its descriptor, and must lie in the IU. Otherwise the login goes on
/// without immediate data.
#[must_use]
pub fn immediate_granted(request: &LoginRequest) -> Option<u16> {
    request.immediate_offset.filter(|offset| {
        *offset >= IMMEDIATE_OFFSET_MIN && u32::from(*offset) < request.it_iu_bytes
    })
}

/// What a target port asks of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginPolicy {
    /// Whether the target port takes logins at all.
    pub enabled: bool,
    /// The target port's identifier.
    pub target_port: PortId,
    /// Longest IU in bytes that a receive buffer holds.
    pub it_iu_bytes_max: u32,
    /// Credits a channel is granted at login; named when there is no room for them.
    pub request_limit: u32,
    /// Most channels of one nexus; 1 = no multi-channel.
    pub channels_max: u32,
}

/// Decides what can be decided from the request alone, in the order of SCST and LIO: IU length, port
/// enabled, target port; then formats and multi-channel.
///
/// # Errors
/// The reason to reject it with.
pub fn decide(request: &LoginRequest, policy: &LoginPolicy) -> Result<(), LoginReject> {
    if !(IT_IU_BYTES_MIN..=policy.it_iu_bytes_max).contains(&request.it_iu_bytes) {
        return Err(LoginReject::IuTooLarge);
    }
    if !policy.enabled {
        return Err(LoginReject::CannotEstablish);
    }
    if request.target_port != policy.target_port {
        return Err(LoginReject::CannotAssociate);
    }
    // An initiator that names no format is taken, as SCST and LIO do: it may send none at all.
    if request.formats != 0 && request.formats & FORMATS == 0 {
        return Err(LoginReject::UnsupportedFormat);
    }
    if request.action == Action::Multi && policy.channels_max <= 1 {
        return Err(LoginReject::NoMultiChannel);
    }
    Ok(())
}

/// Reasons of an SRP_LOGIN_REJ (SRP 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LoginReject {
    /// Unable to establish an RDMA channel: no login request, or the port is disabled.
    CannotEstablish = 0x0001_0000,
    /// Insufficient RDMA channel resources.
    InsufficientResources = 0x0001_0001,
    /// Requested max IT IU length too large; by custom also when it is too small.
    IuTooLarge = 0x0001_0002,
    /// Unable to associate the channel with an I_T nexus: another target port is meant.
    CannotAssociate = 0x0001_0003,
    /// Unsupported descriptor format.
    UnsupportedFormat = 0x0001_0004,
    /// Multiple RDMA channels per I_T nexus are not supported.
    NoMultiChannel = 0x0001_0005,
    /// The nexus has as many channels as it may.
    ChannelLimit = 0x0001_0006,
}

impl LoginReject {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::CannotEstablish,
        Self::InsufficientResources,
        Self::IuTooLarge,
        Self::CannotAssociate,
        Self::UnsupportedFormat,
        Self::NoMultiChannel,
        Self::ChannelLimit,
    ];

    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reject| reject.code() == code)
    }

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The reason in words, for the log: who was refused, the value, the limit, and the way out.
    #[must_use]
    pub fn explain<'a>(
        self,
        request: &'a LoginRequest,
        policy: &'a LoginPolicy,
    ) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| {
            write!(
                f,
                "login of initiator port {} to target port {} refused: ",
                request.initiator_port, request.target_port
            )?;
            self.explain_cause(request, policy, f)
        })
    }

    fn explain_cause(
        self,
        request: &LoginRequest,
        policy: &LoginPolicy,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        match self {
            Self::CannotEstablish if !policy.enabled => {
                f.write_str("the target port is disabled; enable it to let initiators in")
            }
            Self::CannotEstablish => {
                f.write_str("the RDMA channel could not be established; let the initiator retry")
            }
            Self::InsufficientResources => write!(
                f,
                "no room for another channel of {} credits; lower the request limit or log other \
                 initiators out",
                policy.request_limit
            ),
            Self::IuTooLarge if request.it_iu_bytes < IT_IU_BYTES_MIN => write!(
                f,
                "it wants to send IUs of at most {} bytes, but a command needs {IT_IU_BYTES_MIN}; \
                 raise the initiator's IU length",
                request.it_iu_bytes
            ),
            Self::IuTooLarge => write!(
                f,
                "it asked for IUs of {} bytes; the limit is {}: lower cmd_sg_entries at the initiator, or \
                 raise srp_max_req_size of the card",
                request.it_iu_bytes, policy.it_iu_bytes_max
            ),
            Self::CannotAssociate => write!(
                f,
                "this target port is {}; correct id_ext and ioc_guid at the initiator",
                policy.target_port
            ),
            Self::UnsupportedFormat => write!(
                f,
                "it wants descriptor formats {:#06x}, but only {FORMATS:#06x} (direct, indirect) \
                 are supported; let the initiator use one of them",
                request.formats
            ),
            Self::NoMultiChannel => f.write_str(
                "it wants a further channel, but this target port allows one a nexus; set \
                 ch_count=1 at the initiator or raise the target's channel limit",
            ),
            Self::ChannelLimit => write!(
                f,
                "the nexus has its {} channels already; lower ch_count at the initiator or raise \
                 the target's channel limit",
                policy.channels_max
            ),
        }
    }
}

/// What became of the nexus's other channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherChannels {
    /// There were none.
    None,
    /// They were terminated (SINGLE).
    Terminated,
    /// They were kept (MULTI).
    Maintained,
}

/// An SRP_LOGIN_RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// The request's tag.
    pub tag: u64,
    /// Requests the initiator may send before the first response.
    pub request_limit: i32,
    /// Longest IU in bytes the initiator may send.
    pub it_iu_bytes_max: u32,
    /// Longest IU in bytes the target sends.
    pub ti_iu_bytes_max: u32,
    /// Descriptor formats the target takes.
    pub formats: u16,
    /// What became of the nexus's other channels.
    pub others: OtherChannels,
    /// Whether the target takes immediate data (SRP-2).
    pub immediate: bool,
}

/// Encodes a login response; gives its length in bytes (52), `None` when it does not fit.
#[must_use]
pub fn encode_response(response: &LoginResponse, out: &mut [u8]) -> Option<usize> {
    let mut flags = match response.others {
        OtherChannels::None => 0,
        OtherChannels::Terminated => login_flag::TERMINATED,
        OtherChannels::Maintained => login_flag::MAINTAINED,
    };
    if response.immediate {
        flags |= login_flag::IMMEDIATE_SUPPORTED;
    }
    let wire = wire::LoginResponse {
        opcode: opcode::LOGIN_RESPONSE,
        reserved_1: [0; 3],
        request_limit_delta: response.request_limit.into(),
        tag: response.tag.into(),
        it_iu_bytes_max: response.it_iu_bytes_max.into(),
        ti_iu_bytes_max: response.ti_iu_bytes_max.into(),
        formats: response.formats.into(),
        flags,
        reserved_27: [0; 25],
    };
    let mut at = 0;
    put(out, &mut at, wire.as_bytes())?;
    Some(at)
}

/// Encodes a login reject; gives its length in bytes (32), `None` when it does not fit.
#[must_use]
pub fn encode_reject(reason: LoginReject, tag: u64, out: &mut [u8]) -> Option<usize> {
    let wire = wire::LoginReject {
        opcode: opcode::LOGIN_REJECT,
        reserved_1: [0; 3],
        reason: reason.code().into(),
        tag: tag.into(),
        reserved_16: [0; 8],
        formats: FORMATS.into(),
        reserved_26: [0; 6],
    };
    let mut at = 0;
    put(out, &mut at, wire.as_bytes())?;
    Some(at)
}

/// Parses the private data of a REP, for the initiator: `None` when it is no login response. Padding
/// behind it is ignored.
#[must_use]
pub fn parse_response(private_data: &[u8]) -> Option<LoginResponse> {
    let (wire, _) = wire::LoginResponse::ref_from_prefix(private_data).ok()?;
    if wire.opcode != opcode::LOGIN_RESPONSE {
        return None;
    }
    Some(LoginResponse {
        tag: wire.tag.get(),
        request_limit: wire.request_limit_delta.get(),
        it_iu_bytes_max: wire.it_iu_bytes_max.get(),
        ti_iu_bytes_max: wire.ti_iu_bytes_max.get(),
        formats: wire.formats.get(),
        others: match wire.flags & login_flag::ACTION_MASK {
            login_flag::TERMINATED => OtherChannels::Terminated,
            login_flag::MAINTAINED => OtherChannels::Maintained,
            _ => OtherChannels::None,
        },
        immediate: wire.flags & login_flag::IMMEDIATE_SUPPORTED != 0,
    })
}

/// An SRP_LOGIN_REJ as an initiator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The request's tag.
    pub tag: u64,
    /// The reason's code; [`LoginReject::from_code`] names it.
    pub reason: u32,
    /// Descriptor formats the target takes.
    pub formats: u16,
}

/// Parses the private data of a REJ, for the initiator: `None` when it is no login reject.
#[must_use]
pub fn parse_reject(private_data: &[u8]) -> Option<Rejection> {
    let (wire, _) = wire::LoginReject::ref_from_prefix(private_data).ok()?;
    (wire.opcode == opcode::LOGIN_REJECT).then(|| Rejection {
        tag: wire.tag.get(),
        reason: wire.reason.get(),
        formats: wire.formats.get(),
    })
}
