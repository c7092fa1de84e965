//! The control channel's sockets: frames in both directions, for one card at a time. What the messages mean is the core's
//! business; here they are only moved.
//!
//! Whoever connects is believed first: over a Unix socket by the user that it runs as, over TCP by its certificate.
//! Proving takes as long as the stranger likes, up to a bound; many may be at it, and when they are too many, the one that
//! has taken longest is dropped. Only those who have proved themselves wait for their turn in [`serve`], so nobody else
//! can keep a card from it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lunar_control_channel::{Identity, Role};
use lunar_offload_proto::control::{Decoder, Encoder, ToHost};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::line::{EngineGone, EngineLine, ToControl, ToEngine};
use crate::refusals::Refusals;

/// How long a card may leave its end of the socket full before it counts as gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// How many strangers may be at their handshakes at a time.
const STRANGERS_MAX: usize = 64;

/// How many that have proved to be cards may wait for their turn; usually it is the one that starts again.
pub(crate) const WAITING_MAX: usize = 8;

/// How long a peer that is sent away may take to hear why.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a machine may be silent before the kernel counts it as gone: what a machine that lost its power does not
/// say. The core's heartbeats find a card that hangs.
const SILENCE: Duration = Duration::from_secs(10);

/// Bytes both ways, whatever carries them.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Somebody who has proved to be a card.
pub(crate) struct Card {
    stream: Box<dyn Stream>,
    /// Where it is, in words.
    place: String,
}

/// Serves the cards that come, one after the other, for as long as the engine runs. A card that starts again closes its
/// old connection first, or is found silent; until then the new one waits.
pub(crate) async fn serve(
    mut cards: Receiver<Card>,
    engine: EngineLine,
    mut outbound: UnboundedReceiver<ToControl>,
) -> Result<(), EngineGone> {
    let mut connection = 0;
    while let Some(Card { mut stream, place }) = cards.recv().await {
        connection += 1;
        info!(connection, place, "a card connected to the control channel");
        engine.send(ToEngine::CardConnected { connection }).await?;
        let reason = exchange(&mut stream, connection, &engine, &mut outbound).await;
        info!(connection, place, reason, "the control channel is closed");
        let told = engine.send(ToEngine::CardLost { connection, reason }).await;
        // A card that does not wait for the end of it has no use for it.
        let _ = timeout(GOODBYE_PATIENCE, stream.shutdown()).await;
        told?;
    }
    Ok(())
}

/// Lets those in who connect to a Unix socket as this user or as root.
pub(crate) async fn accept_unix(
    listener: UnixListener,
    cards: Sender<Card>,
    refusals: Arc<Refusals>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                unaccepted(&error).await;
                continue;
            }
        };
        let place = "of this machine".to_owned();
        if let Err(reason) = may_be_a_card(&stream) {
            refusals.note(&place, &reason);
            continue;
        }
        if cards.send(Card { stream: Box::new(stream), place }).await.is_err() {
            return;
        }
    }
}

/// Lets those in who connect over TCP and have a card's certificate. The agent's own keys are read from `keys` for each of
/// them, so that new ones need no new start.
pub(crate) async fn accept_tcp(
    listener: TcpListener,
    keys: PathBuf,
    cards: Sender<Card>,
    refusals: Arc<Refusals>,
) {
    let mut strangers: VecDeque<(AbortHandle, SocketAddr)> = VecDeque::new();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                unaccepted(&error).await;
                continue;
            }
        };
        strangers.retain(|(handshake, _)| !handshake.is_finished());
        if strangers.len() >= STRANGERS_MAX
            && let Some((handshake, longest)) = strangers.pop_front()
        {
            handshake.abort();
            let reason = format!("it had not proved itself when {STRANGERS_MAX} others were at it");
            refusals.note(&longest.to_string(), &reason);
        }
        let (keys, cards, refusals) = (keys.clone(), cards.clone(), Arc::clone(&refusals));
        let handshake = tokio::spawn(async move {
            let place = address.to_string();
            let proved = prove(stream, &keys).await;
            let refused = proved.and_then(|stream| {
                let card = Card { stream: Box::new(stream), place: place.clone() };
                cards.try_send(card).map_err(|_| {
                    format!("{WAITING_MAX} others wait already, and an agent serves one card: stop the others")
                })
            });
            if let Err(reason) = refused {
                refusals.note(&place, &reason);
            }
        });
        strangers.push_back((handshake.abort_handle(), address));
    }
}

async fn unaccepted(error: &std::io::Error) {
    warn!(%error, "no card could be accepted on the control channel");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn may_be_a_card(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("its user cannot be told: {error}"))?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() == own || peer.uid() == 0 {
        return Ok(());
    }
    Err(format!("it runs as user {}, which is neither {own} nor root", peer.uid()))
}

/// Both ends prove themselves, or the words why not.
async fn prove(stream: TcpStream, keys: &Path) -> Result<TlsStream<TcpStream>, String> {
    watch_for_silence(&stream).map_err(|error| format!("its socket cannot be set up: {error}"))?;
    let identity = Identity::load(keys, Role::Agent).map_err(|error| error.to_string())?;
    let (configuration, witness) = identity.agent().map_err(|error| error.to_string())?;
    let handshake = TlsAcceptor::from(configuration).accept(stream).into_fallible();
    match timeout(HANDSHAKE_PATIENCE, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, mut stream))) => {
            // It is told why; a socket closed on unread bytes would take the words back.
            let _ = timeout(GOODBYE_PATIENCE, async {
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            })
            .await;
            Err(witness.explain_io(&error))
        }
        Err(_) => {
            let seconds = HANDSHAKE_PATIENCE.as_secs();
            Err(format!(
                "it has not proved itself within {seconds} s: only a card of Lunar belongs there"
            ))
        }
    }
}

fn watch_for_silence(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 2)?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Moves messages until the connection is over; the reason why.
async fn exchange(
    stream: &mut Box<dyn Stream>,
    connection: u64,
    engine: &EngineLine,
    outbound: &mut UnboundedReceiver<ToControl>,
) -> String {
    let (mut from_card, mut to_card) = tokio::io::split(stream);
    let (mut decoder, mut encoder) = (Decoder::<ToHost>::new(), Encoder::new());
    let mut bytes = vec![0; 16 << 10];
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            read = from_card.read(&mut bytes) => {
                match read {
                    Ok(0) => return "the card closed it".to_owned(),
                    Ok(length) => decoder.push(&bytes[..length]),
                    Err(error) => return format!("reading failed: {error}"),
                }
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => {
                            // An engine that has ended hears no more; what it said last is still to be sent.
                            let _ = engine.send(ToEngine::FromCard(Box::new(message))).await;
                        }
                        Ok(None) => break,
                        Err(error) => return format!("the card sent what is no message: {error}"),
                    }
                }
            }
            message = outbound.recv() => {
                let message = match message {
                    None => return "the agent stops".to_owned(),
                    Some(ToControl::Close { connection: of, reason }) if of == connection => return reason,
                    Some(ToControl::Send { connection: of, message }) if of == connection => message,
                    // For a card that is gone.
                    Some(_) => continue,
                };
                frames.clear();
                if let Err(error) = encoder.encode(&*message, &mut frames) {
                    return format!("a message for the card cannot be sent: {error}");
                }
                let written = async {
                    to_card.write_all(&frames).await?;
                    // TLS keeps what the socket did not take at once.
                    to_card.flush().await
                };
                match timeout(WRITE_PATIENCE, written).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return format!("writing failed: {error}"),
                    Err(_) => return format!("the card has read nothing for {WRITE_PATIENCE:?}"),
                }
            }
        }
    }
}
