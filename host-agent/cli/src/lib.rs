//! `lunar`, the command line: asks the agent over its API and prints what it says, as tables or as JSON. It knows
//! nothing that the API does not tell. `lunar keys` asks nobody: it makes files before there is an agent.
//!
//! Exit codes: 0 done; 2 the command line is wrong; 3 no agent answers; 4 the agent refused, or what it was to get or
//! gave is of no use; 5 no keys were made.

mod keys;
mod table;

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lunar_agent::api::wire;

/// How long the agent may take to answer. It asks the card and gives up on that earlier.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes of a file with reservations: those of 4,096 registrants with the longest names take fewer.
const IMPORT_BYTES_MAX: usize = 4_000_000;

/// What `lunar` is told on its command line.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lunar", version, about = "Shows what Lunar does")]
pub struct Options {
    /// The agent's API socket.
    #[arg(long, global = true, value_name = "PATH", env = "LUNAR_API", default_value = lunar_agent::api::SOCKET_DEFAULT)]
    pub api: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Shows targets, LUNs, nexuses, counters and latencies.
    Show {
        /// Only this.
        #[arg(value_enum)]
        what: Option<What>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Looks again how large a device's file or block device is, and tells the initiators (SCST: resync_size).
    ResyncSize {
        /// The device's name in scst.conf.
        device: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Puts another disc into a vdisk_cdrom device, or takes it out.
    ///
    /// scst.conf is not written: an agent that starts anew puts in what its `filename` says. Change it there too where
    /// the disc is to stay. Refused while an initiator prevents the removal.
    Medium {
        /// The device's name.
        device: String,
        /// The file, an absolute path; without one the drive is empty.
        filename: Option<String>,
    },
    /// Shows device groups, and in which state each of their target groups is (ALUA); `set` changes a state.
    #[command(args_conflicts_with_subcommands = true)]
    Alua {
        /// What to do instead of showing.
        #[command(subcommand)]
        change: Option<AluaChange>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows and changes the reservations of a device: persistent ones, and those by RESERVE.
    #[command(subcommand)]
    Pr(Pr),
    /// Makes the keys by which agent and card prove themselves to each other over TCP.
    ///
    /// DIRECTORY/agent is for the host (lunar-agent --tls), DIRECTORY/card for the card (lunar-firmware --tls), and
    /// DIRECTORY/ca signed both: whoever has its key.pem can pass for either, so keep it off both machines or delete it.
    /// All files are for their owner only (mode 0600). Agent and card read new keys when they connect the next time.
    Keys {
        /// Where; made if it is not there.
        directory: PathBuf,
        /// For how many days they are valid.
        #[arg(long, value_name = "COUNT", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Replace the keys that are there. Agent and card no longer take each other until both have the new ones.
        #[arg(long)]
        force: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Says the versions of this program and of the agent that answers.
    Version,
}

/// What `lunar alua` can change.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum AluaChange {
    /// Puts a target group into another state, and tells the initiators of all devices of its device group.
    ///
    /// It is done when the card has made the change: then what the state does not allow is over. scst.conf is not
    /// written. The state outlives a restart of the agent, but neither one of the card nor another state in scst.conf.
    Set {
        /// The device group's name in scst.conf.
        device_group: String,
        /// The target group's name.
        target_group: String,
        /// active, nonoptimized, standby, unavailable, lba-dependent, offline or transitioning.
        state: String,
        /// 1: the primary way to the devices; 0: not.
        #[arg(long, value_name = "0|1", value_parser = ["0", "1"])]
        preferred: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What `lunar pr` does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Pr {
    /// Shows who is registered with which key, and who holds the reservation.
    Show {
        /// The device's name in scst.conf.
        device: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ends all registrations and reservations, also where they were lost. Those who had one are told.
    Clear {
        /// The device's name in scst.conf.
        device: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints them as SCST's pr_state has them, for `lunar pr import` or another target.
    Export {
        /// The device's name in scst.conf.
        device: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Replaces them by those of a running or stopped SCST: the text of its pr_state, or the file that its pr_file_name
    /// names.
    Import {
        /// The device's name in scst.conf.
        device: String,
        /// The file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What `lunar show` can be narrowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The targets.
    Targets,
    /// The LUNs, with their devices' counters.
    Luns,
    /// Who is logged in.
    Nexuses,
    /// Poll groups, SGV caches and rings.
    Counters,
    /// Latency percentiles.
    Latency,
    /// The SCSI commands that Lunar knows, and who answers each: card or host.
    Opcodes,
}

/// Why nothing came of a command.
#[derive(Debug)]
pub enum Failure {
    /// No keys were made.
    Keys {
        /// Why.
        reason: String,
    },
    /// No agent answers at the socket.
    Unreachable {
        /// The socket.
        api: PathBuf,
        /// What the attempt said.
        reason: String,
    },
    /// The agent answered with an error.
    Refused {
        /// What it said.
        reason: String,
    },
    /// What the agent was to get, or gave, is of no use.
    Useless {
        /// Why.
        reason: String,
    },
}

impl Failure {
    /// The exit code, distinct for each.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Keys { .. } => ExitCode::from(5),
            Self::Unreachable { .. } => ExitCode::from(3),
            Self::Refused { .. } | Self::Useless { .. } => ExitCode::from(4),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { api, reason } => write!(
                f,
                "no agent answers at {}: {reason}\n\
                 way out: start lunar-agent, or name its socket with --api PATH or LUNAR_API; \
                 only the agent's user and root may open it",
                api.display()
            ),
            Self::Keys { reason } | Self::Useless { reason } => f.write_str(reason),
            Self::Refused { reason } => write!(f, "the agent refused: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

type Agent = wire::agent_client::AgentClient<tonic::transport::Channel>;

/// Does what the command line says; the text to print.
pub fn run(options: &Options) -> Result<String, Failure> {
    match &options.command {
        Command::Show { what: Some(What::Opcodes), json } => {
            ask(&options.api, async |mut agent| {
                let reply = answer(agent.opcodes(wire::OpcodesRequest {})).await?;
                Ok(if *json { pretty(&serde_json::json!(reply)) } else { table::opcodes(&reply) })
            })
        }
        Command::Show { what, json } => ask(&options.api, async |mut agent| {
            let reply = answer(agent.show(wire::ShowRequest {})).await?;
            Ok(if *json { as_json(&reply, *what) } else { table::show(&reply, *what) })
        }),
        Command::Medium { device, filename } => ask(&options.api, async |mut agent| {
            let filename = filename.clone().unwrap_or_default();
            let request = wire::ChangeMediumRequest { device: device.clone(), filename };
            let reply = answer(agent.change_medium(request)).await?;
            Ok(table::medium(device, &reply))
        }),
        Command::ResyncSize { device, json } => ask(&options.api, async |mut agent| {
            let request = wire::ResyncSizeRequest { device: device.clone() };
            let reply = answer(agent.resync_size(request)).await?;
            Ok(if *json {
                pretty(&serde_json::json!(reply))
            } else {
                table::resynced(device, &reply)
            })
        }),
        Command::Alua { change: None, json } => ask(&options.api, async |mut agent| {
            let reply = answer(agent.alua(wire::AluaRequest {})).await?;
            Ok(if *json { pretty(&serde_json::json!(reply)) } else { table::alua(&reply) })
        }),
        Command::Alua { change: Some(change), .. } => {
            ask(&options.api, async |agent| set_alua(agent, change).await)
        }
        Command::Pr(what) => ask(&options.api, async |agent| reservations(agent, what).await),
        Command::Keys { directory, days, force, json } => {
            keys::make(directory, *days, *force, *json)
        }
        Command::Version => ask(&options.api, async |mut agent| {
            let reply = answer(agent.version(wire::VersionRequest {})).await?;
            let own = concat!("lunar ", env!("CARGO_PKG_VERSION"));
            Ok(format!("{own}\n{} (epoch {})\n", reply.software, reply.epoch))
        }),
    }
}

async fn reservations(mut agent: Agent, what: &Pr) -> Result<String, Failure> {
    let (device, json) = match what {
        Pr::Show { device, json } | Pr::Clear { device, json } => (device, *json),
        Pr::Export { device, json } | Pr::Import { device, json, .. } => (device, *json),
    };
    let import = match what {
        Pr::Show { .. } | Pr::Export { .. } => None,
        Pr::Clear { .. } => Some(Vec::new()),
        Pr::Import { file, .. } => Some(read_reservations(file)?),
    };
    let device = device.clone();
    let reply = match import {
        None => {
            answer(agent.reservations(wire::ReservationsRequest { device: device.clone() })).await?
        }
        Some(import) => {
            let request = wire::ChangeReservationsRequest { device: device.clone(), import };
            let changed = answer(agent.change_reservations(request)).await;
            changed.map_err(|failure| match (failure, what) {
                (Failure::Refused { reason }, Pr::Import { file, .. }) => {
                    Failure::Refused { reason: format!("{}: {reason}", file.display()) }
                }
                (failure, _) => failure,
            })?
        }
    };
    Ok(match what {
        Pr::Export { .. } if reply.lost => {
            let reason = format!(
                "device {device}: its reservations are lost, so there is nothing to export; say what they are with \
                 `lunar pr import`, or end them with `lunar pr clear`"
            );
            return Err(Failure::Useless { reason });
        }
        Pr::Show { .. } | Pr::Export { .. } if json => {
            let mut told = serde_json::json!(reply);
            // Of changes only.
            told.as_object_mut().map(|told| told.remove("in_force"));
            pretty(&told)
        }
        _ if json => pretty(&serde_json::json!(reply)),
        Pr::Export { .. } => reply.pr_state,
        Pr::Show { .. } => table::reservations(&device, &reply),
        Pr::Clear { .. } | Pr::Import { .. } => table::changed_reservations(&device, &reply),
    })
}

/// Reads what is to be imported.
fn read_reservations(file: &Path) -> Result<Vec<u8>, Failure> {
    let shown = file.display();
    let useless = |reason: String| Failure::Useless { reason: format!("{shown}: {reason}") };
    let bytes = std::fs::read(file).map_err(|error| useless(error.to_string()))?;
    if bytes.is_empty() {
        return Err(useless("it is empty; to end all, use `lunar pr clear`".to_owned()));
    }
    if bytes.len() > IMPORT_BYTES_MAX {
        let count = bytes.len();
        return Err(useless(format!(
            "it has {count} bytes, and reservations at most {IMPORT_BYTES_MAX}: it is another file"
        )));
    }
    Ok(bytes)
}

async fn set_alua(mut agent: Agent, change: &AluaChange) -> Result<String, Failure> {
    let AluaChange::Set { device_group, target_group, state, preferred, json } = change;
    let request = wire::SetAluaRequest {
        device_group: device_group.clone(),
        target_group: target_group.clone(),
        state: Some(state.clone()),
        preferred: preferred.as_deref().map(|preferred| preferred == "1"),
    };
    let reply = answer(agent.set_alua(request)).await?;
    Ok(if *json {
        pretty(&serde_json::json!(reply))
    } else {
        table::alua_set(device_group, target_group, &reply)
    })
}

/// Asks the agent at `api`.
fn ask(
    api: &Path,
    question: impl AsyncFnOnce(Agent) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let unreachable = |reason: String| Failure::Unreachable { api: api.to_owned(), reason };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| unreachable(error.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, lunar_agent::api::connect(api)).await {
            Ok(Ok(agent)) => question(agent).await,
            Ok(Err(error)) => Err(unreachable(innermost(&error))),
            Err(_) => Err(unreachable(format!("it did not answer for {PATIENCE:?}"))),
        }
    })
}

async fn answer<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(Failure::Refused { reason: status.message().to_owned() }),
        Err(_) => Err(Failure::Refused { reason: format!("it did not answer for {PATIENCE:?}") }),
    }
}

/// The error that an error came from: "transport error" alone helps nobody.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The reply as JSON, all of it or one part. Field names are those of `agent.proto`.
fn as_json(reply: &wire::ShowReply, what: Option<What>) -> String {
    let value = match what {
        // Opcodes are asked for by themselves.
        None | Some(What::Opcodes) => serde_json::json!(reply),
        Some(What::Targets) => serde_json::json!({ "targets": reply.targets }),
        Some(What::Luns) => serde_json::json!({ "luns": reply.luns }),
        Some(What::Nexuses) => serde_json::json!({ "nexuses": reply.nexuses }),
        Some(What::Counters) => serde_json::json!({
            "poll_groups": reply.poll_groups, "sgv": reply.sgv, "rings": reply.rings,
        }),
        Some(What::Latency) => serde_json::json!({ "latencies": reply.latencies }),
    };
    pretty(&value)
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// Prints to standard output. A reader that closed the pipe (`| head`) is no failure.
pub fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lunar: standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
