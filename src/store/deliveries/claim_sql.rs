//! The texts of the claim statements; [`super::claim`] completes and runs them.

/// Parameters: destinations, wanted rows, lower bounds, byte limits, lease, floor, largest event, byte
/// limit of all, and, where a batch waits to fill, its rows and its wait.
///
/// Each search is in the order of the index that it should use, as sessions sort nothing that they can have
/// in order (see [`crate::store::planned`]). Ends with [`TAKE`] or [`TAKE_MEASURED`].
///
/// The rows come with `kind` 0; then one row of kind 1 for each destination, with what falls due next and
/// with how many rows there were for all; and one of kind 2 for each row that a byte limit cut off. What is
/// missing then was changed at that moment, and left.
pub(super) const CLAIM: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
asked AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::timestamp[], $4::bigint[], $9::int[], $10::bigint[])
        WITH ORDINALITY AS a(destination_id, want, since, max_bytes, fill, wait_us, turn)
),
{FILLED}
picked AS MATERIALIZED (
    SELECT a.max_bytes, a.turn, p.*
    FROM ask a CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id
          AND d.status IN ('pending', 'failed')
          AND d.next_retry_at >= a.since AND d.next_retry_at <= c.now
          -- not leased; d.next_retry_at is not null here
          AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)
               AND d.last_attempt_at >= d.next_retry_at) IS NOT TRUE
        ORDER BY d.next_retry_at
        LIMIT a.want
        FOR NO KEY UPDATE SKIP LOCKED
    ) p
    UNION ALL
    SELECT a.max_bytes, a.turn, p.*
    FROM ask a CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id
          AND d.status IN ('pending', 'failed')
          -- rows that an application inserted itself: due now
          AND d.next_retry_at IS NULL
          AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)) IS NOT TRUE
        -- all are alike; it says by which index, as above
        ORDER BY d.next_retry_at
        LIMIT a.want
        FOR NO KEY UPDATE SKIP LOCKED
    ) p
),
{TAKE}";

/// Whoever waits for a batch to fill wants as many rows as make whole ones, or, when the first of them has
/// waited for long enough, what there is, or nothing. Nobody else's rows are counted.
pub(super) const FILLED: &str = "
ask AS MATERIALIZED (
    SELECT a.destination_id, a.{FROM}, a.max_bytes, a.turn,
        CASE WHEN a.fill IS NULL THEN a.want
            WHEN f.rows >= a.fill THEN least(a.want, f.rows / a.fill * a.fill)
            WHEN f.first <= c.now - a.wait_us * interval '1 microsecond' THEN a.want
            ELSE 0 END AS want,
        CASE WHEN f.rows < a.fill THEN
            nullif(greatest(f.first + a.wait_us * interval '1 microsecond', c.now), c.now) END AS filled_at
    FROM asked a CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT count(*)::int AS rows, min(d.due) AS first FROM ({COUNTED}) d
    ) f
),";

/// The rows that [`FILLED`] counts.
pub(super) const COUNTED: &str = "
            (SELECT d.next_retry_at AS due FROM public.webhook_deliveries d
            WHERE a.fill IS NOT NULL AND d.destination_id = a.destination_id
              AND d.status IN ('pending', 'failed')
              AND d.next_retry_at >= a.since AND d.next_retry_at <= c.now
              AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)
                   AND d.last_attempt_at >= d.next_retry_at) IS NOT TRUE
            ORDER BY d.next_retry_at
            LIMIT greatest(a.fill, a.want))
            UNION ALL
            -- by whose clock an application wrote its own rows is not known
            (SELECT CASE WHEN d.created_at <= c.now THEN d.created_at ELSE '-infinity' END
            FROM public.webhook_deliveries d
            WHERE a.fill IS NOT NULL AND d.destination_id = a.destination_id
              AND d.status IN ('pending', 'failed') AND d.next_retry_at IS NULL
              AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)) IS NOT TRUE
            ORDER BY d.next_retry_at
            LIMIT greatest(a.fill, a.want))";

/// As [`COUNTED`], for ordered destinations.
pub(super) const COUNTED_ORDERED: &str = "
            SELECT coalesce(q.next_retry_at,
                CASE WHEN q.created_at <= c.now THEN q.created_at ELSE '-infinity' END) AS due FROM (
                SELECT d.next_retry_at, d.created_at FROM public.webhook_deliveries d
                WHERE a.fill IS NOT NULL AND d.destination_id = a.destination_id
                  AND d.status IN ('pending', 'failed')
                ORDER BY d.created_at, d.id
                LIMIT greatest(a.fill, a.want)
            ) q WHERE q.next_retry_at IS NULL OR q.next_retry_at <= c.now";

/// Where a claim finds what falls due next, for [`ANSWER`].
pub(super) const NEXT: &str = "
    SELECT d.next_retry_at FROM public.webhook_deliveries d
    WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
      AND d.next_retry_at > c.now
    ORDER BY d.next_retry_at LIMIT 1";

