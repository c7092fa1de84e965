//! One emulated device: its configuration, its clock and the faults that concern it as a whole.
//! The data path is in `group`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lunar_pcie::AddressSpace;
use lunar_platform::{HcaAttributes, Nanoseconds};

use crate::fabric::Fabric;
use crate::group::EmulatedHca;
use crate::listener::EmulatedListener;
use crate::shared::OwnGroup;

/// When work is executed and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Work is executed in `ring`; its completion is seen by the next `poll`.
    Prompt,
    /// Nothing completes before a later step. Starts, completions and CM events are late by a seeded
    /// draw from the [`Latency`], within the rules of reliable connections.
    Deferring(Latency),
}

/// How late things are in [`Mode::Deferring`]: uniform in `minimum ..= minimum + spread`, in
/// nanoseconds under [`Clock::Virtual`] and in polls under [`Clock::Polls`]. Zero counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The least.
    pub minimum: u64,
    /// What the draw may add.
    pub spread: u64,
}

/// What time is to a deferring device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Each group counts its own `poll` calls. Never looks at a real clock.
    Polls,
    /// Virtual time, moved by [`EmulatedDevice::advance`] alone.
    Virtual,
}

/// How a device is made.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's address on the fabric, at most 46 bytes: what the peer sees as `PeerAddress`.
    pub name: String,
    /// When work is executed.
    pub mode: Mode,
    /// What time is.
    pub clock: Clock,
    /// Seed of every draw.
    pub seed: u64,
    /// The most any group of the device may ask for.
    pub attributes: HcaAttributes,
    /// RNR retry count of its queue pairs: `None` retries without limit (IBTA's 7), `Some(n)` fails a
    /// SEND with `RnrRetryExceeded` after `n` further RNR NAKs.
    pub rnr_retry: Option<u32>,
    /// Bytes of one direction's message ring; a power of two, 4 KiB..=16 MiB. The longest SEND is half
    /// of it. The connecting side's value holds for both directions.
    pub message_ring_bytes: u32,
    /// Remote keys one group can have registered at a time, 1..=65536.
    pub remote_keys_max: u32,
}

impl DeviceConfig {
    /// A device named `name` with room for tests and the demonstration: prompt, counting polls, seed
    /// 0, unlimited RNR retries, 16 Ki queue pairs of depth up to 4096, 64 KiB message rings.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mode: Mode::Prompt,
            clock: Clock::Polls,
            seed: 0,
            attributes: HcaAttributes {
                queue_pairs_max: 16 << 10,
                send_queue_depth_max: 4096,
                shared_receive_queue_depth: 64 << 10,
                completion_queue_depth: 1 << 20,
                rdma_reads_max: 16,
                message_bytes_max: 16 << 20,
            },
            rnr_retry: None,
            message_ring_bytes: 64 << 10,
            remote_keys_max: 4096,
        }
    }

    /// The same with [`Mode::Deferring`], `latency` and `seed`.
    #[must_use]
    pub fn deferring(mut self, latency: Latency, seed: u64) -> Self {
        self.mode = Mode::Deferring(latency);
        self.seed = seed;
        self
    }

    /// The same with [`Clock::Virtual`].
    #[must_use]
    pub fn virtual_time(mut self) -> Self {
        self.clock = Clock::Virtual;
        self
    }
}

/// What all groups of a device share. Groups look at `faults` once a poll; everything else changes
/// only under faults and time steps.
#[derive(Debug)]
pub(crate) struct DeviceState {
    pub(crate) config: DeviceConfig,
    /// Virtual time in nanoseconds.
    now: AtomicU64,
    /// Latency of the deferring mode, changeable at run time.
    latency_minimum: AtomicU64,
    latency_spread: AtomicU64,
    /// Bumped by each port or device event, so that a group notices with one load.
    pub(crate) faults: AtomicU32,
    pub(crate) port_down: AtomicBool,
    pub(crate) fatal: AtomicBool,
    pub(crate) drop_wake_ups: AtomicBool,
    groups: Mutex<Vec<Weak<OwnGroup>>>,
    groups_made: AtomicU64,
}

/// A device of the fabric. Cheap to clone; clones are the same device.
#[derive(Clone, Debug)]
pub struct EmulatedDevice {
    pub(crate) state: Arc<DeviceState>,
}

