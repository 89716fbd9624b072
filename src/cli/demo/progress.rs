//! How far the demo is: bars on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::plan::{ORGANIZATIONS, Participant};

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Columns for the name of a participant.
const NAME_WIDTH: usize = 26;

/// What there is to show.
pub struct Standing<'a> {
    /// Since the first event.
    pub elapsed: Duration,
    /// Events that the application has committed.
    pub written: usize,
    /// Whether all receivers are healthy by now.
    pub healed: bool,
    /// Requests that receivers refused or let hang.
    pub refused: usize,
    /// Per participant: events that should have arrived, or are on their way.
    pub wanted: &'a [usize],
    /// Per participant: events that have arrived.
    pub arrived: &'a [usize],
}

/// One of the two ways to show it.
pub enum Progress {
    /// A bar for the events, and one for each participant.
    Bars {
        /// Events written.
        events: ProgressBar,
        /// Arrivals, in the participants' order.
        arrivals: Vec<ProgressBar>,
    },
    /// A line now and then.
    Lines {
        /// How many events there will be.
        total: usize,
        /// When the next line is due.
        next: Duration,
    },
}

/// The name of a participant for people.
pub fn name(participant: &Participant) -> String {
    format!("{} / {}", ORGANIZATIONS[participant.org], participant.name)
}

impl Progress {
    /// Bars if standard output is a terminal.
    pub fn new(participants: &[Participant], total: usize) -> Progress {
        if !std::io::stdout().is_terminal() {
            return Progress::Lines { total, next: Duration::ZERO };
        }
        let screen = MultiProgress::new();
        let style = ProgressStyle::with_template(&format!(
            "{{prefix:{NAME_WIDTH}}} {{bar:40}} {{pos}} of {{len}} {{msg}}"
        ))
        .expect("the template is a constant");
        let bar = |length: usize, prefix: String| {
            let bar = ProgressBar::new(length as u64).with_style(style.clone()).with_prefix(prefix);
            screen.add(bar)
        };
        let events = bar(total, "events written".into());
        let arrivals = participants.iter().map(|participant| bar(0, name(participant))).collect();
        Progress::Bars { events, arrivals }
    }

    /// Shows `standing`, if it is time.
    pub fn show(&mut self, standing: &Standing<'_>) {
        match self {
            Progress::Bars { events, arrivals } => {
                events.set_position(standing.written as u64);
                events.set_message(remarks(standing));
                for (index, bar) in arrivals.iter().enumerate() {
                    bar.set_length(standing.wanted[index] as u64);
                    bar.set_position(standing.arrived[index] as u64);
                }
            }
            Progress::Lines { total, next } => {
                if standing.elapsed >= *next {
                    *next = standing.elapsed + LINE_EVERY;
                    print_line(standing, *total);
                }
            }
        }
    }

    /// Shows the last `standing` for good.
    pub fn finish(self, standing: &Standing<'_>) {
        match self {
            Progress::Bars { events, arrivals } => {
                arrivals.iter().chain([&events]).for_each(ProgressBar::abandon);
            }
            Progress::Lines { total, .. } => print_line(standing, total),
        }
    }
}

fn remarks(standing: &Standing<'_>) -> String {
    let health =
        if standing.healed { "all receivers are healthy" } else { "one receiver hangs, one is flaky" };
    format!("  {} requests failed; {health}", standing.refused)
}

fn print_line(standing: &Standing<'_>, total: usize) {
    let (arrived, wanted): (usize, usize) = (standing.arrived.iter().sum(), standing.wanted.iter().sum());
    println!(
        "{:6.1} s  {} of {total} events written, {arrived} of {wanted} deliveries arrived, {}",
        standing.elapsed.as_secs_f64(),
        standing.written,
        remarks(standing).trim_start(),
    );
}
