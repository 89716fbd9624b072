-- A bridge: an application whose events are in a table of its own, under ids of its own, hands them to Posthaste.
--
-- Run it as the owner of the tables, after `posthaste migrate`. Change what is marked: here the application has
--
--   tenants (id bigint, name text)
--   audit_events (id bigint, tenant_id bigint, kind text, details jsonb, happened_at timestamptz)
--
-- Committed is handed over, rolled back is not: all of it happens in the transaction that writes the event.

\set ON_ERROR_STOP on

BEGIN;

-- Posthaste's ids are uuids. Those of tenants are kept; that of an event is made of the application's own, so that
-- a row that is handed over twice (a second trigger, a repeated import) is one event. Change the name: with another
-- one, other ids come out.
CREATE FUNCTION public.bridge_uuid(kind text, id bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT md5('my-application ' || kind || ' ' || id)::uuid $$;

-- Every tenant is an organization. (CHANGE: tenants, name)
INSERT INTO public.organizations (id, name)
SELECT public.bridge_uuid('tenant', t.id), left(t.name, 255) FROM public.tenants t
ON CONFLICT (id) DO NOTHING;

-- One statement for all rows that an INSERT writes. It runs with its owner's rights: whoever writes the
-- application's events needs none on Posthaste's tables.
CREATE FUNCTION public.bridge_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A door into the owner's rights: nobody may attach it to a table of their own. (CHANGE: audit_events)
    IF TG_RELID <> 'public.audit_events'::regclass THEN
        RAISE EXCEPTION 'bridge_events is a trigger of audit_events only' USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Tenants that are newer than this bridge.
    INSERT INTO public.organizations (id, name)
    SELECT public.bridge_uuid('tenant', t.id), left(t.name, 255)
    FROM public.tenants t WHERE t.id IN (SELECT n.tenant_id FROM bridge_new n)
    ON CONFLICT (id) DO NOTHING;
    INSERT INTO public.activity_logs (id, org_id, event_type, event_category, payload, created_at)
    SELECT public.bridge_uuid('event', n.id), public.bridge_uuid('tenant', n.tenant_id),
        -- CHANGE: what the application calls its events, at most 100 characters
        left(n.kind, 100), 'application',
        -- The application's own ids travel in the payload: as text, which every receiver reads without loss.
        coalesce(n.details, '{}') || jsonb_build_object('id', n.id::text, 'tenant_id', n.tenant_id::text),
        timezone('UTC', n.happened_at)
    FROM bridge_new n
    ORDER BY n.id
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END
$$;

REVOKE EXECUTE ON FUNCTION public.bridge_events(), public.bridge_uuid(text, bigint) FROM PUBLIC;

CREATE TRIGGER bridge_events AFTER INSERT ON public.audit_events
    REFERENCING NEW TABLE AS bridge_new FOR EACH STATEMENT EXECUTE FUNCTION public.bridge_events();

COMMIT;

-- What is there already is handed over once, if it is wanted: every destination gets what it wants of it.
--
--   INSERT INTO public.activity_logs (…) SELECT … FROM public.audit_events n ORDER BY n.id ON CONFLICT (id) DO NOTHING;