impl EmulatedDevice {
    /// Makes the device. Values outside their range are brought into it.
    #[must_use]
    pub fn new(mut config: DeviceConfig) -> Self {
        config.message_ring_bytes =
            config.message_ring_bytes.clamp(4 << 10, 16 << 20).next_power_of_two();
        config.remote_keys_max = config.remote_keys_max.clamp(1, 1 << 16);
        config.attributes.queue_pairs_max = config.attributes.queue_pairs_max.clamp(1, 1 << 20);
        let latency = match config.mode {
            Mode::Prompt => Latency { minimum: 0, spread: 0 },
            Mode::Deferring(latency) => latency,
        };
        Self {
            state: Arc::new(DeviceState {
                config,
                now: AtomicU64::new(0),
                latency_minimum: AtomicU64::new(latency.minimum),
                latency_spread: AtomicU64::new(latency.spread),
                faults: AtomicU32::new(0),
                port_down: AtomicBool::new(false),
                fatal: AtomicBool::new(false),
                drop_wake_ups: AtomicBool::new(false),
                groups: Mutex::new(Vec::new()),
                groups_made: AtomicU64::new(0),
            }),
        }
    }

    /// Offers `service` on `fabric`.
    ///
    /// # Errors
    /// The name is taken (`AddrInUse`), or the socket could not be made.
    pub fn listener(&self, fabric: &Fabric, service: &str) -> io::Result<EmulatedListener> {
        EmulatedListener::new(self, fabric, service)
    }

    /// Makes one poll group's share: one CQ, one SRQ and room for queue pairs, each at most the
    /// device's attributes. Local keys, of card regions and of imported host arenas alike, are looked
    /// up in `address_space`.
    ///
    /// # Errors
    /// No memory or no descriptors for the shared segment.
    pub fn group(
        &self,
        attributes: HcaAttributes,
        address_space: AddressSpace,
    ) -> io::Result<EmulatedHca> {
        let number = self.state.groups_made.fetch_add(1, Ordering::Relaxed);
        let hca = EmulatedHca::new(self, attributes, address_space, number)?;
        self.lock_groups().push(Arc::downgrade(hca.own_group()));
        Ok(hca)
    }

    /// Moves virtual time to `now`; an earlier time is ignored. Only [`Clock::Virtual`] looks at it.
    pub fn advance(&self, now: Nanoseconds) {
        self.state.now.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Nanoseconds {
        Nanoseconds(self.state.now.load(Ordering::Relaxed))
    }

    /// The port goes down: nothing is sent or received, no connection can be made, every group gets
    /// `PortDown`. Connections survive; their work waits.
    pub fn port_down(&self) {
        self.state.port_down.store(true, Ordering::Relaxed);
        self.tell_groups();
    }

    /// The port is up again; every group gets `PortUp`.
    pub fn port_up(&self) {
        self.state.port_down.store(false, Ordering::Relaxed);
        self.tell_groups();
    }

    /// The device dies: outstanding work ends with `Fatal`, every group gets `DeviceFatal`, peers see
    /// their connections vanish. There is no way back.
    pub fn fatal(&self) {
        self.state.fatal.store(true, Ordering::Relaxed);
        self.tell_groups();
    }

    /// Whether wake-ups this device sends to sleeping peers get lost from now on. Events are hints;
    /// nobody may depend on them for more than latency.
    pub fn drop_wake_ups(&self, drop: bool) {
        self.state.drop_wake_ups.store(drop, Ordering::Relaxed);
    }

    /// Changes the deferring mode's latency. Without effect in [`Mode::Prompt`].
    pub fn set_latency(&self, latency: Latency) {
        self.state.latency_minimum.store(latency.minimum, Ordering::Relaxed);
        self.state.latency_spread.store(latency.spread, Ordering::Relaxed);
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        self.state.port_down.load(Ordering::Relaxed) || self.state.fatal.load(Ordering::Relaxed)
    }

    pub(crate) fn latency(&self) -> Latency {
        Latency {
            minimum: self.state.latency_minimum.load(Ordering::Relaxed),
            spread: self.state.latency_spread.load(Ordering::Relaxed),
        }
    }

    fn lock_groups(&self) -> std::sync::MutexGuard<'_, Vec<Weak<OwnGroup>>> {
        self.state.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every group look at the faults: also those that sleep. Peers read `port_down` from the
    /// group's shared segment.
    fn tell_groups(&self) {
        let down = self.is_unreachable();
        self.state.faults.fetch_add(1, Ordering::Release);
        let mut groups = self.lock_groups();
        groups.retain(|group| match group.upgrade() {
            Some(group) => {
                group.set_unreachable(down);
                group.wake_self();
                true
            }
            None => false,
        });
    }
}
