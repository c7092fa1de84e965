//! The card's process: one thread a poll group on a core of its own, and the control thread that
//! runs the coordinator and talks to the host agent.
//!
//! Generic over the platform, so that the binary with the real providers and the emulator start the
//! same code. Threads, clocks, sleeping and sockets live here and nowhere else on the card.
#![forbid(unsafe_code)]

mod control;
mod group;
mod socket;
mod wake;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use lunar_control_channel::ControlAddress;
use lunar_offload_proto::control::{Limits, feature, hello};
use lunar_platform::{Nanoseconds, Platform};
use lunar_target::{AgentLink, Coordinator, GroupLimits, GroupParts, PollGroup, mailbox};

pub use wake::Wake;

/// The hardware of one card, opened by whoever knows the provider.
pub struct Card<P: Platform> {
    /// Where connection requests arrive.
    pub listener: P::Listener,
    /// What each poll group gets.
    pub groups: Vec<GroupHardware<P>>,
}

/// One poll group's hardware.
pub struct GroupHardware<P: Platform> {
    /// Which of the card's HCAs it has a share of, counted from 0.
    pub device: u16,
    /// Its share of the HCA.
    pub hca: P::Hca,
    /// Its DMA context.
    pub dma: P::Dma,
    /// Its registrar of memory.
    pub memory: P::Memory,
}

/// How the firmware runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The host agent's --control: the path of its Unix socket, or ADDRESS:PORT where the host is another machine, over
    /// TCP with TLS (see --tls).
    #[arg(long, value_name = "PATH|ADDRESS:PORT", default_value = "/run/lunar/control.sock")]
    pub control: ControlAddress,
    /// The card's keys, for --control ADDRESS:PORT: the directory `card` that `lunar keys` makes. Read anew for every
    /// connection.
    #[arg(long, value_name = "DIRECTORY")]
    pub tls: Option<PathBuf>,
    /// Cores of the poll groups, one each, in order; without it they are not pinned.
    #[arg(long, value_name = "CORE", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Never sleep: lowest latency, one whole core a poll group.
    #[arg(long)]
    pub poll: bool,
    /// How long a poll group spins without work before it sleeps, in microseconds.
    #[arg(long, value_name = "US", default_value_t = 200)]
    pub spin_us: u64,
    /// Commands and task management functions in progress per poll group.
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    pub slots: u32,
    /// Longest information unit in bytes that an initiator may send; each slot has a buffer for one. Linux
    /// sends up to 8276.
    #[arg(long, value_name = "BYTES", default_value_t = GroupLimits::default().receive_bytes)]
    #[arg(value_parser = clap::value_parser!(u32).range(64..=65535))]
    pub srp_max_req_size: u32,
    /// Channels per poll group.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    pub channels: u32,
    /// SGV memory on the card per poll group, in MiB (a power of two).
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub card_memory_mib: usize,
    /// SGV memory one nexus may hold in each placement, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 48)]
    pub nexus_memory_mib: u64,
    /// How long commands wait for an absent agent before they are answered BUSY, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub agent_wait_s: u64,
    /// End when standard input closes, as it does when the parent process ends.
    #[arg(long)]
    pub exit_with_parent: bool,
}

impl Options {
    /// The poll groups' sizes.
    #[must_use]
    pub fn limits(&self) -> GroupLimits {
        GroupLimits {
            slots: self.slots,
            receive_bytes: self.srp_max_req_size,
            channels: self.channels,
            card_arena_bytes: self.card_memory_mib << 20,
            nexus_share_bytes: self.nexus_memory_mib << 20,
            agent_wait_ns: self.agent_wait_s.saturating_mul(1_000_000_000),
            ..GroupLimits::default()
        }
    }
}

