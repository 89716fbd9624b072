//! The half of the [`DbActor`] that claims.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::{DbActor, MAX_RESULTS_WAITING};
use crate::actors::claim_connection::{ClaimConnection, ClaimResult};
use crate::actors::claims::Group;
use crate::actors::limit::Held;
use crate::actors::messages::{Claim, ClaimDone};
use crate::clock;
use crate::dispatch::{ClaimReply, Leased, Urgency};
use crate::model::{DbTime, DestinationId, Outcome};
use crate::policy::backlog_throttle::{BacklogThrottle, FEW_ROWS, SMALL};
use crate::store::StoreError;
use crate::store::deliveries::{Ask, Claimed, Grant, LEASE, MAX_CLAIM_ROWS, MAX_RECORD_ROWS};
use crate::store::faults::{Kind, Subject};

/// Results that may wait to be written while more is claimed of backlogs: the next statements are full. What
/// is new can go on.
const ENOUGH_RESULTS_WAITING: usize = 8 * MAX_RECORD_ROWS;
/// After the second connection failed, everything is claimed on the first one for so long.
const SECOND_CONNECTION_REST: Duration = Duration::from_secs(5);

/// Until a process that others cannot see tries to show itself again: well before they take it for gone.
const SHOW_AGAIN: Duration = Duration::from_secs(1);

/// From the supervisor: the database has not answered somebody else, or does so again. Connections at rest
/// may have died: the first work that comes should not have to find that out, and other processes must go on
/// seeing that this one lives.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Refresh;

impl Handler<Refresh> for DbActor {
    type Result = ();

    /// Connections that are not here are under way, and find out themselves.
    fn handle(&mut self, _: Refresh, ctx: &mut Self::Context) {
        if let Some(connection) = &mut self.recording {
            connection.reconnect();
        }
        self.refresh_claims(ctx);
    }
}

impl DbActor {
    /// Makes sure that the connections that claim live, and show others that this process does.
    fn refresh_claims(&mut self, ctx: &mut Context<Self>) {
        for urgency in [Urgency::New, Urgency::Backlog] {
            let Some(mut connection) = self.claiming_connections[urgency as usize].take() else { continue };
            self.claiming += 1;
            let refresh = async move {
                connection.refresh().await;
                connection
            };
            ctx.spawn(refresh.into_actor(self).map(move |connection, this, ctx| {
                this.claiming -= 1;
                this.put_back(urgency, connection, ctx);
                this.record(ctx);
                this.claim(ctx);
            }));
        }
    }

