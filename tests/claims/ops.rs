//! What can happen, as values: proptest makes sequences of them, and makes those that fail shorter.

use std::time::Duration;

use posthaste::model::Change;
use proptest::prelude::*;

/// Destinations of a case: all of one organization, so that each event goes to every enabled one.
pub const DESTINATIONS: usize = 3;
/// Processes that may live at once.
pub const PROCESSES: usize = 2;

/// One step. Numbers that name a row or a lease are taken modulo how many there are.
#[derive(Clone, Debug)]
pub enum Op {
    /// A producer inserts so many events in one statement, and commits or not.
    Ingest { events: usize, commit: bool },
    /// A process asks for all destinations of which the bit is set in `of`, and starts if it does not live.
    /// `one_byte`: there is room for a single event only.
    Claim { process: usize, of: u8, want: usize, one_byte: bool },
    /// Both processes ask for the same destination at once.
    Race { of: usize, wants: [usize; PROCESSES] },
    /// A claim while somebody holds the lock of a row.
    ClaimAround { process: usize, of: usize, want: usize, row: usize },
    /// Results of some of all leases there ever were: late ones and ones that were written before, too.
    Record { results: Vec<(usize, Result)> },
    /// Some of all leases there ever were are renewed.
    Renew { leases: Vec<usize> },
    /// So many half minutes pass: a lease lasts for one and a half.
    Pass { half_minutes: i64 },
    /// A process ends without a word.
    Crash { process: usize },
    /// A destination is disabled, by the dispatcher or by SQL.
    Disable { of: usize, by_dispatcher: bool },
    /// A destination is enabled.
    Enable { of: usize },
    /// A destination becomes ordered, or is not ordered any more.
    Order { of: usize, ordered: bool },
    /// Deliveries of a destination are replayed: the dead ones, or all.
    Replay { of: usize, only_dead: bool },
    /// The application writes to a row, without asking anybody.
    Reset { row: usize, how: Reset },
}

/// A result, and when its attempt started.
#[derive(Clone, Copy, Debug)]
pub struct Result {
    pub kind: Kind,
    /// By a clock that is ten seconds ahead of the database's.
    pub ahead: bool,
}

/// The changes of [`Change`], with delays that fall between half minutes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Delivered,
    Failed { delay: i64 },
    Postponed { delay: i64 },
    Dead { charged: bool },
    GivenBack,
}

impl Kind {
    pub fn change(self) -> Change {
        let seconds = |delay: i64| Duration::from_secs(delay.unsigned_abs());
        match self {
            Kind::Delivered => Change::Delivered,
            Kind::Failed { delay } => Change::Failed { delay: seconds(delay) },
            Kind::Postponed { delay } => Change::Postponed { delay: seconds(delay) },
            Kind::Dead { charged } => Change::Dead { charged },
            Kind::GivenBack => Change::GivenBack,
        }
    }
}

/// What applications do to rows: all of it makes them pending, with no attempt counted.
#[derive(Clone, Copy, Debug)]
pub enum Reset {
    /// Due as soon as nobody holds it: `next_retry_at` NULL.
    NoTime,
    /// Due now, whoever holds it.
    Now,
    /// As new: neither `next_retry_at` nor `last_attempt_at`.
    AsNew,
}

/// Sequences of at most `longest` steps.
pub fn sequences(longest: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..=longest)
}

fn op() -> impl Strategy<Value = Op> {
    let process = 0..PROCESSES;
    let of = 0..DESTINATIONS;
    let want = 1..5usize;
    let row = 0..40usize;
    prop_oneof![
        4 => (1..5usize, prop::bool::weighted(0.9))
            .prop_map(|(events, commit)| Op::Ingest { events, commit }),
        8 => (process.clone(), 1..(1u8 << DESTINATIONS), want.clone(), prop::bool::weighted(0.1))
            .prop_map(|(process, of, want, one_byte)| Op::Claim { process, of, want, one_byte }),
        3 => (of.clone(), [want.clone(), want.clone()]).prop_map(|(of, wants)| Op::Race { of, wants }),
        2 => (process.clone(), of.clone(), want, row.clone())
            .prop_map(|(process, of, want, row)| Op::ClaimAround { process, of, want, row }),
        8 => prop::collection::vec((0..40usize, result()), 1..5).prop_map(|results| Op::Record { results }),
        3 => prop::collection::vec(0..40usize, 1..5).prop_map(|leases| Op::Renew { leases }),
        4 => (1..4i64).prop_map(|half_minutes| Op::Pass { half_minutes }),
        2 => process.prop_map(|process| Op::Crash { process }),
        1 => (of.clone(), any::<bool>()).prop_map(|(of, by_dispatcher)| Op::Disable { of, by_dispatcher }),
        2 => of.clone().prop_map(|of| Op::Enable { of }),
        1 => (of.clone(), any::<bool>()).prop_map(|(of, ordered)| Op::Order { of, ordered }),
        1 => (of, any::<bool>()).prop_map(|(of, only_dead)| Op::Replay { of, only_dead }),
        1 => (row, prop_oneof![Just(Reset::NoTime), Just(Reset::Now), Just(Reset::AsNew)])
            .prop_map(|(row, how)| Op::Reset { row, how }),
    ]
}

fn result() -> impl Strategy<Value = Result> {
    let delay = prop_oneof![Just(0i64), Just(15), Just(45), Just(105)];
    let kind = prop_oneof![
        3 => Just(Kind::Delivered),
        3 => delay.clone().prop_map(|delay| Kind::Failed { delay }),
        2 => delay.prop_map(|delay| Kind::Postponed { delay }),
        1 => any::<bool>().prop_map(|charged| Kind::Dead { charged }),
        3 => Just(Kind::GivenBack),
    ];
    (kind, prop::bool::weighted(0.1)).prop_map(|(kind, ahead)| Result { kind, ahead })
}
