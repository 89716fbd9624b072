-- From event to delivery, in the producer's own transaction.
--
-- Every trigger runs with its owner's rights and pinned settings: a producer needs no rights beyond its
-- INSERT, and nothing that a session sets changes what happens.

-- Whether a path yields exactly one boolean or null whatever it looks at, an empty object included: only
-- predicates do that, and constants, which are of no use.
CREATE OR REPLACE FUNCTION public.posthaste_is_predicate(path jsonpath) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_path_query_array_tz('{}', path, '{}', true) IN ('[true]', '[false]', '[null]')
        AND path::text NOT IN ('true', 'false', 'null', 'strict true', 'strict false', 'strict null')
$$;

-- What is wrong with an event_filter, or NULL.
CREATE OR REPLACE FUNCTION public.posthaste_filter_fault(filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
AS $$
DECLARE
    stray text;
    predicate boolean;
BEGIN
    IF filter IS NULL THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(filter) <> 'object' THEN
        RETURN format('it must be a JSON object, not %s', jsonb_typeof(filter));
    END IF;
    SELECT k INTO stray FROM jsonb_object_keys(filter) k WHERE k LIKE '$%' AND k <> '$jsonpath' LIMIT 1;
    IF stray IS NOT NULL THEN
        RETURN format('the key %s is unknown; of the keys that start with $ there is only $jsonpath', stray);
    END IF;
    IF NOT filter ? '$jsonpath' THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(filter -> '$jsonpath') <> 'string' THEN
        RETURN '$jsonpath must be a string';
    END IF;
    BEGIN
        predicate := public.posthaste_is_predicate((filter ->> '$jsonpath')::jsonpath);
    EXCEPTION
        WHEN data_exception OR syntax_error_or_access_rule_violation OR feature_not_supported
            OR program_limit_exceeded THEN
        RETURN format('$jsonpath cannot be used: %s', SQLERRM);
    END;
    IF NOT predicate THEN
        RETURN '$jsonpath must be a predicate, such as $.event_category == "security", not a path';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.posthaste_refuse_bad_filter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fault text;
BEGIN
    -- A destination whose filter was bad before these triggers came can still be renamed or switched off.
    IF TG_OP = 'UPDATE' AND NEW.event_filter IS NOT DISTINCT FROM OLD.event_filter THEN
        RETURN NEW;
    END IF;
    fault := public.posthaste_filter_fault(NEW.event_filter);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'event_filter of destination "%" is refused: %', NEW.name, fault
            USING ERRCODE = 'invalid_parameter_value', SCHEMA = 'public', TABLE = 'webhook_destinations',
                  COLUMN = 'event_filter';
    END IF;
    RETURN NEW;
END
$$;

-- What the enabled destinations of some organizations want. Patterns are LIKE patterns: NULL lets every type
-- through, as does a NULL in the other two. A filter that is bad all the same (it is older than these
-- triggers) wants nothing.
CREATE OR REPLACE FUNCTION public.posthaste_subscriptions(orgs uuid[])
RETURNS TABLE (id uuid, org_id uuid, patterns text[], contained jsonb, path text)
LANGUAGE sql STABLE
AS $$
    SELECT d.id, d.org_id,
        CASE WHEN cardinality(d.event_types) > 0 THEN
            ARRAY(SELECT regexp_replace(regexp_replace(t, E'([\\\\%_])', E'\\\\\\1', 'g'), '[*]$', '%')
                  FROM unnest(d.event_types) t WHERE t IS NOT NULL)
        END,
        nullif(d.event_filter - '$jsonpath', '{}'),
        d.event_filter ->> '$jsonpath'
    FROM public.webhook_destinations d
    WHERE d.enabled AND d.org_id = ANY (orgs)
        AND CASE
            WHEN d.event_filter IS NULL OR d.event_filter = '{}' THEN true
            WHEN jsonb_typeof(d.event_filter) <> 'object' THEN false
            -- Whether the path is a predicate is seen when it is evaluated.
            ELSE coalesce(jsonb_typeof(d.event_filter -> '$jsonpath'), 'string') = 'string'
                AND NOT EXISTS (SELECT FROM jsonb_object_keys(d.event_filter) k
                                WHERE k LIKE '$%' AND k <> '$jsonpath')
        END
$$;

-- Whether a predicate holds for an event as it is on the wire in `data`. A predicate that cannot be evaluated
-- does not hold: the receiver's filter must never fail the producer's INSERT.
CREATE OR REPLACE FUNCTION public.posthaste_holds(path text, event record) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
AS $$
DECLARE
    -- By name, so that an application may add and drop columns of its own at any time.
    columns jsonb;
    data jsonb;
BEGIN
    IF NOT public.posthaste_is_predicate(path::jsonpath) THEN
        RETURN false;
    END IF;
    columns := to_jsonb(event);
    data := jsonb_build_object(
        'id', columns -> 'id', 'org_id', columns -> 'org_id', 'employee_id', columns -> 'employee_id',
        'session_id', columns -> 'session_id', 'client_name', columns -> 'client_name',
        'client_version', columns -> 'client_version', 'event_type', columns -> 'event_type',
        'event_category', columns -> 'event_category', 'content', columns -> 'content',
        'payload', columns -> 'payload',
        'created_at', to_char((columns ->> 'created_at')::timestamp, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'));
    RETURN coalesce(jsonb_path_match_tz(data, path::jsonpath, '{}', true), false);
EXCEPTION
    WHEN data_exception OR syntax_error_or_access_rule_violation OR feature_not_supported
        OR program_limit_exceeded THEN
    RETURN false;
END
$$;

-- The planner's settings: one plan must do for one event and for ten thousand, so it is made of hash joins,
-- made once a session, and never compiled.
CREATE OR REPLACE FUNCTION public.posthaste_fan_out() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
SET row_security = on
SET enable_nestloop = off
SET plan_cache_mode = force_generic_plan
SET jit = off
AS $$
DECLARE
    orgs uuid[] := ARRAY(SELECT DISTINCT n.org_id FROM posthaste_new n);
    destinations bigint;
    paths boolean;
    held_ordinals bigint[];
    held_destinations uuid[];
    base timestamp;
    woken uuid[];
BEGIN
    -- For the policies that forced row-level security needs. Not a SET above, which only a superuser may
    -- write there.
    PERFORM set_config('posthaste.fan_out', 'on', true);

    SELECT count(*), bool_or(d.event_filter ? '$jsonpath') INTO destinations, paths
    FROM public.webhook_destinations d WHERE d.enabled AND d.org_id = ANY (orgs);
    IF destinations = 0 THEN
        PERFORM set_config('posthaste.fan_out', 'off', true);
        RETURN NULL;
    END IF;

    -- Predicates need the event as a document, which is dear: only where somebody has one.
    IF paths THEN
        WITH subscription AS MATERIALIZED (SELECT * FROM public.posthaste_subscriptions(orgs))
        SELECT array_agg(e.ordinal), array_agg(s.id) INTO held_ordinals, held_destinations
        FROM (SELECT n.org_id, n.event_type, n.payload, n AS event, row_number() OVER () AS ordinal
              FROM posthaste_new n) e
        JOIN subscription s ON s.org_id = e.org_id
        WHERE s.path IS NOT NULL
            AND (s.patterns IS NULL OR e.event_type COLLATE "C" LIKE ANY (s.patterns))
            AND (s.contained IS NULL OR e.payload @> s.contained)
            AND public.posthaste_holds(s.path, e.event);
    END IF;

    -- The order within the statement is kept in microseconds that end now. Writing n rows took longer than n
    -- of them, so they also lie after everything that an earlier statement queued, and never in the future.
    base := timezone('UTC', clock_timestamp())
        - (SELECT count(*) FROM posthaste_new) * interval '1 microsecond';

    -- Materialized, or the patterns would be worked out anew for every event.
    WITH subscription AS MATERIALIZED (
        SELECT * FROM public.posthaste_subscriptions(orgs)
    ), matched AS MATERIALIZED (
        SELECT s.id AS destination_id, e.id AS log_id, e.ordinal
        FROM (SELECT n.id, n.org_id, n.event_type, n.payload, row_number() OVER () AS ordinal
              FROM posthaste_new n) e
        JOIN subscription s ON s.org_id = e.org_id
        WHERE (s.patterns IS NULL OR e.event_type COLLATE "C" LIKE ANY (s.patterns))
            AND (s.contained IS NULL OR e.payload @> s.contained)
            AND (s.path IS NULL
                 OR (e.ordinal, s.id) IN (SELECT * FROM unnest(held_ordinals, held_destinations)))
    ), locked AS MATERIALIZED (
        -- The lock that the foreign key takes anyway, but taken here a destination that is being deleted
        -- drops out instead of failing the producer.
        SELECT d.id FROM public.webhook_destinations d
        WHERE d.id = ANY (ARRAY(SELECT DISTINCT m.destination_id FROM matched m)) AND d.enabled
        ORDER BY d.id
        FOR KEY SHARE
    ), queued AS (
        INSERT INTO public.webhook_deliveries
            (id, destination_id, log_id, status, attempts, next_retry_at, created_at)
        SELECT gen_random_uuid(), m.destination_id, m.log_id, 'pending', 0,
            -- Due now, and each at a time of its own: a claim begins where the last one ended.
            base + m.ordinal * interval '1 microsecond', base + m.ordinal * interval '1 microsecond'
        FROM matched m JOIN locked l ON l.id = m.destination_id
        ON CONFLICT (destination_id, log_id) DO NOTHING
        RETURNING destination_id
    )
    SELECT array_agg(q.destination_id) INTO woken FROM (SELECT DISTINCT destination_id FROM queued) q;

    IF woken IS NOT NULL AND TG_ARGV[0] = 'notify' THEN
        PERFORM pg_notify('posthaste_wake',
            CASE WHEN cardinality(woken) <= 100 THEN array_to_string(woken, ',') ELSE '*' END);
    END IF;
    PERFORM set_config('posthaste.fan_out', 'off', true);
    RETURN NULL;
END
$$;

-- Enabling a destination is a fresh start; deleting it leaves nothing behind.
CREATE OR REPLACE FUNCTION public.posthaste_forget_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM public.posthaste_destination_state s WHERE s.destination_id = OLD.id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.posthaste_destinations_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('posthaste_config', id)
    FROM (SELECT CASE WHEN count(*) OVER () <= 100 THEN c.id::text ELSE '*' END AS id
          FROM posthaste_changed c) t
    GROUP BY id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.posthaste_settings_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('posthaste_config', id)
    FROM (SELECT CASE WHEN count(*) OVER () <= 100 THEN c.destination_id::text ELSE '*' END AS id
          FROM posthaste_changed c) t
    GROUP BY id;
    RETURN NULL;
END
$$;

CREATE TRIGGER posthaste_refuse_bad_filter BEFORE INSERT OR UPDATE OF event_filter ON public.webhook_destinations FOR EACH ROW EXECUTE FUNCTION posthaste_refuse_bad_filter();
CREATE TRIGGER posthaste_enabled AFTER UPDATE ON public.webhook_destinations FOR EACH ROW WHEN ((new.enabled AND (NOT old.enabled))) EXECUTE FUNCTION posthaste_forget_state();
CREATE TRIGGER posthaste_deleted AFTER DELETE ON public.webhook_destinations FOR EACH ROW EXECUTE FUNCTION posthaste_forget_state();

-- These six only with notifications.
CREATE TRIGGER posthaste_inserted_notify AFTER INSERT ON public.webhook_destinations REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_destinations_changed();
CREATE TRIGGER posthaste_updated_notify AFTER UPDATE ON public.webhook_destinations REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_destinations_changed();
CREATE TRIGGER posthaste_deleted_notify AFTER DELETE ON public.webhook_destinations REFERENCING OLD TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_destinations_changed();
CREATE TRIGGER posthaste_inserted_notify AFTER INSERT ON public.posthaste_destination_settings REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_settings_changed();
CREATE TRIGGER posthaste_updated_notify AFTER UPDATE ON public.posthaste_destination_settings REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_settings_changed();
CREATE TRIGGER posthaste_deleted_notify AFTER DELETE ON public.posthaste_destination_settings REFERENCING OLD TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION posthaste_settings_changed();

-- Last, because from here on deliveries are created. The argument is 'quiet' without notifications.
CREATE TRIGGER posthaste_fan_out AFTER INSERT ON public.activity_logs REFERENCING NEW TABLE AS posthaste_new FOR EACH STATEMENT EXECUTE FUNCTION posthaste_fan_out('notify');