/// Ordered destinations are locked by a statement of their own first: the claim's snapshot must be younger
/// than the lock, or it would not see what another process has claimed meanwhile.
pub(super) const LOCK_ORDERED: &str = "
    SELECT id FROM public.webhook_destinations WHERE id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED";

/// As [`CLAIM`], with `$3` the number of rows among which to look for live leases. Takes the head of the
/// queue up to the first delivery that is not due, or is being changed.
pub(super) const CLAIM_ORDERED: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
asked AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[], $9::int[], $10::bigint[])
        WITH ORDINALITY AS a(destination_id, want, lookahead, max_bytes, fill, wait_us, turn)
),
{FILLED}
free AS MATERIALIZED (
    SELECT a.* FROM ask a CROSS JOIN clock c WHERE NOT EXISTS (
        SELECT FROM (
            SELECT d.last_attempt_at, d.next_retry_at FROM public.webhook_deliveries d
            WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
            ORDER BY d.created_at, d.id LIMIT a.lookahead
        ) d
        WHERE d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)
          AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at))
),
queue AS MATERIALIZED (
    SELECT a.max_bytes, a.turn, p.* FROM free a CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.created_at,
            d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
        ORDER BY d.created_at, d.id
        LIMIT a.want
    ) p
),
locked AS MATERIALIZED (
    SELECT d.id, d.ctid AS version FROM public.webhook_deliveries d
    WHERE d.ctid = ANY (ARRAY(SELECT q.version FROM queue q))
    -- a row that somebody is changing at this moment is not waited for, and ends the queue for now
    FOR NO KEY UPDATE SKIP LOCKED
),
head AS MATERIALIZED (
    SELECT q.*,
        -- a row that was changed since it was looked at is locked in another version
        bool_and((q.id, q.version) IN (SELECT l.id, l.version FROM locked l)
                AND (q.next_retry_at IS NULL OR q.next_retry_at <= c.now))
            OVER (PARTITION BY q.destination_id ORDER BY q.created_at, q.id) AS due
    FROM queue q CROSS JOIN clock c
),
picked AS MATERIALIZED (SELECT * FROM head WHERE due),
{TAKE}";

/// As [`NEXT`], for ordered destinations: when the head falls due. A head that is due and held back is being
/// changed by somebody at this moment.
pub(super) const NEXT_ORDERED: &str = "
    SELECT CASE WHEN h.next_retry_at > c.now THEN h.next_retry_at ELSE c.now + interval '1 second' END
    FROM head h WHERE h.destination_id = a.destination_id AND NOT h.due
    ORDER BY h.created_at, h.id LIMIT 1";

/// The common end of both claims where all are plain: they are printed at once, and all of them fit. What is
/// not plain is left to [`TAKE_MEASURED`]: then nothing is taken, and the rows of kind 1 do not say how many
/// there were.
pub(super) const TAKE: &str = "
sized AS MATERIALIZED (
    SELECT p.*, {EVENT}, {PLAIN} AS printed FROM picked p JOIN {EVENTS} ON l.id = p.log_id
),
total AS MATERIALIZED (
    -- in this order: what follows the first one that is not plain is neither locked nor printed
    SELECT CASE WHEN NOT EXISTS (SELECT FROM sized s WHERE s.printed IS NULL OR s.text_bytes > $7) THEN (
        -- those who ask have asked for no more rows than may fit
        SELECT CASE WHEN sum(s.text_bytes + octet_length(s.printed) + {OVERHEAD}) >= $8 THEN NULL
            ELSE count(*)::int END
        FROM sized s) END AS rows
),
taken AS (
    UPDATE public.webhook_deliveries d SET last_attempt_at = c.now
    FROM sized s CROSS JOIN clock c
    WHERE (SELECT rows FROM total) IS NOT NULL AND {UNCHANGED}
    RETURNING {LEASED},
        s.log_id, s.org_id, s.employee_id, s.session_id, s.client_name, s.client_version, s.event_type,
        s.event_category, s.content, s.printed, {CREATED_AT}, false, d.next_retry_at
)
{ANSWER}";

