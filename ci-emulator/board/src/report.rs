//! The measurements as a table and as JSON.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::configuration::Seen;
use crate::conversation::{Figures, Workload};
use crate::cores::Plan;

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// LUN.
    pub lun: u16,
    /// Device.
    pub device: String,
    /// Handler.
    pub handler: &'static str,
    /// `card` or `host`.
    pub backend: &'static str,
    /// `card_dram` or `host_dram`.
    pub placement: &'static str,
    /// `read` or `write`.
    pub operation: &'static str,
    /// `random` or `sequential`.
    pub order: &'static str,
    /// Bytes of a command.
    pub transfer_bytes: u32,
    /// Commands outstanding.
    pub depth: u32,
    /// The result.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Row {
    /// The row of `workload` on `lun`.
    #[must_use]
    pub fn new(lun: &Seen, workload: &Workload, figures: Figures) -> Self {
        Self {
            lun: lun.lun,
            device: lun.device.clone(),
            handler: lun.handler,
            backend: if lun.on_host { "host" } else { "card" },
            placement: lun.placement,
            operation: if workload.write { "write" } else { "read" },
            order: if workload.sequential { "sequential" } else { "random" },
            transfer_bytes: workload.transfer_bytes,
            depth: workload.depth,
            figures,
        }
    }
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Cores the run could use.
    pub cores: usize,
    /// Poll groups of the card.
    pub poll_groups: u32,
    /// The measurements.
    pub measurements: Vec<Row>,
    /// The comparison with the floor, where there is a null device on the card.
    pub floor: Option<Comparison>,
}

/// 4 KiB random reads at depth 32 from a null device on the card beside the floor program, the best
/// of windows taken by turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Commands a second.
    pub iops: f64,
    /// Transfers a second of the floor program.
    pub floor_iops: f64,
}

impl Comparison {
    /// What people read of it.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!(
            "4 KiB random read at depth 32, null device on the card: {} IOPS, {:.0} % of the floor \
             ({} transfers a second with the same copies and nothing else)",
            thousands(self.iops),
            self.iops / self.floor_iops * 100.0,
            thousands(self.floor_iops)
        )
    }
}

impl Report {
    /// A report without measurements.
    #[must_use]
    pub fn new(duration: Duration, poll_groups: u32) -> Self {
        Self {
            seconds: duration.as_secs_f64(),
            cores: Plan::for_this_machine(1).available,
            poll_groups,
            measurements: Vec::new(),
            floor: None,
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header([
            "LUN",
            "device",
            "backend",
            "data in",
            "workload",
            "depth",
            "IOPS",
            "MB/s",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
        ]);
        for row in &self.measurements {
            let figures = &row.figures;
            table.add_row([
                row.lun.to_string(),
                row.device.clone(),
                row.backend.to_owned(),
                row.placement.to_owned(),
                format!("{} KiB {} {}", row.transfer_bytes >> 10, row.order, row.operation),
                row.depth.to_string(),
                thousands(figures.iops),
                thousands(figures.megabytes_per_second),
                microseconds(figures.p50_ns),
                microseconds(figures.p99_ns),
                microseconds(figures.p999_ns),
            ]);
        }
        for column in [0, 5, 6, 7, 8, 9, 10] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }
}

/// A whole number with its digits in groups of three.
#[must_use]
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds with as many decimals as say something.
#[must_use]
pub fn microseconds(nanoseconds: u64) -> String {
    let value = nanoseconds as f64 / 1e3;
    if value < 100.0 { format!("{value:.1}") } else { thousands(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &'static str, depth: u32, iops: f64) -> Row {
        Row {
            lun: 1,
            device: "null_card".to_owned(),
            handler: "vdisk_nullio",
            backend,
            placement: "card_dram",
            operation: "read",
            order: "random",
            transfer_bytes: 4096,
            depth,
            figures: Figures {
                commands: 10,
                iops,
                megabytes_per_second: 4.0,
                p50_ns: 1_500,
                p99_ns: 123_456,
                p999_ns: 2_000_000,
                retries: 0,
            },
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(1_234_567.4), "1,234,567");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(0.0), "0");
        assert_eq!(microseconds(1_550), "1.6");
        assert_eq!(microseconds(1_234_000), "1,234");
    }

    #[test]
    fn the_table_has_a_row_for_each_measurement() {
        let mut report = Report::new(Duration::from_secs(1), 2);
        report.measurements = vec![row("host", 32, 1.0), row("card", 32, 750_000.0)];
        let table = report.table();
        assert_eq!(table.matches("4 KiB random read").count(), 2, "{table}");
        assert!(table.contains("750,000"), "{table}");
    }

    #[test]
    fn the_comparison_is_in_per_cent_of_the_floor() {
        let text = Comparison { iops: 750_000.0, floor_iops: 1e6 }.sentence();
        assert!(text.contains("750,000 IOPS, 75 % of the floor (1,000,000 "), "{text}");
    }
}
