//! The control channel's socket: one card at a time, frames in both directions. What the messages mean is the core's
//! business; here they are only moved.

use std::time::Duration;

use lunar_offload_proto::control::{Decoder, Encoder, ToHost};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{info, warn};

use crate::line::{EngineGone, EngineLine, ToControl, ToEngine};

/// How long a card may leave its end of the socket full before it counts as gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Accepts cards on `listener`, one after the other, for as long as the engine runs. A card that starts again closes its
/// old connection first; until then the new one waits in the backlog.
pub(crate) async fn serve(
    listener: UnixListener,
    engine: EngineLine,
    mut outbound: UnboundedReceiver<ToControl>,
) -> Result<(), EngineGone> {
    let mut connection = 0;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no card could be accepted on the control channel");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(reason) = may_be_a_card(&stream) {
            warn!(reason, "connection to the control channel refused");
            continue;
        }
        connection += 1;
        info!(connection, "a card connected to the control channel");
        engine.send(ToEngine::CardConnected { connection }).await?;
        let reason = exchange(stream, connection, &engine, &mut outbound).await;
        info!(connection, reason, "the control channel is closed");
        engine.send(ToEngine::CardLost { connection, reason }).await?;
    }
}

fn may_be_a_card(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("its user cannot be told: {error}"))?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() == own || peer.uid() == 0 {
        return Ok(());
    }
    Err(format!("it runs as user {}, which is neither {own} nor root", peer.uid()))
}

/// Moves messages until the connection is over; the reason why.
async fn exchange(
    mut stream: UnixStream,
    connection: u64,
    engine: &EngineLine,
    outbound: &mut UnboundedReceiver<ToControl>,
) -> String {
    let (mut from_card, mut to_card) = stream.split();
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
                match tokio::time::timeout(WRITE_PATIENCE, to_card.write_all(&frames)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return format!("writing failed: {error}"),
                    Err(_) => return format!("the card has read nothing for {WRITE_PATIENCE:?}"),
                }
            }
        }
    }
}
