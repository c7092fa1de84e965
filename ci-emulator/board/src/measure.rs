//! The measuring loop of the initiator's process. Per command nothing is allocated; the clock is read
//! once a round.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use lunar_initiator::{Command, Data, Event, Initiator, cdbs};

use crate::conversation::{Figures, Workload, pattern};
use crate::driver::{COMMAND_PATIENCE, DATA_BYTES, encode};

/// SAM-6 5.3.1.
const GOOD: u8 = 0x00;
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;

/// Runs before the figures are taken, at most; a quarter of the measurement when that is shorter.
const WARM_UP_MAX: Duration = Duration::from_millis(200);
/// Rounds without an event after which the clock is read.
const IDLE_ROUNDS: u32 = 256;
/// Highest latency that is told apart, in nanoseconds.
pub(crate) const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Where the commands of a workload go: LBAs and places in the data memory.
struct Places {
    workload: Workload,
    block_bytes: u64,
    transfers: u64,
    issued: u64,
    memory_at: usize,
}

impl Places {
    /// First block on the LUN and offset in the data memory of the next command.
    fn next(&mut self) -> (u64, usize) {
        let bytes = u64::from(self.workload.transfer_bytes);
        let transfer = if self.workload.sequential {
            self.issued % self.transfers
        } else {
            // The high word of a product: no division, and no bias worth speaking of.
            ((u128::from(pattern(1, self.issued)) * u128::from(self.transfers)) >> 64) as u64
        };
        self.issued += 1;
        // Through the whole data memory in order: far apart in time, so no cache holds it.
        let at = self.memory_at;
        self.memory_at += bytes as usize;
        if self.memory_at + bytes as usize > DATA_BYTES {
            self.memory_at = 0;
        }
        ((self.workload.range.offset + transfer * bytes) / self.block_bytes, at)
    }
}

/// Carries `workload` out and reports progress in thousandths.
pub(crate) fn run(
    initiator: &mut Initiator,
    workload: &Workload,
    block_bytes: u32,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(u32) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    let bytes = workload.transfer_bytes;
    ensure!(
        bytes.is_multiple_of(block_bytes) && bytes as usize <= DATA_BYTES,
        "transfers of {bytes} bytes do not fit blocks of {block_bytes}"
    );
    let transfers = workload.range.bytes / u64::from(bytes);
    ensure!(transfers > 0, "the range of {} bytes is too short", workload.range.bytes);
    let block_bytes = u64::from(block_bytes);
    let mut places =
        Places { workload: *workload, block_bytes, transfers, issued: 0, memory_at: 0 };
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 3)
        .context("the histogram's bounds")?;
    let mut started_ns = vec![0_u64; initiator.slots()];
    let mut events = Vec::with_capacity(1024);
    let warm_up_ns = (workload.duration_ns / 4).min(WARM_UP_MAX.as_nanos() as u64);
    let mut end_ns = warm_up_ns + workload.duration_ns;
    let (mut commands, mut retries) = (0_u64, 0_u64);
    let (mut first_ns, mut last_ns) = (warm_up_ns, warm_up_ns);
    let clock = Instant::now();
    let (mut idle, mut heard_ns, mut told_ns) = (0_u32, 0, 0);
    let mut now_ns = 0;
    loop {
        while now_ns < end_ns && initiator.outstanding() < workload.depth {
            let tag = submit(initiator, &mut places)?;
            started_ns[tag] = now_ns;
        }
        if now_ns >= end_ns && initiator.outstanding() == 0 {
            break;
        }
        initiator.poll(&mut events);
        if events.is_empty() {
            idle += 1;
            if workload.yields {
                rustix::thread::sched_yield();
            } else {
                std::hint::spin_loop();
            }
            if idle < IDLE_ROUNDS {
                continue;
            }
        }
        idle = 0;
        now_ns = clock.elapsed().as_nanos() as u64;
        if commands == 0 && now_ns >= end_ns {
            // The machine had no time for us, or a command takes longer than was to be measured: go on
            // until one has ended. How long that may take is asked below.
            end_ns = now_ns + workload.duration_ns.max(1);
        }
        for event in events.drain(..) {
            match event {
                Event::Response { tag, status: GOOD, .. } => {
                    if now_ns >= warm_up_ns && now_ns < end_ns {
                        if commands == 0 {
                            first_ns = first_ns.min(now_ns);
                        }
                        commands += 1;
                        last_ns = now_ns;
                        histogram.saturating_record(now_ns - started_ns[tag.index()]);
                    }
                    heard_ns = now_ns;
                }
                Event::Response { status: BUSY | TASK_SET_FULL, .. } => retries += 1,
                Event::Response { status, sense, .. } => {
                    bail!("LUN {}: status {status:#04x}, sense {sense:02x?}", workload.lun)
                }
                Event::Disconnected | Event::TargetLogout { .. } => {
                    bail!("the target closed the channel")
                }
                _ => {}
            }
        }
        ensure!(
            now_ns - heard_ns < COMMAND_PATIENCE.as_nanos() as u64,
            "LUN {}: no command ended for {COMMAND_PATIENCE:?}",
            workload.lun
        );
        if now_ns - told_ns > 50_000_000 {
            told_ns = now_ns;
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            progress((now_ns * 1000 / end_ns.max(1)).min(1000) as u32)?;
        }
    }
    // The time is that in which the commands ended, not more than was asked for.
    let seconds = (workload.duration_ns.max(last_ns - first_ns)) as f64 / 1e9;
    let iops = commands as f64 / seconds;
    Ok(Figures {
        commands,
        iops,
        megabytes_per_second: iops * f64::from(bytes) / 1e6,
        p50_ns: histogram.value_at_quantile(0.5),
        p99_ns: histogram.value_at_quantile(0.99),
        p999_ns: histogram.value_at_quantile(0.999),
        retries,
    })
}

#[inline]
fn submit(initiator: &mut Initiator, places: &mut Places) -> anyhow::Result<usize> {
    let (lba, offset) = places.next();
    let workload = &places.workload;
    let bytes = workload.transfer_bytes;
    let transfer = cdbs::Transfer::new(lba, (u64::from(bytes) / places.block_bytes) as u32);
    let (cdb, data) = if workload.write {
        (cdbs::write16(transfer), Data::Out { offset, bytes })
    } else {
        (cdbs::read16(transfer), Data::In { offset, bytes })
    };
    Ok(initiator.submit(&Command::new(encode(workload.lun), &cdb, data))?.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Range;

    fn places(sequential: bool) -> Places {
        let workload = Workload {
            lun: 0,
            write: false,
            sequential,
            transfer_bytes: 4096,
            depth: 1,
            range: Range { offset: 1 << 20, bytes: 8 << 20 },
            duration_ns: 0,
            yields: false,
        };
        Places { workload, block_bytes: 512, transfers: 2048, issued: 0, memory_at: 0 }
    }

    #[test]
    fn commands_stay_inside_their_range_and_the_data_memory() {
        for sequential in [false, true] {
            let mut places = places(sequential);
            for _ in 0..100_000 {
                let (lba, at) = places.next();
                assert!(lba >= 2048 && lba + 8 <= 2048 + 16384, "{lba}");
                assert!(lba.is_multiple_of(8) && at + 4096 <= DATA_BYTES);
            }
        }
    }

    #[test]
    fn sequential_commands_follow_each_other_and_begin_again_at_the_end() {
        let mut places = places(true);
        assert_eq!((places.next().0, places.next().0), (2048, 2056));
        places.issued = 2047;
        assert_eq!((places.next().0, places.next().0), (2048 + 16376, 2048));
    }
}
