//! The application's part in the demo: a steady stream of events, and the wait until all have arrived.

use std::time::{Duration, Instant};

use super::plan::{self, Participant};
use super::progress::{Progress, Standing};
use super::receivers::Receivers;
use super::{Args, Failure};
use crate::clock;
use crate::model::{EventId, OrgId};
use crate::store::{self, demo};

/// Pause between two INSERTs.
const TICK: Duration = Duration::from_millis(50);
/// Most events of one INSERT.
const MAX_INSERT: usize = 5000;
/// When the sick receivers heal, as a part of the time over which events are written.
const HEAL_AFTER: f64 = 0.4;
/// How long after the last event the demo waits: probes of a destination that failed come once a minute at
/// least.
const PATIENCE: Duration = Duration::from_secs(180);

/// What was written, in order.
pub struct Written {
    /// Each event, and when its INSERT had been committed.
    pub events: Vec<(EventId, Instant)>,
    /// When the first INSERT was begun.
    pub start: Instant,
}

/// Writes all events, heals the receivers on the way, and returns when everything has arrived, or will not.
pub async fn write(
    args: &Args,
    conn: &mut store::Connection,
    organizations: &[OrgId],
    participants: &[Participant],
    receivers: &Receivers,
) -> Result<Written, Failure> {
    let (total, duration) = (args.events as usize, Duration::from_secs(args.seconds.into()));
    let mut written = Written { events: Vec::with_capacity(total), start: clock::now() };
    let mut wanted = vec![0; participants.len()];
    let mut progress = Progress::new(participants, total);
    loop {
        let elapsed = clock::now() - written.start;
        let part = (elapsed.as_secs_f64() / duration.as_secs_f64()).min(1.0);
        if part >= HEAL_AFTER {
            receivers.heal();
        }
        let begun = written.events.len();
        let due = ((total as f64 * part).ceil() as usize).clamp(1, total).min(begun + MAX_INSERT);
        if begun < due {
            let events: Vec<_> = (begun..due).map(|n| plan::event(n, organizations)).collect();
            demo::insert_events(conn, &events).await?;
            let committed = clock::now();
            written.events.extend(events.iter().map(|event| (event.id, committed)));
            for (wanted, participant) in wanted.iter_mut().zip(participants) {
                *wanted += (begun..due).filter(|n| participant.wants(*n)).count();
            }
        }
        let arrived: Vec<usize> = (0..participants.len()).map(|index| receivers.arrived(index)).collect();
        let standing = Standing {
            elapsed,
            written: written.events.len(),
            healed: part >= HEAL_AFTER,
            refused: receivers.refused(),
            wanted: &wanted,
            arrived: &arrived,
        };
        progress.show(&standing);
        let complete = written.events.len() == total && arrived.iter().zip(&wanted).all(|(a, w)| a >= w);
        if complete || elapsed > duration + PATIENCE {
            progress.finish(&standing);
            return Ok(written);
        }
        tokio::time::sleep(TICK).await;
    }
}
