-- The least that an application needs that writes events and manages the destinations of its tenants. Run it as the
-- owner of the tables, after `posthaste migrate`:
--
-- As for any role, a superuser creates it first: CREATE ROLE application LOGIN PASSWORD '…';
--
--   psql -v role=application -f grants-application.sql "$DATABASE_URL"
--
-- An application that owns the tables has these rights already.

-- A statement that fails ends the script, so that half of the rights do not look like all of them.
\set ON_ERROR_STOP on

GRANT USAGE ON SCHEMA public TO :"role";

-- Events. The trigger that creates their deliveries has rights of its own; SELECT is for INSERT … RETURNING.
GRANT SELECT, INSERT ON public.activity_logs TO :"role";

-- Destinations and their settings. Deleting one deletes its deliveries with it.
GRANT SELECT, INSERT, UPDATE, DELETE ON public.webhook_destinations TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON public.posthaste_destination_settings TO :"role";

-- What became of the events, to be shown to tenants.
GRANT SELECT ON public.webhook_deliveries, public.posthaste_attempts, public.posthaste_destination_state TO :"role";
