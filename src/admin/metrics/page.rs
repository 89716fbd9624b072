//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

use super::Family;
use crate::actors::metrics::{Histogram, STEPS_MICROS};

/// A page under construction. Labels are given as they stand between the braces: ids and words of our own, in
/// which nothing has to be escaped.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// A family that has one sample.
    pub fn value(&mut self, family: &Family, labels: &str, value: impl Display) {
        self.values(family, [(labels, value)]);
    }

    /// A family and its samples.
    pub fn values<L: AsRef<str>, V: Display>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(family);
        for (labels, value) in samples {
            self.line(family.name, "", labels.as_ref(), value);
        }
    }

    /// A family of histograms.
    pub fn histograms<'a>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (&'a str, &'a Histogram)>,
    ) {
        self.head(family);
        for (labels, histogram) in samples {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut count = 0;
            for (step, more) in histogram.counts.iter().enumerate() {
                count += more;
                let end = STEPS_MICROS.get(step).map_or("+Inf".into(), |micros| seconds(*micros).to_string());
                self.line(family.name, "_bucket", &format!("{labels}{comma}le=\"{end}\""), count);
            }
            self.line(family.name, "_sum", labels, seconds(histogram.micros));
            self.line(family.name, "_count", labels, count);
        }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.0
    }

    fn head(&mut self, Family { name, kind, help, .. }: &Family) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &str, value: impl Display) {
        match labels {
            "" => self.write(format_args!("{name}{suffix} {value}\n")),
            _ => self.write(format_args!("{name}{suffix}{{{labels}}} {value}\n")),
        }
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String takes whatever is written");
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
