//! `lunar-agent`, the brain on the host: the shell around [`lunar_core`]. It reads the configuration, opens the devices,
//! takes rings and memory from the keeper, listens for the card, and answers the API.
//!
//! * `engine`: the one thread that serves rings and devices; the core decides, it carries out.
//! * `control_channel`, [`api`]: sockets, on a second thread; they talk to the engine over `line`.
//! * `devices`: the handlers of the configured devices. `pr_files`: where reservations are kept. `epoch`: who this agent
//!   is. `show`, `latency`: what is told of it all. `refusals`: who was not let in. `socket`: how sockets are bound.
//!
//! Nothing here decides about commands.

pub mod api;
mod control_channel;
mod devices;
mod engine;
mod epoch;
mod latency;
mod line;
mod pr_files;
mod refusals;
mod show;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use lunar_control_channel::{ControlAddress, Identity, Role};
use lunar_keeper::client::Notice;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::engine::{Engine, Parts};
use crate::epoch::Notes;
use crate::line::{EngineLine, ToEngine};
use crate::refusals::Refusals;
use crate::socket::SocketPath;

/// How long a keeper that is being started beside the agent may take to answer.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);

/// What `lunar-agent` is told on its command line.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lunar-agent", version, about = "Serves the devices of scst.conf to the card")]
pub struct Options {
    /// The configuration, in the format of SCST.
    #[arg(long, value_name = "PATH", default_value = "/etc/scst.conf")]
    pub config: PathBuf,
    /// The keeper's socket (lunar-arena --socket).
    #[arg(long, value_name = "PATH", default_value = "/run/lunar/keeper.sock")]
    pub keeper: PathBuf,
    /// Where the card's firmware connects: the path of a Unix socket, made with mode 0600, or ADDRESS:PORT for a card that
    /// is another machine, over TCP with TLS (see --tls). May be given several times.
    #[arg(long, value_name = "PATH|ADDRESS:PORT", default_value = "/run/lunar/control.sock")]
    pub control: Vec<ControlAddress>,
    /// The agent's keys, for --control ADDRESS:PORT: the directory `agent` that `lunar keys` makes. Read anew for every
    /// connection.
    #[arg(long, value_name = "DIRECTORY")]
    pub tls: Option<PathBuf>,
    /// The socket that `lunar` connects to; made with mode 0600.
    #[arg(long, value_name = "PATH", default_value = api::SOCKET_DEFAULT)]
    pub api: PathBuf,
    /// A directory for what must outlive the keeper, too.
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// The directory for the persistent reservations of devices that have no pr_file_name: one file each, with the
    /// device's name. Made when the first is kept.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/lunar/pr")]
    pub pr_dir: PathBuf,
    /// Microseconds to look for work before sleeping.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    pub spin_us: u64,
    /// Log in JSON, one object a line.
    #[arg(long)]
    pub json_log: bool,
    /// End when standard input, a pipe from the starting process, is closed.
    #[arg(long)]
    pub exit_with_parent: bool,
}

/// Serves until SIGTERM or SIGINT, or until standard input closes where `exit_with_parent` says so. An error says why
/// the agent could not start, or why it cannot go on.
pub fn run(options: &Options) -> anyhow::Result<()> {
    start_log(options.json_log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let result = runtime.block_on(serve(options));
    // A thread that waits for the parent's pipe would hold the runtime up.
    runtime.shutdown_background();
    result
}

fn start_log(json: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Where the embedding program has started a log, that one is used.
    let _ = if json { log.json().try_init() } else { log.try_init() };
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    // First of all, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tree = read_configuration(options)?;
    let mut keeper = lunar_keeper::Client::connect_within(&options.keeper, KEEPER_PATIENCE)?;
    let offer = keeper.attach()?;
    let notes = Notes::load(&offer.notes)?;
    let epoch = epoch::next(&notes, options.state_dir.as_deref())?;
    let (engine_line, inbox) = line::line()?;
    let (outbound, to_control) = mpsc::unbounded_channel();
    let spin = Duration::from_micros(options.spin_us);
    let engine = Engine::new(Parts {
        tree,
        offer,
        epoch,
        notes,
        pr_dir: options.pr_dir.clone(),
        spin,
        inbox,
        outbound,
    })?;

    let (cards, cards_to_serve) = mpsc::channel(control_channel::WAITING_MAX);
    let refusals = Arc::new(Refusals::default());
    let _control_paths = listen(options, &cards, &refusals).await?;
    drop(cards);
    let (api_listener, _api_path) = socket::bind(&options.api, "--api")?;
    let (engine_ended, mut engine_end) = oneshot::channel::<()>();
    let engine_thread =
        std::thread::Builder::new().name("lunar-engine".to_owned()).spawn(move || {
            // Dropped at the end, whatever the end is.
            let _ended = engine_ended;
            engine.run();
        })?;
    let control =
        tokio::spawn(control_channel::serve(cards_to_serve, engine_line.clone(), to_control));
    let (api_stop, api_stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = api_stopped.await;
    };
    let api = tokio::spawn(api::serve(api_listener, engine_line.clone(), epoch, refusals, stopped));
    info!(
        epoch,
        config = %options.config.display(),
        control = options.control.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        api = %options.api.display(),
        "the agent serves"
    );

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = parent_gone(options.exit_with_parent) => None,
        gone = keeper_gone(keeper, &engine_line) => Some(gone),
        _ = &mut engine_end => Some(anyhow::anyhow!("the engine ended; the log says why")),
    };
    // The engine says goodbye to the card, and then drops its end of the control channel, which ends that task.
    let _ = engine_line.send(ToEngine::Stop).await;
    drop(api_stop);
    let _ = engine_end.await;
    if engine_thread.join().is_err() {
        anyhow::bail!("the engine panicked: this is a defect of lunar-agent");
    }
    // Calls and writes under way get a moment; clients that hold their connection open do not hold the end up.
    let _ =
        tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(control, api) }).await;
    failed.map_or(Ok(()), Err)
}

