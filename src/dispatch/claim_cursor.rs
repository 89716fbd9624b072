//! What to claim next: whether anything may be due, from where to look, and behind what.

use std::time::{Duration, Instant};

use crate::model::{DbTime, Fill, Ordered};

/// A backlog is claimed from its beginning again after this time, and then each time after twice as long:
/// what was committed late lies there, or leased by a process that is gone, but where vacuum can remove
/// nothing, so do the dead entries of all that was delivered.
const MIN_BEGIN_AGAIN: Duration = Duration::from_secs(4);
/// The longest such time.
const MAX_BEGIN_AGAIN: Duration = Duration::from_secs(32);
/// A batch that waits to fill is looked at no more often than this part of its wait ...
const LOOKS_PER_WAIT: u32 = 16;
/// ... nor less often than this, while events come.
const LONGEST_BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How soon a claim should be made. What is new does not wait behind backlogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Its destination knows of nothing that is due, but there may be something new: not much, in most cases.
    New,
    /// More was due than the last claim gave.
    Backlog,
}

/// A claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Deliveries at most.
    pub want: u32,
    /// From where to look in the order of due times; everything before is claimed or done, as far as known.
    pub since: Option<DbTime>,
    /// In insertion order, and how far to look for leases of others.
    pub ordered: Option<Ordered>,
    /// Take nothing until a batch of this is there.
    pub fill: Option<Fill>,
    /// Only after the results that were sent before are written: until then their leases would hide
    /// deliveries that are due.
    pub after_results: bool,
    /// How soon.
    pub urgency: Urgency,
}

/// See the module.
pub(super) struct ClaimCursor {
    /// Something may be due that was not claimed yet.
    hungry: bool,
    claiming: bool,
    /// The claim under way takes whole batches: what is left over has a wait of its own.
    fills: bool,
    /// The claim under way goes by an order that does not hold any more.
    is_outdated: bool,
    /// A hint came since the last claim from the beginning, which may not have seen what it is about.
    hinted: bool,
    /// Results were sent that make deliveries due again: the next claim must see them.
    behind: bool,
    /// Whether the last claim left something.
    more: bool,
    /// Where the last claim stopped looking, and the next one goes on.
    reached: Option<DbTime>,
    /// When the last claim from the beginning was asked for.
    began: Instant,
    /// How long after `began` the next one comes, while there is a backlog.
    begin_again: Duration,
    /// How far an ordered claim has to look for leases of others.
    ordered: Ordered,
    /// A batch that waits to fill is not looked at before.
    rests_until: Instant,
}

impl ClaimCursor {
    pub(super) fn new(now: Instant) -> ClaimCursor {
        ClaimCursor {
            hungry: false,
            claiming: false,
            fills: false,
            is_outdated: false,
            hinted: false,
            behind: false,
            more: false,
            reached: None,
            began: now,
            begin_again: Duration::ZERO,
            ordered: Ordered::Everywhere,
            rests_until: now,
        }
    }

    /// There may be something: look from the beginning before you rest.
    pub(super) fn hint(&mut self) {
        self.hungry = true;
        self.hinted = true;
    }

    /// Results were sent that make deliveries due again.
    pub(super) fn results_sent(&mut self) {
        self.behind = true;
    }

    /// Deliveries were given back. They lie before the point that the last claim reached, or one under way
    /// will reach.
    pub(super) fn given_back(&mut self) {
        self.begin_again = Duration::ZERO;
        self.behind = true;
        self.hint();
    }

    /// The order has changed: what a claim under way brings is to be given back.
    pub(super) fn reordered(&mut self) {
        self.is_outdated = self.claiming;
        self.ordered = Ordered::Everywhere;
        self.begin_again = Duration::ZERO;
    }

    pub(super) fn is_claiming(&self) -> bool {
        self.claiming
    }

    /// No claim will be answered any more.
    pub(super) fn abandon(&mut self) {
        self.claiming = false;
    }

    /// Whether a claim should be made, if there is room for what it brings; otherwise, when to look again.
    pub(super) fn is_wanted(&self, waits_to_fill: bool, now: Instant) -> Result<bool, Instant> {
        if self.claiming || !self.hungry {
            return Ok(false);
        }
        match waits_to_fill && now < self.rests_until {
            true => Err(self.rests_until),
            false => Ok(true),
        }
    }

    /// Claims up to `want`.
    pub(super) fn claim(&mut self, want: u32, is_ordered: bool, fill: Option<Fill>, now: Instant) -> Claim {
        self.claiming = true;
        self.fills = fill.is_some();
        let since = self.reached.filter(|_| !is_ordered && now < self.began + self.begin_again);
        if since.is_none() {
            let last = self.reached.take().map_or(Duration::ZERO, |_| self.begin_again);
            self.begin_again = (last * 2).clamp(MIN_BEGIN_AGAIN, MAX_BEGIN_AGAIN);
            (self.hinted, self.began) = (false, now);
        }
        Claim {
            want,
            since,
            ordered: is_ordered.then_some(self.ordered),
            fill,
            after_results: is_ordered || std::mem::take(&mut self.behind),
            urgency: if self.more { Urgency::Backlog } else { Urgency::New },
        }
    }

    /// Whether what the answered claim has brought goes by an order that does not hold any more.
    pub(super) fn was_outdated(&mut self) -> bool {
        std::mem::take(&mut self.is_outdated)
    }

