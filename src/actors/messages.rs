//! What the [`DbActor`](super::db::DbActor) is asked for, and what it answers.

use actix::prelude::*;

use super::limit::Held;
use crate::clock;
use crate::dispatch::{ClaimReply, RenewReply, Urgency};
use crate::model::{DbTime, DeliveryId, DestinationId, OrgId, Outcome};
use crate::policy::health::Saved;
use crate::store::deliveries::Ask;
use crate::store::destinations::OperationalEvent;

/// From a destination: give me work. The reply may take as long as the database does.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Claim {
    /// For which organization: they take turns.
    pub org: OrgId,
    /// What is wanted; `max_bytes` is decided here.
    pub ask: Ask,
    /// Only after the results that were sent before are written: until then their leases would hide
    /// deliveries that are due.
    pub after_results: bool,
    /// How soon.
    pub urgency: Urgency,
    /// Claims that its statement may have: fewer after one that failed, until its culprit stands alone.
    pub max_group_size: usize,
    /// Gets the [`ClaimDone`].
    pub reply: Recipient<ClaimDone>,
}

/// To a destination: what was claimed for it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ClaimDone {
    /// What there was.
    pub reply: ClaimReply<Held>,
    /// The database's clock and our own at the same moment.
    pub clock: Option<clock::DbClock>,
}

/// From a destination: renew these leases, given by their claim times. The reply may take as long as the
/// database does.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Renew {
    /// Which.
    pub leases: Vec<(DeliveryId, DbTime)>,
    /// A try has failed: they may have been renewed.
    pub is_uncertain: bool,
    /// Gets the [`Renewed`].
    pub reply: Recipient<Renewed>,
}

/// To a destination: what became of its leases.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Renewed(pub RenewReply);

/// From a destination: write these results. Never lost once sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Record(pub Vec<Outcome>);

/// From a destination: remember this about its health.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Remember(pub DestinationId, pub Saved);

/// From a destination: disable it, for this reason.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Disable(pub DestinationId, pub String);

/// From a destination: write an operational event, if that is possible.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Announce(pub OperationalEvent);

/// From the supervisor at shutdown: reply when everything that was sent before is written.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Flush;

/// From the supervisor at shutdown: no claims any more. Those that wait get nothing.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StopClaims;

impl ClaimDone {
    /// A claim that brought nothing.
    pub(super) fn nothing() -> ClaimDone {
        ClaimDone { reply: ClaimReply::nothing(), clock: None }
    }
}
