//! The texts of the claim statements; [`super::claim`] completes and runs them.

/// Parameters: destinations, wanted rows, lower bounds, byte limits, lease, floor, largest event, byte
/// limit of all. What is stored says little about what is printed, so both limits cut twice: by estimates,
/// then by the texts, of which no more are made. Each search is in the order of the index that it should
/// use, as sessions sort nothing that they can have in order (see [`crate::store::planned`]). The rows come
/// with `kind` 0; then one row of kind 1 for each destination with what falls due next, one of kind 2 for
/// each destination of which a byte limit cut something off, and, if anything was changed at that moment
/// and left, one of kind 3 for each destination.
pub(super) const CLAIM: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
ask AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::timestamp[], $4::bigint[])
        WITH ORDINALITY AS a(destination_id, want, since, max_bytes, turn)
),
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
{TAKE}
SELECT 0::int2 AS kind, t.* FROM taken t
UNION ALL
SELECT 1::int2, a.destination_id, c.now, {NULLS}, (
    SELECT d.next_retry_at FROM public.webhook_deliveries d
    WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
      AND d.next_retry_at > c.now
    ORDER BY d.next_retry_at LIMIT 1)
FROM ask a CROSS JOIN clock c
UNION ALL
SELECT 2::int2, s.destination_id, c.now, {NULLS}, NULL
FROM (SELECT DISTINCT destination_id FROM shared WHERE NOT fits
      UNION SELECT destination_id FROM numbered
      WHERE NOT (SELECT are_all FROM texts) AND (SELECT printed FROM texts)[n] IS NULL
) s CROSS JOIN clock c
UNION ALL
SELECT 3::int2, a.destination_id, c.now, {NULLS}, NULL
FROM ask a CROSS JOIN clock c
WHERE (SELECT count(*) FROM numbered
       WHERE (SELECT are_all FROM texts) OR (SELECT printed FROM texts)[n] IS NOT NULL)
    > (SELECT count(*) FROM taken)";

/// Ordered destinations are locked by a statement of their own first: the claim's snapshot must be younger
/// than the lock, or it would not see what another process has claimed meanwhile.
pub(super) const LOCK_ORDERED: &str = "
    SELECT id FROM public.webhook_destinations WHERE id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED";

/// As [`CLAIM`], with `$3` the number of rows among which to look for live leases. Takes the head of the
/// queue up to the first delivery that is not due, or was changed: so there is no kind 3.
pub(super) const CLAIM_ORDERED: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
ask AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[])
        WITH ORDINALITY AS a(destination_id, want, lookahead, max_bytes, turn)
),
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
{TAKE}
SELECT 0::int2 AS kind, t.* FROM taken t
UNION ALL
SELECT 1::int2, a.destination_id, c.now, {NULLS},
    -- when the head falls due; a head that is due and held back is being changed by somebody at this moment
    (SELECT CASE WHEN h.next_retry_at > c.now THEN h.next_retry_at ELSE c.now + interval '1 second' END
     FROM head h WHERE h.destination_id = a.destination_id AND NOT h.due
     ORDER BY h.created_at, h.id LIMIT 1)
FROM ask a CROSS JOIN clock c
UNION ALL
SELECT 2::int2, s.destination_id, c.now, {NULLS}, NULL
FROM (SELECT DISTINCT destination_id FROM shared WHERE NOT fits
      UNION SELECT destination_id FROM numbered
      WHERE NOT (SELECT are_all FROM texts) AND (SELECT printed FROM texts)[n] IS NULL
) s CROSS JOIN clock c";

