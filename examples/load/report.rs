//! What was measured: kept, shown as it comes, and at the end as one table and as lines of JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// The figures of one run of one variant of a scenario.
#[derive(Clone, Debug)]
pub struct Row {
    scenario: &'static str,
    variant: String,
    /// 1-based.
    run: u32,
    figures: Vec<(&'static str, f64)>,
}

impl Row {
    pub fn new(scenario: &'static str, variant: impl Into<String>, run: u32) -> Row {
        Row { scenario, variant: variant.into(), run, figures: Vec::new() }
    }

    /// Adds a figure. Its name ends with its unit.
    pub fn figure(mut self, name: &'static str, value: f64) -> Row {
        self.figures.push((name, value));
        self
    }

    /// Adds a figure if there is one.
    pub fn maybe(self, name: &'static str, value: Option<f64>) -> Row {
        match value {
            Some(value) => self.figure(name, value),
            None => self,
        }
    }

    /// A line for somebody who watches.
    pub fn line(&self) -> String {
        let mut line = format!("{} [{}] run {}:", self.scenario, self.variant, self.run);
        for (name, value) in &self.figures {
            write!(line, " {name} {}", number(*value)).unwrap_or(());
        }
        line
    }

    fn json(&self, machine: &Machine) -> Value {
        let figures: Map<String, Value> =
            self.figures.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        json!({
            "scenario": self.scenario,
            "variant": self.variant,
            "run": self.run,
            "figures": figures,
            "machine": machine,
        })
    }
}

/// One line of JSON per row.
pub fn json_lines(rows: &[Row], machine: &Machine) -> String {
    rows.iter().map(|row| format!("{}\n", row.json(machine))).collect()
}

/// Median, least and most of each figure over all runs.
pub fn table(rows: &[Row]) -> String {
    let mut lines: Vec<[String; 7]> = Vec::new();
    lines.push(["scenario", "variant", "figure", "median", "min", "max", "runs"].map(str::to_owned));
    let mut groups: Vec<(&'static str, &str)> = rows.iter().map(|r| (r.scenario, &*r.variant)).collect();
    let mut seen = std::collections::HashSet::new();
    groups.retain(|group| seen.insert(*group));
    for (scenario, variant) in groups {
        let runs: Vec<&Row> =
            rows.iter().filter(|r| r.scenario == scenario && r.variant == variant).collect();
        let mut names: Vec<&'static str> = Vec::new();
        for name in runs.iter().flat_map(|row| row.figures.iter().map(|(name, _)| *name)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for (at, name) in names.into_iter().enumerate() {
            let values = runs.iter().flat_map(|row| row.figures.iter());
            let mut values: Vec<f64> = values.filter(|(n, _)| *n == name).map(|(_, v)| *v).collect();
            values.sort_by(f64::total_cmp);
            let [least, most] = [values[0], values[values.len() - 1]];
            let title = |text: &str| if at == 0 { text.to_owned() } else { String::new() };
            let median = number(median(&values));
            let runs = values.len().to_string();
            lines.push([
                title(scenario),
                title(variant),
                name.into(),
                median,
                number(least),
                number(most),
                runs,
            ]);
        }
    }
    aligned(&lines)
}

/// The middle one of sorted values, or the mean of the two in the middle.
pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The first three columns to the left, the numbers to the right.
fn aligned(lines: &[[String; 7]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let written = match column {
                0..3 => write!(text, "{cell:<width$}  "),
                _ => write!(text, "{cell:>width$}  "),
            };
            written.unwrap_or(());
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Three digits that say something, more where the number is large.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
