//! What only the database knows: asked for at most every so often, and never waited for long.
//!
//! However many scrape, and however slow the database is, there is one [`Gauge`] and one statement of it
//! under way; whoever comes meanwhile gets what was found the last time, with the time at which that was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::actors::metrics::Reading;
use crate::actors::{Dispatcher, Readiness};
use crate::clock;
use crate::model::DestinationId;
use crate::store::StoreError;
use crate::store::queues::Gauge;

/// What was found is good for so long ...
const GOOD_FOR: Duration = Duration::from_secs(5);
/// ... and for this multiple of the time that it took: a twentieth of one connection's time at most.
const GOOD_FOR_TIMES: u32 = 20;
/// How long a scrape waits for something newer than the last time.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was found. The key `None` is the sum, or the oldest, of the destinations that are not listed.
#[derive(Clone, Default)]
pub struct Measured {
    /// What `/readyz` would say.
    pub readiness: Readiness,
    /// Deliveries that wait.
    pub depths: HashMap<Option<DestinationId>, i64>,
    /// How long the oldest of them has waited.
    pub ages: HashMap<Option<DestinationId>, Duration>,
    /// When depths and ages were found, in seconds since 1970.
    pub at: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub struct Measure {
    latest: Mutex<Measured>,
    work: tokio::sync::Mutex<Work>,
}

#[derive(Default)]
struct Work {
    gauge: Option<Gauge>,
    due: Option<Instant>,
}

impl Measure {
    /// What is known, after a moment's wait for what is newer where that is due.
    pub async fn look(self: Arc<Self>, dispatcher: &Dispatcher, reading: &Reading) -> Measured {
        let listed = reading.listed.iter().map(|(id, ..)| *id).collect();
        let task = self.clone().refresh(dispatcher.clone(), listed, reading.unlisted.clone());
        // Beyond the patience it goes on, and its findings are there for the next one.
        tokio::time::timeout(PATIENCE, actix_rt::spawn(task)).await.ok();
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(
        self: Arc<Self>,
        dispatcher: Dispatcher,
        listed: Vec<DestinationId>,
        unlisted: Vec<DestinationId>,
    ) {
        let began = clock::now();
        let Ok(mut work) = self.work.try_lock() else { return };
        if work.due.is_some_and(|due| began < due) {
            return;
        }
        let readiness = dispatcher.readiness().await;
        let is_up = readiness.database_up;
        self.change(|latest| latest.readiness = readiness);
        if is_up && let Err(error) = self.queues(&mut work, &dispatcher, &listed, &unlisted).await {
            log::debug!("queues could not be measured: {error}");
            work.gauge = None;
        }
        let now = clock::now();
        work.due = Some(now + GOOD_FOR.max(now.saturating_duration_since(began) * GOOD_FOR_TIMES));
    }

    /// Ages first: they cost little, and are worth more than the depths, which may take too long.
    async fn queues(
        &self,
        work: &mut Work,
        dispatcher: &Dispatcher,
        listed: &[DestinationId],
        unlisted: &[DestinationId],
    ) -> Result<(), StoreError> {
        let gauge = match &mut work.gauge {
            Some(gauge) => gauge,
            none => none.insert(Gauge::connect(&dispatcher.options).await?),
        };
        let every = |id: &DestinationId| (Some(*id), Duration::ZERO);
        let mut ages: HashMap<_, _> = listed.iter().map(every).collect();
        for (id, now, created) in gauge.oldest(&[listed, unlisted].concat()).await? {
            let key = Some(id).filter(|id| ages.contains_key(&Some(*id)));
            let age = ages.entry(key).or_default();
            *age = now.since(created).max(*age);
        }
        self.change(|latest| latest.ages = ages);
        let depths = gauge.depths(listed).await?;
        let mut depths: HashMap<_, _> = depths.into_iter().map(|(id, depth)| (Some(id), depth)).collect();
        if !unlisted.is_empty() {
            depths.insert(None, gauge.depth_of_all(unlisted).await?);
        }
        let at = clock::wall().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        self.change(|latest| (latest.depths, latest.at) = (depths, at));
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Measured)) {
        change(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