/// Listens wherever `--control` says. The Unix sockets go when what this returns is dropped.
async fn listen(
    options: &Options,
    cards: &mpsc::Sender<control_channel::Card>,
    refusals: &Arc<Refusals>,
) -> anyhow::Result<Vec<SocketPath>> {
    let mut paths = Vec::new();
    for control in &options.control {
        let (cards, refusals) = (cards.clone(), Arc::clone(refusals));
        match control {
            ControlAddress::Unix(path) => {
                let (listener, path) = socket::bind(path, "--control")?;
                paths.push(path);
                tokio::spawn(control_channel::accept_unix(listener, cards, refusals));
            }
            ControlAddress::Tcp(address) => {
                let keys = options.tls.clone().with_context(|| {
                    format!(
                        "--control {address}: over a network card and agent have to prove themselves, and this \
                         agent has no keys: make some with `lunar keys DIRECTORY`, and add --tls DIRECTORY/agent"
                    )
                })?;
                // Read again for every connection; here, so that a mistake is told at the start.
                let identity = Identity::load(&keys, Role::Agent)?;
                if let Some(warning) = identity.warning() {
                    warn!(keys = %keys.display(), "no card will take this agent: {warning}");
                }
                let listener = TcpListener::bind(address).await.with_context(|| {
                    format!("--control {address} cannot be bound: see that it is an address of this machine, and free")
                })?;
                tokio::spawn(control_channel::accept_tcp(listener, keys, cards, refusals));
            }
        }
    }
    Ok(paths)
}

fn read_configuration(options: &Options) -> anyhow::Result<lunar_mgmt::Tree> {
    let shown = options.config.display();
    let bytes = std::fs::read(&options.config).with_context(|| {
        format!("the configuration `{shown}` cannot be read; name it with --config")
    })?;
    let (tree, warnings) = lunar_mgmt::read(&shown.to_string(), &bytes)?;
    for warning in warnings {
        warn!("{warning}");
    }
    Ok(tree)
}

/// Comes back when the keeper is gone, with what that means. Until then the engine learns what is exported anew.
async fn keeper_gone(mut keeper: lunar_keeper::Client, engine: &EngineLine) -> anyhow::Error {
    loop {
        match keeper.next_notice() {
            Ok(Some(Notice::KeeperGone)) => {
                return anyhow::anyhow!(
                    "the keeper is gone, and the rings with it: start lunar-arena and the agent again"
                );
            }
            Ok(Some(Notice::Revoked(arena))) => {
                warn!(arena, "the keeper took the export of an arena back");
                match keeper.attach() {
                    Ok(offer) => {
                        // When it is gone the agent is ending.
                        let _ = engine.send(ToEngine::Exported(Box::new(offer))).await;
                    }
                    Err(error) => return error.context("the keeper exports its memory no more"),
                }
            }
            Ok(None) => {
                let ready = async {
                    // Only waited on: it is a packet socket, and the client reads it.
                    let watched =
                        std::os::unix::net::UnixStream::from(keeper.fd().try_clone_to_owned()?);
                    watched.set_nonblocking(true)?;
                    tokio::net::UnixStream::from_std(watched)?.readable().await
                };
                if let Err(error) = ready.await {
                    return anyhow::Error::new(error).context("the keeper cannot be watched");
                }
            }
            Err(error) => return error.context("the keeper says what it should not"),
        }
    }
}

/// Comes back when standard input ends; never when nobody asked for it.
async fn parent_gone(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    let read = tokio::task::spawn_blocking(|| {
        // What a parent writes does not matter, only the end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    });
    let _ = read.await;
}