/// The text of a plain payload, else NULL: as in the function `posthaste_printed`, but for the numbers, which
/// are not measured, and for what has more text than is usual for its size.
pub(super) const PLAIN: &str = "
    CASE WHEN CASE
        WHEN l.payload IS NULL THEN true
        WHEN pg_column_size(l.payload) > 4096 THEN false
        WHEN pg_column_size(l.payload) <= 512 AND pg_column_compression(l.payload) IS NULL THEN true
        WHEN pg_column_size(l.payload #> '{}') <= 512 THEN true
        ELSE pg_column_size(l.payload #> '{}') <= 4096
            AND NOT jsonb_path_exists(l.payload, 'strict $.** ? (@ >= 1e1000 || @ <= -1e1000)')
    END THEN (
        SELECT CASE WHEN octet_length(once.text) <= least($7, 8192) THEN once.text END
        FROM (SELECT coalesce(l.payload, 'null')::text AS text OFFSET 0) once)
    END";

/// The common end of both claims where not all are plain: cut what was picked at the byte limits, read the
/// events, write the lease. Where the limit of all cuts, everybody's first event comes before anybody's
/// second one. What is stored says little about what is printed, so both limits cut twice: by estimates, then
/// by the texts, of which no more are made.
pub(super) const TAKE_MEASURED: &str = "
sized AS MATERIALIZED (
    SELECT p.*, {EVENT}, {SIZE} AS bytes FROM picked p JOIN {EVENTS} ON l.id = p.log_id
),
total AS MATERIALIZED (SELECT count(*)::int AS rows FROM sized),
shared AS MATERIALIZED (
    SELECT s.*, s.is_mine AND coalesce(sum(s.bytes) FILTER (WHERE s.is_mine) OVER earlier, 0) < $8 AS fits
    FROM (
        SELECT s.*,
            coalesce(sum(s.bytes) OVER (mine ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                < s.max_bytes AS is_mine,
            row_number() OVER mine AS place
        FROM sized s
        WINDOW mine AS (PARTITION BY s.destination_id ORDER BY s.{ORDER}, s.id)
    ) s
    WINDOW earlier AS (ORDER BY s.place, s.turn ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
-- everybody's first event before anybody's second one, and small ones before others: of each queue, what is
-- not printed is the end
numbered AS MATERIALIZED (
    SELECT s.*, row_number() OVER () AS n
    FROM (SELECT * FROM shared WHERE fits ORDER BY place, bytes > 1024, turn) s
),
texts AS MATERIALIZED (
    SELECT public.posthaste_print(
        array_agg(s.log_id), array_agg(s.turn), array_agg(s.max_bytes), $7, $8) AS printed
    FROM numbered s
),
taken AS (
    UPDATE public.webhook_deliveries d SET last_attempt_at = c.now
    FROM numbered s CROSS JOIN clock c
    WHERE {UNCHANGED} AND (SELECT printed FROM texts)[s.n] IS NOT NULL
    RETURNING {LEASED},
        s.log_id, s.org_id, s.employee_id, s.session_id,
        CASE WHEN s.text_bytes <= $7 THEN s.client_name END,
        CASE WHEN s.text_bytes <= $7 THEN s.client_version END,
        CASE WHEN s.text_bytes <= $7 THEN s.event_type ELSE left(s.event_type, 100) END,
        CASE WHEN s.text_bytes <= $7 THEN s.event_category END,
        CASE WHEN s.text_bytes <= $7 THEN s.content END,
        nullif((SELECT printed FROM texts)[s.n], ''),
        {CREATED_AT}, s.text_bytes > $7, d.next_retry_at
)
{ANSWER}
UNION ALL
SELECT 2::int2, s.destination_id, c.now, NULL, NULL, {NULLS}, NULL
FROM shared s CROSS JOIN clock c WHERE NOT s.fits
UNION ALL
SELECT 2::int2, s.destination_id, c.now, NULL, NULL, {NULLS}, NULL
FROM numbered s CROSS JOIN clock c WHERE (SELECT printed FROM texts)[s.n] IS NULL";

/// What was changed after the statement began is locked in a version that it does not see, and left; the id
/// is compared, not searched for: versions of tables that inherit are numbered like ours.
pub(super) const UNCHANGED: &str = "d.ctid = s.version AND d.id IS NOT DISTINCT FROM s.id";

/// The columns of a delivery.
pub(super) const LEASED: &str = "
        d.destination_id, d.last_attempt_at AS now, d.id, coalesce(d.attempts, 0),
        s.last_attempt_at, coalesce(d.created_at, c.now),
        -- only a delivery that was attempted before can have a first attempt
        CASE WHEN s.last_attempt_at IS NOT NULL THEN
            -- since it was queued: a replay, which sets created_at, begins anew; no condition, as in RECORD
            (SELECT min(h.started_at) FILTER (WHERE h.started_at >= d.created_at)
             FROM public.posthaste_attempts h WHERE h.delivery_id = d.id) END";

/// The columns of an event; a NULL where something must be is one of an application's own row. An event of
/// nobody is nobody's destination's.
pub(super) const EVENT: &str = "\
    coalesce(l.org_id, '00000000-0000-0000-0000-000000000000') AS org_id, l.employee_id, l.session_id, \
    l.client_name::text AS client_name, l.client_version::text AS client_version, \
    coalesce(l.event_type::text, '') AS event_type, l.event_category::text AS event_category, \
    l.content::text AS content, l.created_at AS event_created_at";

/// The time of an event; that of the delivery where it has none.
pub(super) const CREATED_AT: &str = "coalesce(s.event_created_at::timestamp, d.created_at::timestamp, c.now)";

/// The rows of the kinds 0 and 1.
pub(super) const ANSWER: &str = "SELECT 0::int2 AS kind, t.* FROM taken t
UNION ALL
SELECT 1::int2, a.destination_id, c.now, NULL::uuid, (SELECT rows FROM total), {NULLS},
    least(({NEXT}), a.filled_at)
FROM ask a CROSS JOIN clock c";

/// The columns of `taken` between `attempts` and `next_retry_at`.
pub(super) const NULLS: &str = "\
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
