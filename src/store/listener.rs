//! Notifications: hints that make the dispatcher look again at once instead of at the next poll.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool};
use sqlx::raw_sql;

use super::StoreError;
use crate::model::DestinationId;
use crate::store::schema;

/// Deliveries were created. In another schema than `public`, channels end with its name.
pub const WAKE_CHANNEL: &str = "posthaste_wake";
/// A destination or its settings changed.
pub const CONFIG_CHANNEL: &str = "posthaste_config";
/// How often a silent connection is asked whether it still lives.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(10);

/// Where to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At these.
    Destinations(Vec<DestinationId>),
    /// At all of them.
    All,
}

/// A hint. It says where to look, never what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// There may be deliveries.
    Wake(Scope),
    /// Destinations or settings may have changed.
    Config(Scope),
}

/// A connection that listens.
pub struct Listener {
    listener: PgListener,
}

impl Listener {
    /// Starts to listen. Whatever was notified before is lost: look everywhere once.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn connect(pool: &PgPool) -> Result<Listener, StoreError> {
        super::in_time(async {
            let mut listener = PgListener::connect_with(pool).await?;
            listener.eager_reconnect(false);
            listener.ignore_pool_close_event(true);
            let channels = [WAKE_CHANNEL, CONFIG_CHANNEL].map(schema::channel);
            listener.listen_all(channels.iter().map(String::as_str)).await?;
            Ok(Listener { listener })
        })
        .await
    }

    /// Waits for the next hint.
    ///
    /// # Errors
    /// When the connection is gone; connect again, and look everywhere.
    pub async fn next(&mut self) -> Result<Hint, StoreError> {
        loop {
            match tokio::time::timeout(LIVENESS_INTERVAL, self.listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    let scope = parse(notification.payload());
                    return Ok(match notification.channel() {
                        channel if channel == schema::channel(CONFIG_CHANNEL) => Hint::Config(scope),
                        _ => Hint::Wake(scope),
                    });
                }
                Ok(Ok(None)) => return Err(StoreError::Closed),
                Ok(Err(error)) => return Err(error.into()),
                // A link that is dead in one direction only would be waited for for ever.
                Err(_) => {
                    super::in_time(raw_sql("SELECT 1").execute(&mut self.listener)).await?;
                }
            }
        }
    }
}

/// A payload is a comma-separated list of destinations; whatever else it is means everywhere.
fn parse(payload: &str) -> Scope {
    let ids: Result<Vec<_>, _> = payload.split(',').map(|id| id.parse().map(DestinationId)).collect();
    ids.map_or(Scope::All, Scope::Destinations)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_payload_that_is_no_list_of_ids_means_everywhere() {
        assert_eq!(parse("*"), Scope::All);
        assert_eq!(parse(""), Scope::All);
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let ids = vec![DestinationId(id.parse().expect("a uuid")); 2];
        assert_eq!(parse(&format!("{id},{id}")), Scope::Destinations(ids));
        assert_eq!(parse(&format!("{id},x")), Scope::All);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_notified_means_somewhere(
            text in ".*",
            ids in proptest::collection::vec(0..9_u128, 1..9),
        ) {
            let ids: Vec<Uuid> = ids.into_iter().map(Uuid::from_u128).collect();
            let list = ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",");
            let ids: Vec<_> = ids.into_iter().map(DestinationId).collect();
            proptest::prop_assert_eq!(parse(&list), Scope::Destinations(ids));
            proptest::prop_assert_eq!(parse(&format!("{list},{text}-")), Scope::All);
        }
    }
}
