-- What managing destinations and keys needs on top of grants.sql: the HTTP API beyond reading and jobs, and
-- `posthaste destinations` and `posthaste keys`. Run it after grants.sql, likewise:
--
--   psql -v role=posthaste -f grants-management.sql "$DATABASE_URL"
--
-- Without it everything is delivered all the same, and whoever tries to change a destination is told that it is not
-- allowed.

-- A statement that fails ends the script, so that half of the rights do not look like all of them.
\set ON_ERROR_STOP on

-- Everything of a destination that people set.
GRANT INSERT ON public.webhook_destinations TO :"role";
GRANT UPDATE (name, url, auth_type, auth_config, event_types, event_filter, enabled, batch_size, timeout_ms, retry_max,
    retry_backoff_ms, signing_secret, updated_at) ON public.webhook_destinations TO :"role";
GRANT DELETE ON public.webhook_destinations TO :"role";
GRANT INSERT, UPDATE ON public.posthaste_destination_settings TO :"role";

-- Its deliveries go with it.
GRANT DELETE ON public.webhook_deliveries TO :"role";

-- Keys of the API.
GRANT INSERT ON public.posthaste_api_keys TO :"role";
GRANT UPDATE (revoked_at) ON public.posthaste_api_keys TO :"role";