    /// Others must not take this process for gone for longer than a moment.
    fn show_soon(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.shows_soon, true) {
            ctx.run_later(SHOW_AGAIN, |this, ctx| {
                this.shows_soon = false;
                this.refresh_claims(ctx);
            });
        }
    }

    /// Starts a claim statement for each urgency where none is under way and somebody waits.
    pub(super) fn claim(&mut self, ctx: &mut Context<Self>) {
        // What cannot be recorded would be sent again and again.
        let waiting = self.work.outcomes.len() + self.work.locked.len();
        if self.record_outage.cause().is_some() || waiting > MAX_RESULTS_WAITING {
            return;
        }
        self.claim_in(Urgency::New, ctx);
        // Otherwise it comes back here when results are written.
        let is_its_turn = self.recording.is_some() || !self.holds_back();
        if waiting <= ENOUGH_RESULTS_WAITING && is_its_turn {
            self.claim_in(Urgency::Backlog, ctx);
            let is_stuck = self.claims.len() > 0 && self.claiming == 0;
            if is_stuck && !std::mem::replace(&mut self.waits_for_bytes, true) {
                self.bytes.wait_for_any(ctx.address().recipient());
            }
        }
    }

    /// Whether backlogs hold back: then one statement at a time claims from them or records, and it is small.
    /// Where one fails, or waits for somebody's locks, the other one must not have to wait for it.
    pub(super) fn holds_back(&self) -> bool {
        let works = self.claim_outage.cause().is_none() && self.record_outage.cause().is_none();
        let is_free = self.work.locked.is_empty() && !self.claims_stopped;
        works && is_free && self.backlog_throttle.is_asked(clock::now())
    }

    /// Whether a statement that claims from backlogs is under way.
    pub(super) fn is_claiming_backlogs(&self) -> bool {
        self.claiming_connections[Urgency::Backlog as usize].is_none()
    }

    fn claim_in(&mut self, urgency: Urgency, ctx: &mut Context<Self>) {
        let Some(mut connection) = self.claiming_connections[urgency as usize].take() else { return };
        let rows = match urgency {
            Urgency::Backlog if self.holds_back() => FEW_ROWS,
            _ => MAX_CLAIM_ROWS,
        };
        let Group { claims, room } =
            self.claims.next(urgency, rows, &self.bytes, self.config.max_event_bytes);
        if claims.is_empty() {
            self.claiming_connections[urgency as usize] = Some(connection);
            return;
        }
        self.claiming += 1;
        let work = async move {
            let asks: Vec<Ask> = claims.iter().map(|claim| claim.ask.clone()).collect();
            connection.rest().await;
            let sent = clock::now();
            let result = connection.claim(&asks, room).await;
            (connection, claims, sent, result)
        };
        ctx.spawn(work.into_actor(self).map(move |(connection, claims, sent, result), this, ctx| {
            this.claiming -= 1;
            this.claimed(urgency, claims, sent, result);
            this.put_back(urgency, connection, ctx);
            this.record(ctx);
            this.claim(ctx);
        }));
    }

    /// Keeps a connection for the next statement.
    fn put_back(&mut self, urgency: Urgency, connection: ClaimConnection, ctx: &mut Context<Self>) {
        if connection.is_unseen() {
            self.show_soon(ctx);
        }
        match urgency {
            Urgency::New if connection.has_failed() => {
                // The first one serves all for a while, and tells what is wrong if it fails as well.
                self.claims.merge();
                self.backlog_throttle = BacklogThrottle::default();
                ctx.run_later(SECOND_CONNECTION_REST, |this, _| this.add_second(connection));
            }
            Urgency::New => self.claiming_connections[Urgency::New as usize] = Some(connection),
            Urgency::Backlog => {
                if !self.has_second
                    && let Some(second) = connection.beside()
                {
                    self.has_second = true;
                    self.add_second(second);
                }
                self.claiming_connections[Urgency::Backlog as usize] = Some(connection);
            }
        }
    }

    fn add_second(&mut self, connection: ClaimConnection) {
        self.claims.split();
        self.claiming_connections[Urgency::New as usize] = Some(connection);
    }

    fn claimed(&mut self, urgency: Urgency, claims: Vec<Claim>, sent: Instant, result: ClaimResult) {
        match result {
            ClaimResult::Granted { grants, ordered_failed: None } => {
                self.grant(urgency, claims, sent, grants);
            }
            ClaimResult::Granted { grants, ordered_failed: Some(error) } => {
                let (ordered, plain) = claims.into_iter().partition(|claim| claim.ask.ordered.is_some());
                self.grant(urgency, plain, sent, grants);
                self.halve(ordered);
                log::debug!("claiming for ordered destinations failed: {error}");
            }
            ClaimResult::Culprit(error) => {
                if error.is_about_size() {
                    self.claims.was_too_much(urgency);
                }
                self.halve(claims);
            }
            ClaimResult::SetAside { delivery, why, grants } => {
                for claim in &claims {
                    let subject = self.faults.unreadable(claim.ask.destination, delivery);
                    self.cannot_claim(subject, &why);
                }
                self.grant(urgency, claims, sent, grants);
            }
            ClaimResult::Refused(why) => {
                for claim in claims {
                    let of = claim.ask.destination;
                    self.cannot_claim(Subject { kind: Kind::Claim, destination: of, delivery: None }, &why);
                    // It looks again at the next poll; until then it holds up nobody.
                    claim.reply.do_send(ClaimDone::nothing());
                }
            }
            ClaimResult::Failed(error) => self.claim_failed(urgency, claims, &error),
        }
    }

    /// Tries claims again with fewer others, and in the end with fewer deliveries, until the culprit stands
    /// alone.
    fn halve(&mut self, claims: Vec<Claim>) {
        let max_group_size = (claims.len() / 2).max(1);
        for mut claim in claims {
            if max_group_size == 1 {
                claim.ask.want = (claim.ask.want / 2).max(1);
                claim.ask.since = None;
            }
            self.enqueue(Claim { max_group_size, ..claim });
        }
    }

    fn grant(&mut self, urgency: Urgency, claims: Vec<Claim>, sent: Instant, grants: Vec<Grant>) {
        if self.claim_outage.ends() {
            log::info!("deliveries are claimed again");
        }
        let received = clock::now();
        let took = received.saturating_duration_since(sent);
        self.stats.claims.note(took);
        self.claims.took(urgency, took);
        let mut grants: HashMap<DestinationId, Grant> =
            grants.into_iter().map(|grant| (grant.destination, grant)).collect();
        self.note_backlog_throttle(urgency, &claims, &grants, took, received);
        for claim in claims {
            let destination = claim.ask.destination;
            let granted = grants.remove(&destination);
            let mut grant = granted.unwrap_or_else(|| Grant::none(destination));
            self.note_readable(destination, &grant);
            for (delivery, why) in std::mem::take(&mut grant.unreadable) {
                let subject = self.faults.unreadable(destination, delivery);
                self.cannot_claim(subject, &why);
            }
            self.leave_out_unrecorded(&claim, &mut grant);
            self.stats.claimed += grant.deliveries.len() as u64;
            let lease = |Claimed { delivery, too_large }: Claimed| {
                let held = self.bytes.take(claim.org, delivery.event.bytes_held());
                let bytes = delivery.event.payload.len();
                Leased::new(delivery, too_large, bytes, sent + LEASE, held)
            };
            let leased: Vec<Leased<Held>> = grant.deliveries.into_iter().map(lease).collect();
            let behind = !grant.returned.is_empty();
            self.add_results(grant.returned);
            if !claim.reply.connected() {
                let unwanted = leased.iter().map(|leased| Outcome::given_back(&leased.delivery)).collect();
                self.add_results(unwanted);
                continue;
            }
            let Grant { more, next_due, reached, now, .. } = grant;
            let reply = ClaimReply { leased, more, next_due, reached, behind };
            let clock = (now != DbTime(0)).then(|| clock::DbClock::new(now, received));
            claim.reply.do_send(ClaimDone { reply, clock });
        }
    }

    /// Compares how long something new took to be claimed, unless its own organization has a backlog.
    fn note_backlog_throttle(
        &mut self,
        urgency: Urgency,
        claims: &[Claim],
        grants: &HashMap<DestinationId, Grant>,
        took: Duration,
        now: Instant,
    ) {
        for claim in claims {
            let id = claim.ask.destination;
            // Nobody takes more for a destination that was disabled meanwhile.
            let more = claim.reply.connected() && grants.get(&id).is_some_and(|grant| grant.more);
            self.backlog_throttle.granted(claim.org, id, more);
        }
        let rows: usize = grants.values().map(|grant| grant.deliveries.len()).sum();
        let is_new = urgency == Urgency::New && (1..=SMALL).contains(&rows);
        if is_new && !claims.iter().any(|claim| self.backlog_throttle.has_backlog(claim.org)) {
            let beside = self.is_claiming_backlogs() || self.recording.is_none();
            if self.backlog_throttle.note(took, beside, now) {
                log::debug!("backlogs hold back for a while: it took {took:?} to claim something new");
            }
        }
    }

    pub(super) fn enqueue(&mut self, claim: Claim) {
        if self.faults.holds_back(claim.ask.destination, clock::now()) {
            return claim.reply.do_send(ClaimDone::nothing());
        }
        if self.claims_stopped {
            let Claim { ask, reply, .. } = claim;
            log::debug!("destination={} gets nothing more: shutting down", ask.destination);
            reply.do_send(ClaimDone::nothing());
            return;
        }
        self.claims.push(claim);
    }

    /// What was sent and whose result waits to be written is not sent once more. In an ordered queue it holds
    /// back what is behind it.
    fn leave_out_unrecorded(&mut self, claim: &Claim, grant: &mut Grant) {
        let destination = claim.ask.destination;
        let holds = |claimed: &Claimed| self.faults.holds_result(destination, claimed.delivery.id);
        if self.faults.is_empty() || !grant.deliveries.iter().any(holds) {
            return;
        }
        let kept: Vec<Claimed> = grant.deliveries.drain(..).filter(|claimed| !holds(claimed)).collect();
        match claim.ask.ordered {
            Some(_) => {
                grant.returned.extend(kept.iter().map(|claimed| Outcome::given_back(&claimed.delivery)));
                grant.more = false;
            }
            None => grant.deliveries = kept,
        }
    }

    fn cannot_claim(&mut self, subject: Subject, why: &str) {
        let fault = self.faults.failed(subject, None, why, clock::now());
        self.work.faults.push(fault);
        self.stats.faults = self.faults.counts();
    }

    /// What could not be read before is there now.
    fn note_readable(&mut self, destination: DestinationId, grant: &Grant) {
        if self.faults.is_empty() {
            return;
        }
        let ids = grant.deliveries.iter().map(|claimed| Some(claimed.delivery.id));
        for delivery in ids.chain([None]) {
            self.heal(&Subject { kind: Kind::Claim, destination, delivery });
        }
    }

    /// Nobody is told: they keep waiting, and the first connection waits a little before it tries again.
    fn claim_failed(&mut self, urgency: Urgency, claims: Vec<Claim>, error: &StoreError) {
        if urgency == Urgency::New {
            log::debug!("the second connection that claims failed, the first one takes over: {error}");
        } else if self.claim_outage.is_news(error, clock::now()) {
            log::error!("claiming deliveries failed, trying again until it works: {error}");
        }
        claims.into_iter().for_each(|claim| self.enqueue(claim));
    }
}