/// The common end of both claims: cut what was picked at the byte limits, read the events, write the lease.
/// Where the limit of all cuts, everybody's first event comes before anybody's second one.
pub(super) const TAKE: &str = "
sized AS MATERIALIZED (
    SELECT p.*, {EVENT}, {SIZE} AS bytes FROM picked p JOIN public.activity_logs l ON l.id = p.log_id
),
-- nearly always everything fits, and needs no order then
total AS MATERIALIZED (
    SELECT sum(s.bytes) < $8 AND sum(s.bytes) < min(s.max_bytes) AS fits FROM sized s
),
shared AS MATERIALIZED (
    SELECT s.*, true AS is_mine, 0::bigint AS place, true AS fits
    FROM sized s WHERE (SELECT fits FROM total)
    UNION ALL
    SELECT s.*, s.is_mine AND coalesce(sum(s.bytes) FILTER (WHERE s.is_mine) OVER earlier, 0) < $8 AS fits
    FROM (
        SELECT s.*,
            coalesce(sum(s.bytes) OVER (mine ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                < s.max_bytes AS is_mine,
            row_number() OVER mine AS place
        FROM sized s WHERE NOT (SELECT fits FROM total)
        WINDOW mine AS (PARTITION BY s.destination_id ORDER BY s.{ORDER}, s.id)
    ) s
    WINDOW earlier AS (ORDER BY s.place, s.turn ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
-- in the order of those who ask, and for each in that of its queue: what is not printed is its end
numbered AS MATERIALIZED (
    SELECT s.*, row_number() OVER () AS n
    FROM (SELECT * FROM shared WHERE fits ORDER BY turn, {ORDER}, id) s
),
texts AS MATERIALIZED (
    SELECT t.printed, array_position(t.printed, NULL) IS NULL AS are_all
    FROM (SELECT public.posthaste_print(
        -- the others are read where they are printed, one by one
        array_agg(CASE WHEN pg_column_size(s.payload) <= {AT_ONCE}
            AND pg_column_compression(s.payload) IS NULL THEN s.payload END),
        array_agg(s.log_id), array_agg(s.turn), array_agg(s.max_bytes), $7, $8) AS printed
    FROM numbered s) t
),
taken AS (
    UPDATE public.webhook_deliveries d SET last_attempt_at = c.now
    FROM numbered s CROSS JOIN clock c
    -- what was changed after this statement began is locked in a version that it does not see, and left; the
    -- id is compared, not searched for: versions of tables that inherit are numbered like ours
    WHERE d.ctid = s.version AND d.id IS NOT DISTINCT FROM s.id
        AND ((SELECT are_all FROM texts) OR (SELECT printed FROM texts)[s.n] IS NOT NULL)
    RETURNING d.destination_id, d.last_attempt_at AS now, d.id, d.attempts, s.last_attempt_at, d.created_at,
        -- only a delivery that was attempted before can have a first attempt
        CASE WHEN s.last_attempt_at IS NOT NULL THEN
            -- since it was queued: a replay, which sets created_at, begins anew; no condition, as in RECORD
            (SELECT min(h.started_at) FILTER (WHERE h.started_at >= d.created_at)
             FROM public.posthaste_attempts h WHERE h.delivery_id = d.id) END,
        s.log_id, s.org_id, s.employee_id, s.session_id,
        CASE WHEN s.text_bytes <= $7 THEN s.client_name END,
        CASE WHEN s.text_bytes <= $7 THEN s.client_version END,
        CASE WHEN s.text_bytes <= $7 THEN s.event_type ELSE left(s.event_type, 100) END,
        CASE WHEN s.text_bytes <= $7 THEN s.event_category ELSE '' END,
        CASE WHEN s.text_bytes <= $7 THEN s.content END,
        nullif((SELECT printed FROM texts)[s.n], ''),
        coalesce(to_char(s.event_created_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), s.event_created_at::text),
        s.text_bytes > $7,
        d.next_retry_at
)";

/// The columns of `taken` between `now` and `next_retry_at`, as nulls.
pub(super) const NULLS: &str = "NULL::uuid, NULL::int, NULL::timestamp, NULL::timestamp, NULL::timestamp, \
    NULL::uuid, NULL::uuid, NULL::uuid, NULL::uuid, NULL::text, NULL::text, NULL::text, NULL::text, \
    NULL::text, NULL::text, NULL::text, NULL::boolean";