/// Time since this process started, for all threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn now(self) -> Nanoseconds {
        Nanoseconds(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Asks every thread to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the firmware soon.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Ends the firmware on SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn on_signals(&self) -> anyhow::Result<()> {
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, self.0.clone())
                .with_context(|| format!("signal {signal} cannot be caught"))?;
        }
        Ok(())
    }

    /// Ends the firmware when standard input closes.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn with_parent(&self) -> anyhow::Result<()> {
        let stop = self.clone();
        std::thread::Builder::new().name("lunar-parent".into()).spawn(move || {
            // Whatever comes is ignored; only the end counts.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            stop.request();
        })?;
        Ok(())
    }
}

/// Runs a card until `stop`. Blocks.
///
/// # Errors
/// When the way to the agent is not whole, the card's memory cannot be claimed, a thread not be started, or a core not
/// be used.
pub fn run<P: Platform>(card: Card<P>, options: &Options, stop: &Stop) -> anyhow::Result<()> {
    let route = socket::Route::new(options)?;
    let clock = Clock(Instant::now());
    let count = card.groups.len();
    let mut links = Vec::with_capacity(count);
    let mut threads = Vec::with_capacity(count);
    let mut wakes = Vec::with_capacity(count);
    let control_wake = Wake::new()?;
    for (index, hardware) in card.groups.into_iter().enumerate() {
        let (link, inbox, outbox) = mailbox::<P>();
        let group = PollGroup::<P>::new(GroupParts {
            index: u16::try_from(index)?,
            limits: options.limits(),
            hca: hardware.hca,
            dma: hardware.dma,
            memory: hardware.memory,
            inbox,
            outbox,
        })
        .with_context(|| format!("poll group {index} cannot start"))?;
        let wake = Wake::new()?;
        let runner = group::Runner {
            group,
            clock,
            core: options.cores.get(index).copied(),
            poll: options.poll,
            spin_ns: options.spin_us.saturating_mul(1000),
            wake: wake.clone(),
            control: control_wake.clone(),
            stop: stop.clone(),
        };
        threads.push(
            std::thread::Builder::new()
                .name(format!("lunar-group-{index}"))
                .spawn(move || runner.run())?,
        );
        links.push(link.on_device(hardware.device));
        wakes.push(wake);
    }
    let link = AgentLink::new(introduction(count, options));
    let coordinator = Coordinator::new(card.listener, links);
    let result = control::Control {
        coordinator,
        link,
        clock,
        route,
        said: String::new(),
        wake: control_wake,
        groups: wakes.clone(),
        stop: stop.clone(),
    }
    .run();
    stop.request();
    wakes.iter().for_each(Wake::signal);
    for thread in threads {
        if thread.join().is_err() {
            anyhow::bail!("a poll group ended by a broken invariant; its message is above");
        }
    }
    result
}

/// This start of the card as the agent sees it. The epoch must grow with every start; the time in
/// nanoseconds does that without a file to keep.
fn introduction(groups: usize, options: &Options) -> lunar_offload_proto::control::Hello {
    let epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    let limits = Limits {
        poll_groups: u32::try_from(groups).unwrap_or(u32::MAX),
        ring_slots_max: lunar_offload_proto::ring::RingLayout::SLOTS_MAX,
        nexuses_max: options.channels.saturating_mul(u32::try_from(groups).unwrap_or(1)),
        units_max: lunar_target::configuration::Unit::HANDLE_MAX,
        targets_max: 0,
        message_bytes_max: 0,
    };
    let features = feature::HOST_DRAM
        | feature::FORWARD
        | feature::CANCEL
        | feature::RESETS
        | feature::ACCESS_TABLES;
    let software = concat!("lunar-firmware ", env!("CARGO_PKG_VERSION"));
    hello(software, epoch, boot_id(), features, 0, limits)
}

/// The boot id of the card's kernel: when it changes, power was lost.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut digits = text.chars().filter_map(|digit| digit.to_digit(16));
    std::array::from_fn(|_| {
        let high = digits.next().unwrap_or(0);
        let low = digits.next().unwrap_or(0);
        u8::try_from(high << 4 | low).unwrap_or(0)
    })
}

/// The longest the control thread sleeps.
pub(crate) const CONTROL_SLEEP: Duration = Duration::from_millis(20);
