-- Sizes of events as they are printed; and the end of a function that read rows of any type.

-- The text of a JSON value, or NULL where it has more than `most` bytes, or is nested too deeply to find out.
-- What is stored says little about that: a number of 12 bytes may have 147,455 digits. All else prints no more
-- than six bytes for each that is stored. So nothing is printed at once that could have more than 6 MiB: not
-- what stores more than 512 bytes, or, if there is no large number in it, more than 4 KiB (a number may still
-- have 16,383 zeros behind the point).
CREATE OR REPLACE FUNCTION public.posthaste_printed(payload jsonb, most integer) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    plain jsonb;
    numbers jsonb;
    printed text;
    bytes bigint := 0;
BEGIN
    IF pg_column_size(payload) <= 4096 THEN
        plain := payload #> '{}';  -- not compressed any more
        IF pg_column_size(plain) <= 512 OR pg_column_size(plain) <= 4096
            AND NOT jsonb_path_exists(plain, 'strict $.** ? (@ >= 1e1000 || @ <= -1e1000)') THEN
            printed := plain::text;
            RETURN CASE WHEN octet_length(printed) <= most THEN printed END;
        END IF;
    END IF;
    -- Only here, as a block that catches errors is a transaction of its own.
    BEGIN
        -- What is printed has at least a quarter of the bytes that are stored.
        IF pg_column_size(payload) / 4 - 1024 > most THEN
            RETURN NULL;
        END IF;
        plain := payload #> '{}';
        IF pg_column_size(plain) / 4 - 1024 > most THEN
            RETURN NULL;
        END IF;
        -- The numbers are measured first, a few at a time.
        numbers := jsonb_path_query_array(plain, 'strict $.** ? (@.type() == "number")');
        FOR i IN 0 .. jsonb_array_length(numbers) - 1 BY 8 LOOP
            bytes := bytes + octet_length(jsonb_path_query_array(numbers, '$[$first to $last]',
                jsonb_build_object('first', i, 'last', i + 7))::text);
            IF bytes > most::bigint + 1024 THEN
                RETURN NULL;
            END IF;
        END LOOP;
        printed := plain::text;
    EXCEPTION
        WHEN data_exception OR program_limit_exceeded OR out_of_memory THEN
        RETURN NULL;
    END;
    RETURN CASE WHEN octet_length(printed) <= most THEN printed END;
END
$$;

-- What a claim reads of its events: the text of each payload, in order. Empty: it has more than `most` bytes.
-- NULL: there was no room any more, neither in `room` nor in what the one who asks (`turns`) may have
-- (`limits`). Payloads are read one by one, so that none is held that nobody will print.
CREATE OR REPLACE FUNCTION public.posthaste_print(events uuid[], turns bigint[], limits bigint[], most integer, room bigint)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    texts text[] := '{}';
    printed text;
    held bigint := 0;
    held_by bigint[] := array_fill(0::bigint, ARRAY[(SELECT max(t) FROM unnest(turns) AS u (t))::integer]);
BEGIN
    FOR i IN 1 .. cardinality(events) LOOP
        IF held >= room OR held_by[turns[i]] >= limits[i] THEN
            held_by[turns[i]] := limits[i];
            texts := array_append(texts, NULL);
            CONTINUE;
        END IF;
        SELECT public.posthaste_printed(coalesce(o.payload::jsonb, 'null'), most) INTO printed
        -- a column that the table lacks is found in `lacking`, and null
        FROM (SELECT NULL::jsonb AS payload) lacking CROSS JOIN public.activity_logs l
        CROSS JOIN LATERAL (SELECT payload FROM (SELECT l.*) own) o
        WHERE l.id = events[i];
        IF printed IS NULL THEN
            -- Finding that out takes time in which nobody else is served: once in a claim.
            held := held + greatest(most, room);
            printed := '';
        END IF;
        held := held + octet_length(printed);
        held_by[turns[i]] := held_by[turns[i]] + octet_length(printed);
        texts := array_append(texts, printed);
    END LOOP;
    RETURN texts;
END
$$;

DROP FUNCTION public.posthaste_holds(text, record);
DROP FUNCTION public.posthaste_subscriptions(uuid[]);
