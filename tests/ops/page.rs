//! A page of metrics, taken apart.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::common::{Posthaste, skip};

/// A page of metrics.
pub struct Page {
    pub text: String,
    /// By family: its type.
    pub types: BTreeMap<String, String>,
    /// By name and labels, as they are written.
    samples: BTreeMap<String, f64>,
}

impl Page {
    /// The page of a running program.
    pub async fn of(posthaste: &Posthaste) -> Page {
        let (status, text) =
            posthaste.get_from(posthaste.operations_address(), "/metrics").await.expect("a page");
        assert_eq!(status, 200);
        Page::parse(text)
    }

    fn parse(text: String) -> Page {
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        Page { text, types, samples }
    }

    /// The value of a series; `labels` are some of its labels, in the order of the page.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{}", self.text))
    }

    /// [`Page::value`], if there is one.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let mut found = self.series(name).filter(|(labels, _)| wanted.iter().all(|w| labels.contains(w)));
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "several {name} with {labels:?}");
        Some(value)
    }

    /// Labels and values of all series of that name.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (Vec<String>, f64)> {
        let labels = move |series: &str| {
            let (this, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            (this == name).then(|| labels.map(str::to_owned).collect::<Vec<_>>())
        };
        self.samples.iter().filter_map(move |(series, value)| Some((labels(series)?, *value)))
    }

    /// The names of all samples, and those of all labels.
    pub fn names(&self) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let names = self.samples.keys().map(|series| series.split('{').next().unwrap()).collect();
        let inside = self.samples.keys().filter_map(|series| series.split_once('{'));
        let labels = inside.flat_map(|(_, labels)| labels.split(',').map(|l| l.split('=').next().unwrap()));
        (names, labels.collect())
    }
}

/// Runs promtool, if this machine has it; `input` goes to its standard input. It must find nothing.
pub fn promtool(arguments: &[&str], input: &str) {
    let command = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = command else {
        return skip(&format!("promtool is missing (Debian: package prometheus), for {arguments:?}"));
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    let is_well = output.status.success() && (said.trim().is_empty() || said.contains("SUCCESS"));
    assert!(is_well, "promtool {arguments:?} says:\n{said}");
}
