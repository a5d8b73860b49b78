//! What was measured, with what it was measured on.

use std::{path::Path, process::Command};

use anyhow::Context;
use serde_json::{Map, Value, json};

/// A table with its circumstances.
pub struct Report {
    title: String,
    settings: Map<String, Value>,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
    notes: Vec<String>,
}

impl Report {
    pub fn new(title: impl Into<String>, settings: Value, columns: &[&'static str]) -> Self {
        let settings = match settings {
            Value::Object(settings) => settings,
            other => Map::from_iter([("settings".to_owned(), other)]),
        };
        Self { title: title.into(), settings, columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// A line of the table; also printed at once, since a bench can take long.
    pub fn row(&mut self, row: Vec<Value>) {
        eprintln!("  {}", row.iter().map(shown).collect::<Vec<_>>().join("  "));
        self.rows.push(row);
    }

    pub fn note(&mut self, note: String) {
        eprintln!("  {note}");
        self.notes.push(note);
    }

    pub fn print(&self) {
        println!("\n## {}\n", self.title);
        println!("Machine: {}. Commit {}.", machine(), commit());
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name} {}", shown(value))).collect();
        println!("Settings: {}.\n", settings.join(", "));
        println!("| {} |\n|{}", self.columns.join(" | "), " --- |".repeat(self.columns.len()));
        for row in &self.rows {
            println!("| {} |", row.iter().map(shown).collect::<Vec<_>>().join(" | "));
        }
        println!();
        for note in &self.notes {
            println!("{note}");
        }
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let whole = json!({
            "title": self.title, "machine": machine(), "commit": commit(), "settings": self.settings,
            "columns": self.columns, "rows": self.rows, "notes": self.notes,
        });
        std::fs::write(path, serde_json::to_string_pretty(&whole)?).context("writing the JSON")
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores ({model}), {} GiB, Linux {}", kib / (1 << 20), kernel.trim())
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The exponent of a cost that grows like size^exponent, between the first and the last point.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let ((size, cost), (last_size, last_cost)) = (points.first()?, points.last()?);
    let exponent = (last_cost / cost).ln() / (last_size / size).ln();
    exponent.is_finite().then_some(exponent)
}
