// SPDX-License-Identifier: Apache-2.0
//! The table: what was measured, what it should be, what a peer did in the same run.

use serde_json::{Value, json};

/// Unit of a figure, as it is printed.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Milliseconds,
    Seconds,
    Gigabits,
    KiloPackets,
    Megabytes,
    Percent,
    PerSecond,
    Times,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Gigabits => "Gbit/s",
            Self::KiloPackets => "kpps",
            Self::Megabytes => "MB",
            Self::Percent => "%",
            Self::PerSecond => "/s",
            Self::Times => "x",
        }
    }

    fn number(value: f64) -> String {
        match value.abs() {
            small if small < 1.0 => format!("{value:.3}"),
            middle if middle < 20.0 => format!("{value:.2}"),
            _ => format!("{value:.0}"),
        }
    }

    fn text(self, value: f64) -> String {
        format!("{} {}", Self::number(value), self.name())
    }
}

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    AtMost(f64),
    AtLeast(f64),
    /// Only told.
    None,
}

/// One line.
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) unit: Unit,
    /// One for each repetition.
    pub(crate) samples: Vec<f64>,
    pub(crate) budget: Budget,
    /// Who, and its samples.
    pub(crate) peer: Option<(&'static str, Vec<f64>)>,
}

impl Row {
    pub(crate) fn value(&self) -> f64 {
        median(&self.samples)
    }

    fn verdict(&self) -> &'static str {
        match self.budget {
            Budget::AtMost(limit) if self.value() <= limit => "met",
            Budget::AtLeast(limit) if self.value() >= limit => "met",
            Budget::None => "-",
            _ => "MISSED",
        }
    }

    fn budget_text(&self) -> String {
        match self.budget {
            Budget::AtMost(limit) => format!("<= {}", self.unit.text(limit)),
            Budget::AtLeast(limit) => format!(">= {}", self.unit.text(limit)),
            Budget::None => "-".to_owned(),
        }
    }

    fn measured_text(&self) -> String {
        let (low, high) = spread(&self.samples);
        let value = self.unit.text(self.value());
        if self.samples.len() < 2 {
            return value;
        }
        format!("{value} ({}..{})", Unit::number(low), Unit::number(high))
    }

    fn peer_text(&self) -> String {
        let text = |(who, samples): &(&str, Vec<f64>)| format!("{who} {}", self.unit.text(median(samples)));
        self.peer.as_ref().map_or_else(|| "-".to_owned(), text)
    }

    /// As one object.
    pub(crate) fn to_json(&self) -> Value {
        let (low, high) = spread(&self.samples);
        let budget = match self.budget {
            Budget::AtMost(limit) => json!({ "atMost": limit }),
            Budget::AtLeast(limit) => json!({ "atLeast": limit }),
            Budget::None => Value::Null,
        };
        let peer =
            |(who, samples): &(&str, Vec<f64>)| json!({ "name": who, "median": median(samples), "samples": samples });
        json!({
            "figure": self.figure, "unit": self.unit.name(), "median": self.value(), "low": low, "high": high,
            "samples": self.samples, "budget": budget, "verdict": self.verdict(), "peer": self.peer.as_ref().map(peer),
        })
    }
}

/// The whole table as text.
pub(crate) fn render(rows: &[Row]) -> String {
    let head = ["figure", "measured (spread)", "budget", "verdict", "peer in the same run"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        [row.figure.clone(), row.measured_text(), row.budget_text(), row.verdict().to_owned(), row.peer_text()]
    });
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(cells).collect();
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let padded: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("  ").trim_end();
        text += "\n";
        if number == 0 {
            text += &widths.map(|width| "-".repeat(width)).join("  ");
            text += "\n";
        }
    }
    text
}

/// Middle of the samples; NaN of none, which no budget calls met.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn spread(samples: &[f64]) -> (f64, f64) {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    (low, samples.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}
