-- From event to delivery, in the producer's own transaction.
--
-- Triggers that need rights run with their owner's, under pinned settings: a producer needs no rights beyond
-- its INSERT, and nothing that a session sets changes what happens. Such a function is a door into the owner's
-- rights. So `migrate` revokes EXECUTE on every function here from PUBLIC, without which nobody can attach one
-- to a table of their own; and each refuses any relation but its own before it looks at a row, as the types of
-- a foreign table's columns, and the casts and operators that belong to them, are somebody else's code.
--
-- Arguments have the very types of their parameters: for a type that is merely near, PostgreSQL would prefer a
-- function of the same name that somebody else has made.
--
-- An application may add and drop columns at any time, under any name: functions name every column with its
-- table, parameters by number, and prefer variables (#variable_conflict). Columns may be of a domain over the
-- given type, or text where varchar is given: so they are cast to the types of the parameters. NULL in `enabled`
-- means its default, true.

-- Whether a path yields exactly one boolean or null whatever it looks at, an empty object included: only
-- predicates do that, and constants, which are of no use.
CREATE OR REPLACE FUNCTION public.posthaste_is_predicate(path jsonpath) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_path_query_array_tz('{}', $1, '{}', true) IN ('[true]', '[false]', '[null]')
        AND $1::text NOT IN ('true', 'false', 'null', 'strict true', 'strict false', 'strict null')
$$;

-- What is wrong with the regular expression of a like_regex, or NULL. PostgreSQL matches without backtracking,
-- in time proportional to the text, but for back-references and constraints that look around. Making the
-- automaton takes a high power of its size, which counted repetitions multiply. Flags and options that make
-- another syntax of it are refused, as it is judged by one.
CREATE OR REPLACE FUNCTION public.posthaste_regex_fault(pattern text, flags text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    -- without escaped characters; but what follows a backslash as a digit stays
    bare text := regexp_replace(pattern, E'\\\\[^0-9]', '_', 'g');
    counts numeric;
    groups numeric;
BEGIN
    IF strpos(flags, 'q') > 0 THEN
        RETURN NULL;
    END IF;
    IF strpos(flags, 'x') > 0 OR pattern ~ '^([*][*][*]|[(][?][[:alpha:]])' THEN
        RETURN 'like_regex must not have the flag x, nor begin with options, as in (?x), or with ***';
    END IF;
    IF bare ~ E'\\\\[1-9]' THEN
        RETURN E'like_regex must not contain back-references (such as \\1)';
    END IF;
    IF bare ~ '[(][?](=|!|<)' THEN
        RETURN 'like_regex must not look around, with (?=, (?!, (?<= or (?<!';
    END IF;
    SELECT coalesce(sum(m[3]::numeric) FILTER (WHERE m[1] <> ')'), 0),
        coalesce(exp(sum(ln(greatest(m[3]::numeric, 1))) FILTER (WHERE m[1] = ')')), 1)
    INTO counts, groups
    FROM regexp_matches(bare, '(.)[{]([0-9]+,)?([0-9]+),?[}]', 'g') m;
    IF (char_length(bare) + counts) * groups > 256.5 THEN
        RETURN 'a like_regex is too large: its characters and its counted repetitions must not come to more than '
            '256, multiplied where a group is repeated';
    END IF;
    RETURN NULL;
END
$$;

-- What is wrong with a jsonpath, or NULL; and how many paths it has. Nothing can stop PostgreSQL inside of one
-- evaluation, so the form of a path bounds what it costs: no more than proportional to the event, for each of
-- a few paths. It is judged by the tokens of the path as PostgreSQL prints it, of which each quoted text is one.
CREATE OR REPLACE FUNCTION public.posthaste_path_fault(path text, OUT fault text, OUT paths integer)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
AS $$
#variable_conflict use_variable
DECLARE
    parsed text;
    token text;
    pattern text[];
    -- What each open parenthesis is: e(xists), f(ilter), m(ethod), g(roup).
    open text := '';
    in_subscript boolean := false;
    -- The exists that is open has had its filter.
    filtered boolean := false;
    keyvalues integer := 0;
    -- Of the side of a comparison that is being read: its paths, and whether it calculates.
    side integer := 0;
    calculates boolean := false;
    -- The paths of the side before, when a comparison has been read; NULL, when none has.
    left_side integer;
    tokens integer := 0;
BEGIN
    paths := 0;
    IF char_length(path) > 1024 THEN
        fault := '$jsonpath has more than 1,024 characters';
        RETURN;
    END IF;
    BEGIN
        -- Reading a path makes the automata of its regular expressions, so how large they are is seen before.
        IF path ~* E'like_regex|\\\\[ux]' THEN
            SELECT r.fault INTO fault
            FROM regexp_matches(path, E'"(?:[^"\\\\]|\\\\.)*"', 'g') m,
                LATERAL public.posthaste_regex_fault(m[1]::jsonb #>> '{}', ''::text) AS r (fault)
            WHERE r.fault LIKE 'a like_regex is too large%' LIMIT 1;
            IF fault IS NULL AND strpos(path, '/*') > 0 THEN
                fault := '$jsonpath must not have a comment beside a like_regex';
            END IF;
            IF fault IS NOT NULL THEN
                RETURN;
            END IF;
        END IF;
        parsed := path::jsonpath::text;
    EXCEPTION
        WHEN data_exception OR syntax_error_or_access_rule_violation OR feature_not_supported
            OR program_limit_exceeded THEN
        fault := format('$jsonpath cannot be used: %s', SQLERRM);
        RETURN;
    END;
    IF char_length(parsed) > 4096 THEN
        fault := '$jsonpath has more than 4,096 characters when its numbers are written out';
        RETURN;
    END IF;
    IF regexp_replace(parsed, E'"(?:[^"\\\\]|\\\\.)*"', '""', 'g') ~ '[-+][-+$@(]' THEN
        fault := '$jsonpath must not have a sign before a path';
        RETURN;
    END IF;
    -- The last token ends whatever is open.
    FOR token IN
        SELECT t.m[1] FROM regexp_matches(parsed || ' && ',
            E'([$@.]?"(?:[^"\\\\]|\\\\.)*"|like_regex "(?:[^"\\\\]|\\\\.)*"(?: flag "[a-z]*")?|[$@]|[.][*][*]?'
            '|[.][a-z_]+[(]|exists [(]|[?!]?[(]|[)]|[][]|,|&&|[|][|]|[=!<>]=?=?|starts with| [-+*/%] )',
            'g') AS t (m)
    LOOP
        tokens := tokens + 1;
        IF tokens > 128 THEN
            fault := '$jsonpath has too many parts: names, subscripts, signs and texts are 128 at most';
            EXIT;
        END IF;
        IF token LIKE 'like_regex%' THEN
            pattern := regexp_match(token, E'("(?:[^"\\\\]|\\\\.)*")(?: flag "([a-z]*)")?$');
            fault := public.posthaste_regex_fault(pattern[1]::jsonb #>> '{}', coalesce(pattern[2], ''));
            EXIT WHEN fault IS NOT NULL;
            token := 'like_regex';
        END IF;
        IF token IN ('&&', '||', '?(', 'exists (', '!(', '==', '!=', '<>', '<', '<=', '>', '>=',
            'like_regex', 'starts with') THEN
            fault := CASE
                WHEN calculates AND side > 1 THEN '$jsonpath must not calculate with two paths'
                WHEN calculates AND side > 0 AND strpos(open, 'f') > 0 THEN
                    '$jsonpath must not calculate in a filter'
                WHEN left_side > 0 AND side > 0 THEN
                    '$jsonpath must compare with a literal, not one path with another'
                WHEN coalesce(left_side, 1) + side = 0 OR token IN ('like_regex', 'starts with') AND side = 0 THEN
                    '$jsonpath must compare paths, not one literal with another'
            END;
            EXIT WHEN fault IS NOT NULL;
            -- What follows a like_regex is a part of its token.
            left_side := CASE WHEN token NOT IN ('&&', '||', '?(', 'exists (', '!(', 'like_regex',
                'starts with') THEN side END;
            side := 0;
            calculates := false;
        END IF;
        CASE
            WHEN token IN ('$', '@') THEN
                fault := CASE
                    WHEN in_subscript THEN 'a subscript of $jsonpath must be a number, last, or a range'
                    WHEN token = '$' AND strpos(open, 'f') > 0 THEN
                        'a filter of $jsonpath must look at @ only, not at $'
                END;
                side := side + 1;
                paths := paths + 1;
            WHEN token LIKE '$"%' OR token LIKE '@"%' THEN
                fault := '$jsonpath cannot be used: there are no variables';
            WHEN token = '.**' THEN
                fault := '$jsonpath must not contain .**';
            WHEN token = '[' THEN
                in_subscript := true;
            WHEN token = ']' THEN
                in_subscript := false;
            WHEN token = ',' THEN
                fault := CASE WHEN in_subscript THEN 'a subscript of $jsonpath must not be a list' END;
            WHEN token = 'exists (' THEN
                fault := CASE WHEN strpos(open, 'f') > 0 THEN
                    'a filter of $jsonpath must not contain exists' END;
                open := open || 'e';
                filtered := false;
            WHEN token = '?(' THEN
                fault := CASE
                    WHEN strpos(open, 'f') > 0 THEN 'a filter of $jsonpath must not contain another one'
                    WHEN right(open, 1) <> 'e' THEN
                        '$jsonpath may filter inside of exists only: exists($.list[*] ? (@.x > 1))'
                    WHEN filtered THEN 'an exists of $jsonpath must not have more than one filter'
                END;
                open := open || 'f';
                filtered := true;
            WHEN token LIKE '."%' OR token LIKE '"%' THEN
                NULL;
            WHEN token LIKE '.%(' THEN
                fault := CASE WHEN token NOT IN ('.type(', '.size(', '.double(', '.ceiling(', '.floor(',
                        '.abs(', '.keyvalue(', '.datetime(', '.bigint(', '.boolean(', '.date(', '.integer(',
                        '.number(', '.time(', '.time_tz(', '.timestamp(', '.timestamp_tz(')
                    THEN format('$jsonpath must not contain %s)', token) END;
                keyvalues := keyvalues + (token = '.keyvalue(')::integer;
                open := open || 'm';
            WHEN token IN ('(', '!(') THEN
                open := open || 'g';
            WHEN token = ')' THEN
                open := left(open, -1);
            WHEN token LIKE ' _ ' THEN
                calculates := calculates OR NOT in_subscript;
            ELSE NULL;
        END CASE;
        EXIT WHEN fault IS NOT NULL;
    END LOOP;
    fault := coalesce(fault, CASE
        WHEN paths > 8 THEN format('$jsonpath has %s paths (each $ and @ is one), at most 8 are possible', paths)
        WHEN keyvalues > 1 THEN '$jsonpath must not contain .keyvalue() more than once'
        WHEN NOT public.posthaste_is_predicate(path::jsonpath) THEN
            '$jsonpath must be a predicate, such as $.event_category == "security", not a path'
    END);
END
$$;

-- What is wrong with an event_filter, or NULL; and what it costs: its paths, and the elements of its arrays,
-- each of which is looked for in all arrays of an event.
CREATE OR REPLACE FUNCTION public.posthaste_filter_cost(filter jsonb, OUT fault text, OUT paths integer, OUT elements integer)
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
AS $$
#variable_conflict use_variable
DECLARE
    stray text;
BEGIN
    paths := 0;
    elements := 0;
    IF jsonb_typeof(filter) <> 'object' THEN
        fault := format('it must be a JSON object, not %s', jsonb_typeof(filter));
        RETURN;
    END IF;
    IF public.posthaste_printed(filter, 8192) IS NULL THEN
        fault := 'it has more than 8 KiB';
        RETURN;
    END IF;
    SELECT k.name INTO stray FROM jsonb_object_keys(filter) AS k (name)
    WHERE k.name LIKE '$%' AND k.name <> '$jsonpath' LIMIT 1;
    IF stray IS NOT NULL THEN
        fault := format('the key %s is unknown; of the keys that start with $ there is only $jsonpath', stray);
        RETURN;
    END IF;
    SELECT coalesce(sum(jsonb_array_length(a.found)), 0) INTO elements
    FROM jsonb_path_query(filter - '$jsonpath', 'strict $.** ? (@.type() == "array")') AS a (found);
    IF elements > 16 THEN
        fault := format('its arrays have %s elements in all, at most 16 are possible', elements);
        RETURN;
    END IF;
    IF NOT filter ? '$jsonpath' THEN
        RETURN;
    END IF;
    IF jsonb_typeof(filter -> '$jsonpath') <> 'string' THEN
        fault := '$jsonpath must be a string';
        RETURN;
    END IF;
    SELECT p.fault, p.paths INTO fault, paths FROM public.posthaste_path_fault(filter ->> '$jsonpath') p;
END
$$;

-- The same without what it costs.
CREATE OR REPLACE FUNCTION public.posthaste_filter_fault(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.fault FROM public.posthaste_filter_cost($1) c
$$;

-- What is wrong with event_types, or NULL.
CREATE OR REPLACE FUNCTION public.posthaste_types_fault(types text[]) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN cardinality($1) > 100 THEN format('it has %s entries, at most 100 are possible', cardinality($1))
        WHEN EXISTS (SELECT FROM unnest($1) AS t (entry) WHERE char_length(t.entry) > 255) THEN
            'an entry has more than 255 characters'
    END
$$;

-- Refuses what posthaste_subscriptions would take no notice of.
CREATE OR REPLACE FUNCTION public.posthaste_refuse_bad_filter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    refused text := 'event_filter';
    fault text;
    cost record;
    of_all record;
BEGIN
    IF TG_RELID <> 'public.webhook_destinations'::regclass THEN
        RAISE EXCEPTION 'posthaste_refuse_bad_filter is a trigger of webhook_destinations only'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- A destination whose filter was bad before these triggers came can still be renamed or switched off.
    SELECT c.* INTO cost FROM public.posthaste_filter_cost(NEW.event_filter::jsonb) c;
    IF TG_OP = 'INSERT' OR NEW.event_filter IS DISTINCT FROM OLD.event_filter THEN
        fault := cost.fault;
    END IF;
    IF fault IS NULL AND (TG_OP = 'INSERT' OR NEW.event_types IS DISTINCT FROM OLD.event_types) THEN
        refused := 'event_types';
        fault := public.posthaste_types_fault(NEW.event_types::text[]);
    END IF;
    -- Two transactions at once may each find room for theirs: then posthaste_subscriptions still keeps to it.
    IF fault IS NULL AND NEW.enabled IS NOT FALSE AND coalesce(cost.paths + cost.elements, 0) > 0
        AND (TG_OP = 'INSERT' OR OLD.enabled IS FALSE
        OR NEW.org_id <> OLD.org_id OR NEW.event_filter IS DISTINCT FROM OLD.event_filter) THEN
        refused := 'event_filter';
        SELECT coalesce(sum(c.paths), 0) + cost.paths AS paths,
            coalesce(sum(c.elements), 0) + cost.elements AS elements INTO of_all
        FROM public.webhook_destinations d, LATERAL public.posthaste_filter_cost(d.event_filter::jsonb) c
        WHERE d.org_id = NEW.org_id AND d.enabled IS NOT FALSE AND d.id <> NEW.id AND c.fault IS NULL
            AND d.event_filter @? 'strict $.* ? (@.type() == "array" || @.type() == "object" || @.type() == "string")';
        fault := CASE
            WHEN of_all.paths > 64 THEN format(
                'the enabled destinations of its organization would have %s paths in $jsonpath, at most 64 '
                'are possible', of_all.paths)
            WHEN of_all.elements > 256 THEN format(
                'the filters of the enabled destinations of its organization would have arrays of %s elements '
                'in all, at most 256 are possible', of_all.elements)
        END;
    END IF;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION '% of destination "%" is refused: %', refused, NEW.name, fault
            USING ERRCODE = 'invalid_parameter_value', SCHEMA = TG_TABLE_SCHEMA, TABLE = 'webhook_destinations',
                  COLUMN = refused;
    END IF;
    RETURN NEW;
END
$$;

-- The enabled destinations of some organizations whose filters are usable, each by itself and all together.
-- What is refused where it is written, and stands there all the same (it is older than these triggers, or was
-- written past them), is not.
CREATE OR REPLACE FUNCTION public.posthaste_usable(orgs uuid[]) RETURNS uuid[]
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(j.id), '{}') FROM (
        -- one that costs nothing is not beyond what others use up
        SELECT d.id::uuid AS id, CASE WHEN c.paths > 0 THEN sum(c.paths) OVER before ELSE 0 END AS paths,
            CASE WHEN c.elements > 0 THEN sum(c.elements) OVER before ELSE 0 END AS elements
        FROM public.webhook_destinations d, LATERAL public.posthaste_filter_cost(d.event_filter::jsonb) c
        WHERE d.enabled IS NOT FALSE AND d.org_id = ANY ($1) AND d.event_filter <> '{}' AND c.fault IS NULL
        WINDOW before AS (PARTITION BY d.org_id ORDER BY d.id)
    ) j WHERE j.paths <= 64 AND j.elements <= 256
$$;

-- What the enabled destinations of some organizations want, where their filters are among the `usable` ones.
-- Patterns are LIKE patterns: NULL lets every type through, as does a NULL in the other two.
CREATE OR REPLACE FUNCTION public.posthaste_subscriptions(orgs uuid[], usable uuid[])
RETURNS TABLE (id uuid, org_id uuid, patterns text[], contained jsonb, path text)
LANGUAGE sql STABLE
AS $$
    SELECT d.id::uuid, d.org_id::uuid,
        CASE WHEN cardinality(d.event_types) > 0 THEN
            ARRAY(SELECT replace(replace(replace(
                      CASE WHEN right(t.entry, 1) = '*' THEN left(t.entry, -1) ELSE t.entry END,
                      E'\\', E'\\\\'), '%', E'\\%'), '_', E'\\_')
                      || CASE WHEN right(t.entry, 1) = '*' THEN '%' ELSE '' END
                  FROM unnest(d.event_types) AS t (entry) WHERE char_length(t.entry) <= 255)
        END,
        nullif(d.event_filter - '$jsonpath', '{}'),
        d.event_filter ->> '$jsonpath'
    FROM public.webhook_destinations d
    WHERE d.enabled IS NOT FALSE AND d.org_id = ANY ($1)
        AND (d.event_types IS NULL OR cardinality(d.event_types) <= 100)
        AND (d.event_filter IS NULL OR d.event_filter = '{}' OR d.id = ANY ($2))
$$;

-- Whether a predicate that posthaste_subscriptions lets through holds for an event as it is on the wire in
-- `data`. One that cannot be evaluated does not hold: the receiver's filter must never fail the producer's
-- INSERT.
CREATE OR REPLACE FUNCTION public.posthaste_holds(path text, data jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC'
AS $$
BEGIN
    RETURN coalesce(jsonb_path_match_tz($2, $1::jsonpath, '{}', true), false);
EXCEPTION
    WHEN data_exception OR syntax_error_or_access_rule_violation OR feature_not_supported
        OR program_limit_exceeded THEN
    RETURN false;
END
$$;

-- An event as it is on the wire in `data`; NULL where it cannot be made: it is too large, or nested too deeply.
CREATE OR REPLACE FUNCTION public.posthaste_data(id uuid, org_id uuid, employee_id uuid, session_id uuid, client_name text, client_version text, event_type text, event_category text, content text, payload jsonb, created_at timestamp)
RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN jsonb_build_object('id', $1, 'org_id', $2, 'employee_id', $3, 'session_id', $4, 'client_name', $5,
        'client_version', $6, 'event_type', $7, 'event_category', $8, 'content', $9, 'payload', $10,
        'created_at', CASE
            WHEN extract(year FROM $11) BETWEEN 1 AND 9999 THEN to_char($11, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            -- ISO 8601 has a year 0, which is 1 BC, and a sign where a year has not four digits
            WHEN isfinite($11) THEN CASE
                WHEN extract(year FROM $11) > 0 THEN '+' || extract(year FROM $11)::text
                WHEN extract(year FROM $11) = -1 THEN '0000'
                ELSE '-' || lpad((-1 - extract(year FROM $11))::text, 4, '0')
            END || to_char($11, '-MM-DD"T"HH24:MI:SS.US"Z"')
            ELSE $11::text END);
EXCEPTION
    WHEN data_exception OR program_limit_exceeded OR out_of_memory THEN
    RETURN NULL;
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
#variable_conflict use_variable
DECLARE
    orgs uuid[];
    destinations bigint;
    filters boolean;
    paths boolean;
    usable uuid[] := '{}';
    held_ordinals bigint[];
    held_destinations uuid[];
    base timestamp;
    may_be_gone boolean;
    woken uuid[];
BEGIN
    IF TG_RELID <> 'public.activity_logs'::regclass THEN
        RAISE EXCEPTION 'posthaste_fan_out is a trigger of activity_logs only'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    orgs := ARRAY(SELECT DISTINCT n.org_id::uuid FROM posthaste_new n);
    -- For the policies that forced row-level security needs. Not a SET above, which only a superuser may
    -- write there.
    PERFORM set_config('posthaste.fan_out', 'on', true);

    SELECT count(*), bool_or(d.event_filter <> '{}'), bool_or(d.event_filter ? '$jsonpath')
    INTO destinations, filters, paths
    FROM public.webhook_destinations d WHERE d.enabled IS NOT FALSE AND d.org_id = ANY (orgs);
    IF destinations = 0 THEN
        PERFORM set_config('posthaste.fan_out', 'off', true);
        RETURN NULL;
    END IF;
    IF filters THEN
        usable := public.posthaste_usable(orgs);
    END IF;

    -- The order within the statement is kept in microseconds that end now. Writing n rows took longer than n
    -- of them, so they also lie after everything that an earlier statement queued, and never in the future.
    base := timezone('UTC', clock_timestamp())
        - (SELECT count(*) FROM posthaste_new) * interval '1 microsecond';

    -- Predicates need the event as a document, which is dear: once each, where one is to be evaluated.
    IF paths THEN
        WITH subscription AS MATERIALIZED (
            SELECT s.* FROM public.posthaste_subscriptions(orgs, usable) s
        ), pair AS MATERIALIZED (
            SELECT e.ordinal, s.id, s.path
            FROM (SELECT n.org_id, n.event_type, n.payload, row_number() OVER () AS ordinal
                  FROM posthaste_new n) e
            JOIN subscription s ON s.org_id = e.org_id
            WHERE s.path IS NOT NULL
                AND (s.patterns IS NULL OR e.event_type::text COLLATE "C" LIKE ANY (s.patterns))
                AND (s.contained IS NULL OR e.payload::jsonb @> s.contained)
        ), document AS MATERIALIZED (
            SELECT e.ordinal, public.posthaste_data(e.id::uuid, e.org_id::uuid, e.employee_id::uuid,
                e.session_id::uuid, e.client_name::text, e.client_version::text, e.event_type::text,
                e.event_category::text, e.content::text, e.payload::jsonb,
                -- as it will be on the wire: that of the delivery where the event has none
                coalesce(e.created_at::timestamp, base + e.ordinal * interval '1 microsecond')) AS data
            FROM (
                SELECT row_number() OVER () AS ordinal, n.id, n.org_id, n.event_type, o.*
                -- a column that the table lacks is found in `lacking`, and null
                FROM (SELECT NULL::uuid AS employee_id, NULL::uuid AS session_id, NULL::text AS client_name,
                          NULL::text AS client_version, NULL::text AS event_category, NULL::text AS content,
                          NULL::jsonb AS payload, NULL::timestamp AS created_at) lacking
                CROSS JOIN posthaste_new n
                CROSS JOIN LATERAL (
                    SELECT employee_id, session_id, client_name, client_version, event_category, content,
                        payload, created_at
                    FROM (SELECT n.*) own
                ) o
            ) e
            WHERE e.ordinal IN (SELECT p.ordinal FROM pair p)
        )
        SELECT array_agg(p.ordinal), array_agg(p.id) INTO held_ordinals, held_destinations
        FROM pair p JOIN document d ON d.ordinal = p.ordinal
        WHERE public.posthaste_holds(p.path, d.data);
    END IF;

    -- Another trigger may have deleted a row again. Looking for each of ten thousand rows would cost a tenth of
    -- all, so it is done only where there is one; those of partitions belong to the partitions. Where a policy
    -- could hide rows, nobody can look, and the foreign key decides.
    may_be_gone := NOT row_security_active(TG_RELID) AND (
        (SELECT c.relhassubclass FROM pg_class c WHERE c.oid = TG_RELID)
        OR EXISTS (SELECT FROM pg_trigger t
                   WHERE t.tgrelid = TG_RELID AND NOT t.tgisinternal AND t.tgname <> TG_NAME
                       AND t.tgtype & 4 <> 0));  -- on INSERT

    -- Materialized, or the patterns would be worked out anew for every event.
    WITH subscription AS MATERIALIZED (
        SELECT s.* FROM public.posthaste_subscriptions(orgs, usable) s
    ), matched AS MATERIALIZED (
        SELECT s.id AS destination_id, e.id AS log_id, e.ordinal
        FROM (SELECT n.id, n.org_id, n.event_type, n.payload, row_number() OVER () AS ordinal
              FROM posthaste_new n) e
        JOIN subscription s ON s.org_id = e.org_id
        WHERE (s.patterns IS NULL OR e.event_type::text COLLATE "C" LIKE ANY (s.patterns))
            AND (s.contained IS NULL OR e.payload::jsonb @> s.contained)
            AND (s.path IS NULL OR (e.ordinal, s.id) IN (
                SELECT h.ordinal, h.id FROM unnest(held_ordinals, held_destinations) AS h (ordinal, id)))
    ), locked AS MATERIALIZED (
        -- The lock that the foreign key takes anyway, but taken here a destination that is being deleted
        -- drops out instead of failing the producer.
        SELECT d.id FROM public.webhook_destinations d
        WHERE d.id = ANY (ARRAY(SELECT DISTINCT m.destination_id FROM matched m)) AND d.enabled IS NOT FALSE
        ORDER BY d.id
        FOR KEY SHARE
    ), queued AS (
        INSERT INTO public.webhook_deliveries AS w
            (id, destination_id, log_id, status, attempts, next_retry_at, created_at)
        SELECT gen_random_uuid(), m.destination_id, m.log_id, 'pending', 0,
            -- Due now, and each at a time of its own: a claim begins where the last one ended.
            base + m.ordinal * interval '1 microsecond', base + m.ordinal * interval '1 microsecond'
        FROM matched m JOIN locked l ON l.id = m.destination_id
        WHERE NOT may_be_gone OR m.log_id IN (
            SELECT a.id FROM public.activity_logs a WHERE a.id = ANY (ARRAY(SELECT g.log_id FROM matched g)))
        ON CONFLICT (destination_id, log_id) DO NOTHING
        RETURNING w.destination_id
    )
    SELECT array_agg(q.destination_id) INTO woken FROM (SELECT DISTINCT r.destination_id FROM queued r) q;

    -- Any login may fill the queue of notifications, and a commit that finds it full fails. Polling finds what
    -- is not told.
    IF woken IS NOT NULL AND TG_ARGV[0] = 'notify' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('posthaste_wake',
            CASE WHEN cardinality(woken) <= 100 THEN array_to_string(woken, ',') ELSE '*' END);
    END IF;
    PERFORM set_config('posthaste.fan_out', 'off', true);
    RETURN NULL;
END
$$;

-- Enabling a destination is a fresh start; deleting it leaves nothing behind. Whoever disables it, the time is
-- known.
CREATE OR REPLACE FUNCTION public.posthaste_forget_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment timestamp := timezone('UTC', clock_timestamp());
BEGIN
    IF TG_RELID <> 'public.webhook_destinations'::regclass THEN
        RAISE EXCEPTION 'posthaste_forget_state is a trigger of webhook_destinations only'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.enabled IS FALSE THEN
        INSERT INTO public.posthaste_destination_state AS s (destination_id, disabled_at) VALUES (OLD.id, moment)
        ON CONFLICT (destination_id) DO UPDATE SET disabled_at = coalesce(s.disabled_at, excluded.disabled_at);
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO public.posthaste_disabled_periods AS p (destination_id, disabled_at, enabled_at)
        VALUES (OLD.id, (SELECT s.disabled_at FROM public.posthaste_destination_state s
            WHERE s.destination_id = OLD.id), moment)
        ON CONFLICT (destination_id) DO UPDATE SET disabled_at = excluded.disabled_at,
            enabled_at = excluded.enabled_at;
    END IF;
    DELETE FROM public.posthaste_destination_state s WHERE s.destination_id = OLD.id;
    RETURN NULL;
END
$$;

-- Tells the dispatcher. Notifying needs no rights, so these two have none but the caller's.
CREATE OR REPLACE FUNCTION public.posthaste_destinations_changed() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- by name: looking the table up would need USAGE on its schema
    IF TG_TABLE_SCHEMA <> 'public' OR TG_TABLE_NAME <> 'webhook_destinations' THEN
        RAISE EXCEPTION 'posthaste_destinations_changed is a trigger of webhook_destinations only'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- A commit that finds the queue of notifications full fails.
    PERFORM pg_notify('posthaste_config', t.id)
    FROM (SELECT CASE WHEN count(*) OVER () <= 100 THEN c.id::text ELSE '*' END AS id
          FROM posthaste_changed c) t
    WHERE pg_notification_queue_usage() < 0.5
    GROUP BY t.id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.posthaste_settings_changed() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- by name: looking the table up would need USAGE on its schema
    IF TG_TABLE_SCHEMA <> 'public' OR TG_TABLE_NAME <> 'posthaste_destination_settings' THEN
        RAISE EXCEPTION 'posthaste_settings_changed is a trigger of posthaste_destination_settings only'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- A commit that finds the queue of notifications full fails.
    PERFORM pg_notify('posthaste_config', t.id)
    FROM (SELECT CASE WHEN count(*) OVER () <= 100 THEN c.destination_id::text ELSE '*' END AS id
          FROM posthaste_changed c) t
    WHERE pg_notification_queue_usage() < 0.5
    GROUP BY t.id;
    RETURN NULL;
END
$$;

CREATE TRIGGER posthaste_refuse_bad_filter BEFORE INSERT OR UPDATE OF org_id, event_types, event_filter, enabled ON public.webhook_destinations FOR EACH ROW EXECUTE FUNCTION public.posthaste_refuse_bad_filter();
CREATE TRIGGER posthaste_enabled AFTER UPDATE ON public.webhook_destinations FOR EACH ROW WHEN (((new.enabled IS FALSE) IS DISTINCT FROM (old.enabled IS FALSE))) EXECUTE FUNCTION public.posthaste_forget_state();
CREATE TRIGGER posthaste_deleted AFTER DELETE ON public.webhook_destinations FOR EACH ROW EXECUTE FUNCTION public.posthaste_forget_state();

-- These six only with notifications.
CREATE TRIGGER posthaste_inserted_notify AFTER INSERT ON public.webhook_destinations REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_destinations_changed();
CREATE TRIGGER posthaste_updated_notify AFTER UPDATE ON public.webhook_destinations REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_destinations_changed();
CREATE TRIGGER posthaste_deleted_notify AFTER DELETE ON public.webhook_destinations REFERENCING OLD TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_destinations_changed();
CREATE TRIGGER posthaste_inserted_notify AFTER INSERT ON public.posthaste_destination_settings REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_settings_changed();
CREATE TRIGGER posthaste_updated_notify AFTER UPDATE ON public.posthaste_destination_settings REFERENCING NEW TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_settings_changed();
CREATE TRIGGER posthaste_deleted_notify AFTER DELETE ON public.posthaste_destination_settings REFERENCING OLD TABLE AS posthaste_changed FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_settings_changed();

-- Last, because from here on deliveries are created. The argument is 'quiet' without notifications.
CREATE TRIGGER posthaste_fan_out AFTER INSERT ON public.activity_logs REFERENCING NEW TABLE AS posthaste_new FOR EACH STATEMENT EXECUTE FUNCTION public.posthaste_fan_out('notify');
