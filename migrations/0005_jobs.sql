-- (There is no 0004: its number was given up before it was ever applied anywhere.)
-- Jobs: replay and backfill, which outlive the process that began them; and the indexes by which deliveries
-- and events are listed, replayed and backfilled.

-- A job is its row: whoever locks it does the next batch from where the row says, and moves the row on in the
-- same statement. What was done and what the row says about it cannot come apart.
CREATE TABLE public.posthaste_jobs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    org_id uuid NOT NULL,
    destination_id uuid NOT NULL,
    kind text NOT NULL,
    state text DEFAULT 'running'::text NOT NULL,
    range_from timestamp without time zone,
    range_to timestamp without time zone NOT NULL,
    statuses text[] DEFAULT '{}'::text[] NOT NULL,
    event_type text,
    after_at timestamp without time zone NOT NULL,
    after_id uuid NOT NULL,
    total bigint,
    seen bigint DEFAULT 0 NOT NULL,
    queued bigint DEFAULT 0 NOT NULL,
    error text,
    failures integer DEFAULT 0 NOT NULL,
    resume_at timestamp without time zone NOT NULL,
    created_at timestamp without time zone NOT NULL,
    updated_at timestamp without time zone NOT NULL
);
ALTER TABLE public.posthaste_jobs ADD CONSTRAINT posthaste_jobs_pkey PRIMARY KEY (id);
ALTER TABLE public.posthaste_jobs ADD CONSTRAINT posthaste_jobs_destination_id_fkey FOREIGN KEY (destination_id) REFERENCES public.webhook_destinations(id) ON DELETE CASCADE;
ALTER TABLE public.posthaste_jobs ADD CONSTRAINT posthaste_jobs_kind_check CHECK (kind IN ('replay', 'backfill'));
ALTER TABLE public.posthaste_jobs ADD CONSTRAINT posthaste_jobs_state_check CHECK (state IN ('running', 'done', 'cancelled', 'failed'));
-- A pending delivery is queued already.
ALTER TABLE public.posthaste_jobs ADD CONSTRAINT posthaste_jobs_statuses_check CHECK (statuses <@ '{failed,delivered,dead}' AND (kind <> 'replay' OR cardinality(statuses) > 0));
CREATE INDEX posthaste_jobs_running ON public.posthaste_jobs USING btree (resume_at) WHERE (state = 'running');
CREATE INDEX posthaste_jobs_org ON public.posthaste_jobs USING btree (org_id, created_at, id);

-- The history of a destination by status, newest first: lists, and what a replay picks. What is open is
-- listed by posthaste_deliveries_order, so that an INSERT, which happens in the producer's transaction, pays
-- nothing for this one: an entry for what is pending as well would cost it a quarter of what the rest does. A
-- result pays for one entry; a claim writes none of these columns and stays HOT.
CREATE INDEX posthaste_deliveries_history ON public.webhook_deliveries USING btree (destination_id, status, created_at, id) WHERE (status IN ('delivered', 'failed', 'dead'));

-- The events of one tenant by time: lists, and what a backfill reads. Entries go to the right end of the
-- tenant's part.
CREATE INDEX posthaste_events_org ON public.activity_logs USING btree (org_id, created_at, id);

-- Queues the events of one destination's organization that it wants and was never given, from after a
-- position on and before `until`: the predicates are those of posthaste_fan_out. It ends when it has looked
-- at `look` events, or when `most` of them matched. They fall due `spacing` apart, in pairs; where that is
-- NULL, it only counts what it would queue. No row means that the destination is not enabled.
CREATE OR REPLACE FUNCTION public.posthaste_backfill(destination uuid, until timestamp, after_at timestamp, after_id uuid, most integer, look integer, spacing interval)
RETURNS TABLE (seen bigint, queued bigint, last_at timestamp, last_id uuid, finished boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    wants record;
    e record;
    ids uuid[] := '{}';
    due timestamp;
BEGIN
    SELECT s.org_id, s.patterns, s.contained, s.path INTO wants
    FROM public.webhook_destinations d,
        public.posthaste_subscriptions(ARRAY[d.org_id::uuid], public.posthaste_usable(ARRAY[d.org_id::uuid])) s
    WHERE d.id = destination AND s.id = d.id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT 0, 0, after_at, after_id, true INTO seen, queued, last_at, last_id, finished;
    -- A loop fetches a few rows at a time: what comes after the last match is never looked at.
    FOR e IN
        SELECT p.id::uuid AS id, p.created_at::timestamp AS created_at,
            (wants.patterns IS NULL OR p.event_type::text COLLATE "C" LIKE ANY (wants.patterns))
            AND (wants.contained IS NULL OR p.payload::jsonb @> wants.contained)
            AND (wants.path IS NULL OR public.posthaste_holds(wants.path::text, public.posthaste_data(p.id::uuid,
                p.org_id::uuid, p.employee_id::uuid, p.session_id::uuid, p.client_name::text,
                p.client_version::text, p.event_type::text, p.event_category::text, p.content::text,
                p.payload::jsonb, p.created_at::timestamp))) AS matches
        FROM (SELECT n.id, n.org_id, n.event_type, n.created_at, n.payload, o.employee_id, o.session_id,
                  o.client_name, o.client_version, o.event_category, o.content
              -- a column that the table lacks is found in `lacking`, and null
              FROM (SELECT NULL::uuid AS employee_id, NULL::uuid AS session_id, NULL::text AS client_name,
                        NULL::text AS client_version, NULL::text AS event_category, NULL::text AS content) lacking
              CROSS JOIN public.activity_logs n
              CROSS JOIN LATERAL (
                  SELECT employee_id, session_id, client_name, client_version, event_category, content
                  FROM (SELECT n.*) own
              ) o) p
        WHERE p.org_id = wants.org_id AND p.created_at < until AND (p.created_at, p.id) > (after_at, after_id)
        ORDER BY p.created_at, p.id
        LIMIT look
    LOOP
        SELECT seen + 1, e.created_at, e.id INTO seen, last_at, last_id;
        IF e.matches THEN
            ids := ids || e.id;
        END IF;
        IF seen = look OR cardinality(ids) = most THEN
            finished := false;
            EXIT;
        END IF;
    END LOOP;
    IF spacing IS NULL THEN
        queued := (SELECT count(*) FROM unnest(ids) AS i (id) WHERE NOT EXISTS (
            SELECT FROM public.webhook_deliveries w WHERE w.destination_id = destination AND w.log_id = i.id));
        RETURN NEXT;
        RETURN;
    END IF;
    -- Queued now, in the order of the events, as the fan-out does it.
    due := timezone('UTC', clock_timestamp());
    INSERT INTO public.webhook_deliveries
        (id, destination_id, log_id, status, attempts, next_retry_at, created_at)
    SELECT gen_random_uuid(), destination, i.id, 'pending', 0, due + (i.ordinal - 1) / 2 * 2 * spacing,
        due - (cardinality(ids) - i.ordinal) * interval '1 microsecond'
    FROM unnest(ids) WITH ORDINALITY AS i (id, ordinal)
    ON CONFLICT (destination_id, log_id) DO NOTHING;
    GET DIAGNOSTICS queued = ROW_COUNT;
    RETURN NEXT;
END
$$;
