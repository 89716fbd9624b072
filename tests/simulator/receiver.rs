//! Receivers that answer as they are told to.

use std::time::Duration;

use fastrand::Rng;
use posthaste::model::Answer;

use crate::draw::Time;

pub struct Receiver {
    pub fastest: Time,
    pub slowest: Time,
    /// What it answers to a request with a bad event.
    pub refuses_with: u16,
    /// It answers 413 to larger batches.
    pub most_events: Option<usize>,
    /// After the last one it is well.
    pub phases: Vec<Phase>,
}

pub struct Phase {
    pub until: Time,
    pub manner: Manner,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Manner {
    Well,
    Answers(u16),
    Hangs,
    Pauses(u16, Option<u32>),
    /// Fails with this chance.
    Flaky(f64),
    /// Answers 500 to batches of more.
    FailsAbove(usize),
    Gone,
    /// Refuses every event.
    RefusesAll(u16),
}

impl Receiver {
    fn manner(&self, now: Time) -> Manner {
        self.phases.iter().find(|phase| now < phase.until).map_or(Manner::Well, |phase| phase.manner)
    }

    /// The answer to a request with so many events, and how long it takes.
    pub fn answer(
        &self,
        now: Time,
        events: usize,
        bad: bool,
        timeout: Duration,
        rng: &mut Rng,
    ) -> (Answer, Time) {
        let takes = rng.i64(self.fastest..=self.slowest);
        let timeout = timeout.as_micros() as Time;
        if takes >= timeout {
            return (Answer::Failed("timed out".into()), timeout);
        }
        let status = match self.manner(now) {
            Manner::Hangs => {
                return (Answer::Failed("timed out".into()), timeout);
            }
            Manner::Pauses(status, after) => return (response(status, after), takes),
            Manner::Answers(status) => status,
            Manner::Gone => 410,
            Manner::RefusesAll(status) => status,
            Manner::FailsAbove(most) if events > most => 500,
            Manner::Flaky(part) if rng.f64() < part => 500,
            Manner::Well | Manner::Flaky(_) | Manner::FailsAbove(_) => match self.most_events {
                Some(most) if events > most => 413,
                _ if bad => self.refuses_with,
                _ => 200,
            },
        };
        (response(status, None), takes)
    }
}

fn response(status: u16, retry_after: Option<u32>) -> Answer {
    Answer::Response {
        status,
        body: String::new(),
        retry_after: retry_after.map(|seconds| seconds.to_string()),
        broken: None,
    }
}
