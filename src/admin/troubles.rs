//! Destinations in trouble, as `/readyz` tells them: looked for now and then, and never waited for long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::manage::trouble;
use crate::store::{Pool, StoreError};

/// What was found is good for so long ...
const GOOD_FOR: Duration = Duration::from_secs(5);
/// ... and for this multiple of the time that it took: a hundredth of one connection's time at most.
const GOOD_FOR_TIMES: u32 = 100;
/// How long an answer waits for something newer than the last time.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Troubles(Arc<Inner>);

#[derive(Default)]
struct Inner {
    latest: Mutex<Vec<String>>,
    due: tokio::sync::Mutex<Option<Instant>>,
}

impl Troubles {
    /// What is known, after a moment's wait for what is newer where that is due.
    pub(super) async fn look(&self, pool: Pool) -> Vec<String> {
        // Beyond the patience it goes on, and its findings are there for the next one.
        let refresh = self.clone().refresh(pool);
        tokio::time::timeout(PATIENCE, actix_rt::spawn(refresh)).await.ok();
        self.latest()
    }

    /// What was found the last time.
    pub(super) fn latest(&self) -> Vec<String> {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(self, pool: Pool) {
        let began = clock::now();
        let Ok(mut due) = self.0.due.try_lock() else { return };
        if due.is_some_and(|due| began < due) {
            return;
        }
        let found = async {
            let mut connection = pool.acquire().await.map_err(StoreError::from)?;
            trouble::troubles(&mut connection).await
        };
        match found.await {
            Ok(found) => {
                let found = found.into_iter().map(|one| one.what).collect();
                *self.0.latest.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => log::debug!("destinations in trouble could not be looked for: {error}"),
        }
        let now = clock::now();
        *due = Some(now + GOOD_FOR.max(now.saturating_duration_since(began) * GOOD_FOR_TIMES));
    }
}