    /// The answer.
    pub(super) fn answered(&mut self, look: ClaimSummary, now: Instant) {
        self.claiming = false;
        self.more = look.more;
        self.behind |= look.behind;
        // Whoever took whole batches does not know yet how long the rest may wait.
        let left_over = std::mem::take(&mut self.fills) && look.brought;
        self.hungry = look.more || self.hinted || left_over;
        self.reached = look.reached.or(self.reached).filter(|_| look.more && !look.behind);
        if look.brought {
            // Not refused: there is no lease of anybody else.
            self.ordered = Ordered::Near;
        }
        let rest = now + (look.fill_wait / LOOKS_PER_WAIT).min(LONGEST_BETWEEN_LOOKS);
        self.rests_until = look.next_due.map_or(rest, |due| due.min(rest));
    }

    /// Whether more is due than the last claim gave, and will be claimed.
    pub(super) fn knows_more(&self) -> bool {
        self.more && (self.claiming || self.hungry)
    }

    /// Whether the last claim left something.
    pub(super) fn has_backlog(&self) -> bool {
        self.more
    }
}

/// What a claim has found.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimSummary {
    /// More is due than it gave.
    pub(super) more: bool,
    /// It gave something.
    pub(super) brought: bool,
    /// Where the next one may go on.
    pub(super) reached: Option<DbTime>,
    /// Some of it was given back.
    pub(super) behind: bool,
    /// When to look again.
    pub(super) next_due: Option<Instant>,
    /// How long batches wait to fill.
    pub(super) fill_wait: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Option<DbTime> = Some(DbTime(7));

    fn cursor(now: Instant) -> ClaimCursor {
        let mut cursor = ClaimCursor::new(now);
        cursor.hint();
        cursor
    }

    fn look(more: bool) -> ClaimSummary {
        let fill_wait = Duration::ZERO;
        ClaimSummary { more, brought: true, reached: NEXT, behind: false, next_due: None, fill_wait }
    }

    /// Answers with `more`, reaching [`NEXT`].
    fn answer(cursor: &mut ClaimCursor, more: bool, now: Instant) {
        cursor.answered(look(more), now);
    }

    #[test]
    fn a_backlog_goes_on_where_it_was_and_begins_again_after_growing_times() {
        let now = crate::clock::now();
        let mut cursor = cursor(now);
        let mut began = Vec::new();
        for tick in 0..200 {
            let at = now + Duration::from_millis(500 * tick);
            if cursor.claim(10, false, None, at).since.is_none() {
                began.push(tick / 2);
            }
            answer(&mut cursor, true, at);
        }
        assert_eq!(began, [0, 4, 12, 28, 60, 92]);
    }

    #[test]
    fn what_was_given_back_is_looked_for_at_once_and_after_its_results() {
        let now = crate::clock::now();
        let mut cursor = cursor(now);
        assert!(!cursor.claim(10, false, None, now).after_results);
        cursor.given_back();
        answer(&mut cursor, true, now);
        let claim = cursor.claim(10, false, None, now);
        assert_eq!((claim.since, claim.after_results, claim.urgency), (None, true, Urgency::Backlog));
        answer(&mut cursor, false, now);
        assert_eq!(cursor.is_wanted(false, now), Ok(false));
        // During a claim that leaves nothing, as well.
        cursor.hint();
        cursor.claim(10, false, None, now);
        cursor.given_back();
        answer(&mut cursor, false, now);
        assert_eq!(cursor.is_wanted(false, now), Ok(true));
    }

    #[test]
    fn a_hint_during_a_claim_is_looked_into_after_it() {
        let now = crate::clock::now();
        let mut cursor = cursor(now);
        cursor.claim(10, false, None, now);
        cursor.hint();
        answer(&mut cursor, false, now);
        assert_eq!(cursor.is_wanted(false, now), Ok(true));
    }

    #[test]
    fn a_batch_that_fills_is_not_looked_at_all_the_time() {
        let now = crate::clock::now();
        let mut cursor = cursor(now);
        let wait = Duration::from_secs(8);
        cursor.claim(10, false, None, now);
        cursor.answered(ClaimSummary { brought: false, fill_wait: wait, ..look(false) }, now);
        cursor.hint();
        let later = now + Duration::from_millis(500);
        assert_eq!(cursor.is_wanted(true, now), Err(later));
        assert_eq!(cursor.is_wanted(true, later), Ok(true));
        assert_eq!(cursor.is_wanted(false, now), Ok(true));
    }

    #[test]
    fn what_whole_batches_leave_over_is_looked_at() {
        let now = crate::clock::now();
        let fill = Some(Fill { events: 5, wait: Duration::from_secs(8) });
        for (fill, brought, looks) in [(fill, true, true), (fill, false, false), (None, true, false)] {
            let mut cursor = cursor(now);
            cursor.claim(10, false, fill, now);
            cursor.answered(ClaimSummary { brought, ..look(false) }, now);
            assert_eq!(cursor.is_wanted(false, now), Ok(looks), "{fill:?} {brought}");
        }
    }

    #[test]
    fn an_ordered_claim_looks_near_once_it_was_not_refused() {
        let now = crate::clock::now();
        let mut cursor = cursor(now);
        assert_eq!(cursor.claim(1, true, None, now).ordered, Some(Ordered::Everywhere));
        let refused = ClaimSummary { brought: false, reached: None, ..look(true) };
        cursor.answered(refused, now);
        assert_eq!(cursor.claim(1, true, None, now).ordered, Some(Ordered::Everywhere));
        cursor.answered(ClaimSummary { reached: None, ..look(true) }, now);
        let claim = cursor.claim(1, true, None, now);
        assert_eq!((claim.ordered, claim.since), (Some(Ordered::Near), None));
        cursor.reordered();
        assert_eq!(cursor.claim(1, true, None, now).ordered, Some(Ordered::Everywhere));
    }
}
