//! SRP's login by VSCSI's rules: it comes in the queue and not through a connection manager, there is one
//! channel, and the client partition is known without port identifiers.
//!
//! The request's parser and both answers' encoders are [`lunar_srp::login`]'s.

use core::fmt;

use lunar_srp::login::{
    Action, FORMATS, IT_IU_BYTES_MIN, LoginReject, LoginRequest, LoginResponse, OtherChannels,
    PortId,
};

use crate::IU_BYTES_MAX;

/// Bytes of an SRP_LOGIN_REQ, which has InfiniBand's form.
pub const LOGIN_REQUEST_BYTES: usize = 64;

/// The login request in an information unit; `None` when the unit is too short for one.
#[must_use]
pub fn parse(iu: &[u8]) -> Option<LoginRequest> {
    // srp tells the forms apart by length, and the unit may be longer than the request.
    lunar_srp::login::parse(iu.get(..LOGIN_REQUEST_BYTES)?).ok()
}

/// Decides on a login request. `logged_in`: whether the client has logged in already.
///
/// # Errors
/// The reason to reject it with; [`explain`] has the words.
pub fn decide(request: &LoginRequest, logged_in: bool) -> Result<(), LoginReject> {
    if request.it_iu_bytes > IU_BYTES_MAX.into() {
        return Err(LoginReject::IuTooLarge);
    }
    if request.it_iu_bytes < IT_IU_BYTES_MIN {
        return Err(LoginReject::CannotEstablish);
    }
    if request.action == Action::Multi {
        return Err(LoginReject::NoMultiChannel);
    }
    // An adapter has one port at either end: extension zero.
    if extension(request.initiator_port) != 0 || extension(request.target_port) != 0 {
        return Err(LoginReject::CannotAssociate);
    }
    // A client that names none can send no data, so unlike SRP's initiators it needs one.
    if request.formats & FORMATS == 0 {
        return Err(LoginReject::UnsupportedFormat);
    }
    if logged_in {
        return Err(LoginReject::ChannelLimit);
    }
    Ok(())
}

/// The answer to a login that is accepted. `request_limit`: requests that the client may have outstanding,
/// capped at what the field can say; Linux keeps two of them for task management.
#[must_use]
pub fn accept(request: &LoginRequest, request_limit: u32) -> LoginResponse {
    LoginResponse {
        tag: request.tag,
        request_limit: i32::try_from(request_limit).unwrap_or(i32::MAX),
        it_iu_bytes_max: IU_BYTES_MAX.into(),
        ti_iu_bytes_max: IU_BYTES_MAX.into(),
        formats: FORMATS,
        others: OtherChannels::None,
        immediate: false,
    }
}

/// Why a login was refused, for the log: the value, the limit, and the way out.
#[must_use]
pub fn explain(reason: LoginReject, request: &LoginRequest) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| {
        f.write_str("login refused: ")?;
        match reason {
            LoginReject::IuTooLarge => write!(
                f,
                "the client wants to send IUs of {} bytes; VSCSI has {IU_BYTES_MAX} at most: lower the \
                 client's IU length",
                request.it_iu_bytes
            ),
            LoginReject::CannotEstablish => write!(
                f,
                "the client wants to send IUs of at most {} bytes, but a command needs \
                 {IT_IU_BYTES_MIN}: raise the client's IU length",
                request.it_iu_bytes
            ),
            LoginReject::NoMultiChannel => f.write_str(
                "the client wants a further channel, but an adapter has one: let it use another adapter",
            ),
            LoginReject::CannotAssociate => write!(
                f,
                "the client names initiator port {} and target port {}, but an adapter's ports have \
                 identifier extension 0: let the client send zeros",
                request.initiator_port, request.target_port
            ),
            LoginReject::UnsupportedFormat => write!(
                f,
                "the client wants descriptor formats {:#06x}, of which none is in {FORMATS:#06x} \
                 (direct, indirect): let it use one of them",
                request.formats
            ),
            LoginReject::ChannelLimit => f.write_str(
                "the client is logged in already: let it send SRP_I_LOGOUT or initialise its queue first",
            ),
            LoginReject::InsufficientResources => f.write_str(
                "there is no room for the client's requests: lower max_requests or log other clients out",
            ),
        }
    })
}

/// The identifier extension: the first half (I/O class FF00h does not occur here).
fn extension(port: PortId) -> u64 {
    (u128::from_be_bytes(port.0) >> 64) as u64
}
