// SPDX-License-Identifier: Apache-2.0
//! What was measured: samples by path and figure, kept as JSON, printed as a table, compared with an earlier run.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

/// One figure of one path.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    path: String,
    figure: String,
    unit: String,
    samples: Vec<f64>,
    median: f64,
}

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) revision: String,
    #[serde(rename = "loadBefore")]
    pub(crate) load_before: String,
    #[serde(rename = "loadAfter")]
    pub(crate) load_after: String,
    rows: Vec<Row>,
    /// Paths that could not be had, or not be measured to the end, and why.
    #[serde(default)]
    skipped: BTreeMap<String, String>,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        small if small < 1.0 => format!("{value:.3}"),
        middle if middle < 20.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

impl Report {
    pub(crate) fn new(revision: String, load: String) -> Self {
        Self { revision, load_before: load.clone(), load_after: load, rows: Vec::new(), skipped: BTreeMap::new() }
    }

    /// Notes that a path was left out.
    pub(crate) fn skip(&mut self, path: &str, why: String) {
        self.skipped.insert(path.to_owned(), why);
    }

    pub(crate) fn add(&mut self, path: &str, figure: &str, unit: &str, value: f64) {
        let found = self.rows.iter_mut().find(|row| row.path == path && row.figure == figure);
        match found {
            Some(row) => {
                row.samples.push(value);
                row.median = median(&row.samples);
            }
            None => self.rows.push(Row {
                path: path.to_owned(),
                figure: figure.to_owned(),
                unit: unit.to_owned(),
                samples: vec![value],
                median: value,
            }),
        }
    }

    fn value(&self, path: &str, figure: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path && row.figure == figure)
    }

    fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !paths.contains(&row.path.as_str()) {
                paths.push(&row.path);
            }
        }
        paths
    }

    /// Figures by path, each with its spread and its ratio to the first path's; then what each process costs.
    pub(crate) fn table(&self) -> String {
        let paths = self.paths();
        let mut figures: Vec<(&str, &str)> = Vec::new();
        for row in self.rows.iter().filter(|row| !row.figure.contains(": ")) {
            if !figures.iter().any(|(figure, _)| *figure == row.figure) {
                figures.push((&row.figure, &row.unit));
            }
        }
        let mut lines =
            vec![["figure", "unit"].iter().chain(&paths).map(|word| (*word).to_owned()).collect::<Vec<_>>()];
        for (figure, unit) in figures {
            let base = self.value(paths.first().copied().unwrap_or_default(), figure).map(|row| row.median);
            let cell = |path: &&str| match self.value(path, figure) {
                Some(row) => {
                    let (low, high) = row.samples.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
                    let ratio = base.map_or_else(String::new, |base| format!(" x{}", number(row.median / base)));
                    format!("{} ({}..{}){ratio}", number(row.median), number(low), number(high))
                }
                None => "-".to_owned(),
            };
            lines.push([figure.to_owned(), unit.to_owned()].into_iter().chain(paths.iter().map(cell)).collect());
        }
        let mut text = aligned(&lines);
        let mut costs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.figure.contains(": ")) {
            costs.entry(&row.path).or_default().push(format!("{} {} {}", row.figure, number(row.median), row.unit));
        }
        for (path, costs) in costs {
            let _ = write!(text, "\n{path}\n");
            for cost in costs {
                let _ = writeln!(text, "  {}", cost.trim_end());
            }
        }
        for (path, why) in &self.skipped {
            let _ = writeln!(text, "\nSKIP {path}: {why}");
        }
        text
    }

    /// This run beside an earlier one: ratios of medians, and whether the spreads are apart.
    pub(crate) fn compare(&self, earlier: &Self) -> String {
        let mut lines = vec![["path", "figure", "unit", "earlier", "now", "ratio", ""].map(str::to_owned).to_vec()];
        let spread = |row: &Row| row.samples.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        for row in &self.rows {
            let Some(before) = earlier.value(&row.path, &row.figure) else { continue };
            let ((low, high), (old_low, old_high)) = (spread(row), spread(before));
            let apart = if low > old_high || high < old_low { "apart" } else { "" };
            let ratio = number(row.median / before.median);
            let cells = [&row.path, &row.figure, &row.unit, &number(before.median), &number(row.median), &ratio, apart];
            lines.push(cells.map(ToString::to_string).to_vec());
        }
        format!(
            "against {} (load {} then, {} now)\n{}",
            earlier.revision,
            earlier.load_before,
            self.load_before,
            aligned(&lines)
        )
    }
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}
