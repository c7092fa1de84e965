//! What `guest/measure.sh` measured: figures by name, their medians and spreads, and Lunar's share of
//! LIO's. What is measured, and how, is not known here.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::json;

/// The two that are compared, as the guest calls them: the second's figure is divided by the first's.
const TARGETS: [&str; 2] = ["lio", "lunar"];

/// One figure of all turns, for each of [`TARGETS`].
#[derive(Default)]
struct Row {
    backstore: String,
    job: String,
    unit: String,
    values: [Vec<f64>; 2],
}

/// Everything that was measured.
#[derive(Default)]
pub struct Figures {
    /// The names of figures in the order in which they first came, and where each one's rows are.
    tables: Vec<(String, Vec<Row>)>,
    /// What belongs to neither target alone, by name.
    others: BTreeMap<String, f64>,
}

/// Median and extremes of at least one value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    Some(Spread { median, least, most })
}

impl Row {
    /// Lunar's median over LIO's; `None` unless there are both, and LIO's is not zero.
    fn ratio(&self) -> Option<f64> {
        let [lio, lunar] = [spread(&self.values[0])?, spread(&self.values[1])?];
        (lio.median != 0.0).then(|| lunar.median / lio.median)
    }
}

impl Figures {
    /// Takes down a line `TARGET/BACKSTORE/JOB/FIGURE VALUE UNIT`.
    pub fn add(&mut self, line: &str) -> Result<()> {
        let not_understood = || format!("`{line}` is no figure");
        let words: Vec<&str> = line.split(' ').collect();
        let [name, value, unit] = words[..] else { anyhow::bail!(not_understood()) };
        let value: f64 = value.parse().with_context(not_understood)?;
        let parts: Vec<&str> = name.split('/').collect();
        let [target, backstore, job, figure] = parts[..] else { anyhow::bail!(not_understood()) };
        let Some(target) = TARGETS.iter().position(|known| *known == target) else {
            self.others.insert(format!("{name} {unit}"), value);
            return Ok(());
        };
        let table = position_or_insert(
            &mut self.tables,
            |(name, _)| name == figure,
            || (figure.to_string(), Vec::new()),
        );
        let rows = &mut self.tables[table].1;
        let row = position_or_insert(
            rows,
            |row| row.backstore == backstore && row.job == job,
            || Row {
                backstore: backstore.to_string(),
                job: job.to_string(),
                unit: unit.to_string(),
                ..Row::default()
            },
        );
        rows[row].values[target].push(value);
        Ok(())
    }

    /// The tables for readers: one a figure, in Markdown.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (name, value) in &self.others {
            let _ = writeln!(text, "\n{name}: {value}");
        }
        for (figure, rows) in &self.tables {
            let runs = rows.iter().flat_map(|row| &row.values).map(Vec::len).max().unwrap_or(0);
            let _ = writeln!(text, "\n{figure}: median (min..max) of {runs}\n");
            let _ = writeln!(text, "| backstore | job | unit | LIO | Lunar | Lunar/LIO |");
            let _ = writeln!(text, "|---|---|---|---:|---:|---:|");
            for row in rows {
                let [lio, lunar] = row.values.each_ref().map(|values| cell(values));
                let ratio = row.ratio().map_or("-".to_string(), |ratio| format!("{ratio:.2}"));
                let Row { backstore, job, unit, .. } = row;
                let _ =
                    writeln!(text, "| {backstore} | {job} | {unit} | {lio} | {lunar} | {ratio} |");
            }
        }
        text
    }

    /// The same for programs, with every value.
    pub fn json(&self) -> serde_json::Value {
        let one = |figure: &str, row: &Row| {
            let [lio, lunar] = row.values.each_ref().map(|values| {
                spread(values).map(|spread| {
                    json!({
                        "median": spread.median,
                        "min": spread.least,
                        "max": spread.most,
                        "values": values,
                    })
                })
            });
            json!({
                "figure": figure,
                "backstore": row.backstore,
                "job": row.job,
                "unit": row.unit,
                "lio": lio,
                "lunar": lunar,
                "ratio": row.ratio(),
            })
        };
        let figures: Vec<_> = self
            .tables
            .iter()
            .flat_map(|(figure, rows)| rows.iter().map(|row| one(figure, row)))
            .collect();
        json!({ "figures": figures, "others": self.others })
    }
}

fn position_or_insert<T>(
    all: &mut Vec<T>,
    is_meant: impl FnMut(&T) -> bool,
    new: impl FnOnce() -> T,
) -> usize {
    all.iter().position(is_meant).unwrap_or_else(|| {
        all.push(new());
        all.len() - 1
    })
}

fn cell(values: &[f64]) -> String {
    match spread(values) {
        None => "-".to_string(),
        Some(Spread { median, least, most }) => format!("{median:.0} ({least:.0}..{most:.0})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_middle_two() {
        assert_eq!(spread(&[]), None);
        let of_three = spread(&[3.0, 100.0, 1.0]);
        assert_eq!(of_three, Some(Spread { median: 3.0, least: 1.0, most: 100.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]).map(|s| s.median), Some(3.0));
    }

    #[test]
    fn figures_of_both_targets_meet_in_one_row_with_their_ratio() {
        let mut figures = Figures::default();
        for line in [
            "both/idle/nothing/machine_cpu 5 us/s",
            "lio/null/randread-4k-1/rate 400 IO/s",
            "lunar/null/randread-4k-1/rate 300 IO/s",
            "lunar/null/randread-4k-1/rate 500 IO/s",
            "lunar/null/randread-4k-1/rate 200 IO/s",
            "lunar/null/randread-4k-1/own_cpu 70 us/IO",
        ] {
            figures.add(line).unwrap();
        }
        let text = figures.tables();
        let row = "| null | randread-4k-1 | IO/s | 400 (400..400) | 300 (200..500) | 0.75 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| null | randread-4k-1 | us/IO | - | 70 (70..70) | - |"), "{text}");
        assert!(text.contains("both/idle/nothing/machine_cpu us/s: 5"), "{text}");
        let json = figures.json();
        assert_eq!(json["figures"][0]["ratio"], 0.75);
        assert_eq!(json["figures"][1]["lio"], serde_json::Value::Null);
    }

    #[test]
    fn a_line_that_is_no_figure_is_refused() {
        for line in
            ["", "lio/null/rate 4 IO/s", "lio/null/job/rate much IO/s", "lio/null/job/rate 4"]
        {
            assert!(Figures::default().add(line).is_err(), "{line}");
        }
    }
}
