//! What becomes known of a destination: log lines, metrics, operational events.

use super::DestinationActor;
use crate::actors::messages::Announce;
use crate::clock;
use crate::dispatch::{Failed, Notice};
use crate::model::OPERATIONAL_CATEGORY;
use crate::policy::classify::Verdict;
use crate::store::destinations::OperationalEvent;

impl DestinationActor {
    pub(super) fn tell(&self, notice: Notice) {
        let id = self.destination.id;
        match notice {
            Notice::Ended { verdict, duration, is_retry } => {
                self.counting.attempted(verdict, duration, is_retry);
            }
            Notice::Failed(failed) => self.log_failure(&failed),
            Notice::Dead { delivery, reason, unsent } => {
                if unsent {
                    log::warn!("destination={id} delivery={} dead: {reason}", delivery.id);
                }
                let event = &delivery.event;
                if event.event_category != OPERATIONAL_CATEGORY {
                    let content = format!("A delivery was given up: {reason}.");
                    let payload = serde_json::json!({
                        "delivery_id": delivery.id, "event_id": event.id,
                        "event_type": event.event_type, "reason": reason,
                    });
                    self.announce("webhook.delivery.dead", content, payload);
                }
            }
            Notice::Tripped { of_operational } => {
                log::warn!("destination={id} its breaker has tripped: only probes are sent until it answers");
                if !of_operational {
                    let content = "The destination fails; deliveries wait until it answers again.".to_owned();
                    self.announce("webhook.destination.tripped", content, serde_json::json!({}));
                }
            }
            Notice::Recovered => log::info!("destination={id} answers again"),
            Notice::Disabled { reason, of_operational } => {
                if !of_operational {
                    let content = format!("The destination was disabled: {reason}.");
                    let payload = serde_json::json!({ "reason": reason });
                    self.announce("webhook.destination.disabled", content, payload);
                }
            }
        }
    }

    /// Writes an operational event, unless nobody wants them.
    fn announce(&self, event_type: &'static str, content: String, mut payload: serde_json::Value) {
        if self.handles.shared.config.operational_events {
            payload["destination_id"] = self.destination.id.to_string().into();
            let payload = payload.to_string();
            let org = self.destination.org;
            self.db().do_send(Announce(OperationalEvent { org, event_type, content, payload }));
        }
    }

    /// The one line per failure. Bodies and URLs stay out of it: they may hold secrets.
    fn log_failure(&self, failed: &Failed) {
        let id = self.destination.id;
        let Failed { delivery, event, attempt, deliveries, verdict, duration, what } = failed;
        let millis = duration.as_millis();
        let ours = *verdict == Verdict::OurFault;
        if ours && self.handles.shared.trouble.is_news(what, clock::now()) {
            log::error!("requests wait, and nothing is charged: {what}");
        }
        let level = if ours { log::Level::Debug } else { log::Level::Warn };
        match deliveries {
            1 => log::log!(
                level,
                "destination={id} delivery={delivery} event={event} attempt={attempt} {verdict:?} after \
                 {millis} ms: {what}",
            ),
            many => log::log!(
                level,
                "destination={id} delivery={delivery} first of a batch of {many}, {verdict:?} after {millis} \
                 ms: {what}",
            ),
        }
    }
}
