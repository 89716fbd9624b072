-- The least that `posthaste serve` needs. Run it as the owner of the tables, after `posthaste migrate`.
-- The role comes first; a superuser, or a role with CREATEROLE, creates it:
--
--   CREATE ROLE posthaste LOGIN PASSWORD '…';
--
--   psql -v role=posthaste -f grants.sql "$DATABASE_URL"
--
-- The role needs no further right: no superuser, no CREATE, no BYPASSRLS (where row-level security is enabled,
-- `posthaste check` prints the policies that it needs).

-- A statement that fails ends the script, so that half of the rights do not look like all of them.
\set ON_ERROR_STOP on

GRANT USAGE ON SCHEMA public TO :"role";

-- Claims and results, replays and backfills. The rest of a delivery is never written.
GRANT SELECT, INSERT ON public.webhook_deliveries TO :"role";
GRANT UPDATE (status, attempts, last_attempt_at, next_retry_at, response_status, response_body, error_message,
    created_at, delivered_at) ON public.webhook_deliveries TO :"role";

-- Where to send. `enabled` is written when a receiver says 410 or has failed for days; the same right lets an ordered
-- claim lock its destination.
GRANT SELECT ON public.webhook_destinations TO :"role";
GRANT UPDATE (enabled, updated_at) ON public.webhook_destinations TO :"role";
GRANT SELECT ON public.posthaste_destination_settings TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON public.posthaste_destination_state TO :"role";

-- What cannot be done for a lasting reason, for `posthaste check`.
GRANT SELECT, INSERT, UPDATE, DELETE ON public.posthaste_faults TO :"role";

-- What to send. INSERT only for --operational-events and for events that are posted to the API.
GRANT SELECT, INSERT ON public.activity_logs TO :"role";

-- Failed attempts, bounded per delivery.
GRANT SELECT, INSERT ON public.posthaste_attempts TO :"role";

-- Retention: only settled deliveries, attempts and jobs that have ended are deleted, never events. Without these
-- rights nothing is, and `posthaste check` warns; they are not needed with all --retention options at 0.
GRANT DELETE ON public.webhook_deliveries, public.posthaste_attempts, public.posthaste_jobs TO :"role";
GRANT SELECT, INSERT, UPDATE ON public.posthaste_retention TO :"role";

-- Why an event has no delivery.
GRANT SELECT ON public.posthaste_disabled_periods TO :"role";

-- Whether everything has been migrated.
GRANT SELECT ON public.posthaste_migrations, public.posthaste_options TO :"role";

-- Replays and backfills, and what of the past they must not send again.
GRANT SELECT, INSERT, UPDATE ON public.posthaste_jobs TO :"role";
GRANT SELECT ON public.posthaste_retention TO :"role";

-- The organization of a request to the API, and whose request it is. Creating and revoking keys needs
-- grants-management.sql.
GRANT SELECT (id) ON public.organizations TO :"role";
-- Whether the employee of an event that is posted is the organization's own. Leave it out where employees has no org_id.
GRANT SELECT (id, org_id) ON public.employees TO :"role";
GRANT SELECT ON public.posthaste_api_keys TO :"role";
GRANT UPDATE (last_used_at) ON public.posthaste_api_keys TO :"role";

-- Functions belong to nobody but their owner. These read and judge, with the rights of whoever calls them: what a filter
-- wants, and what an event looks like when it is printed. The trigger functions are not among them.
GRANT EXECUTE ON FUNCTION public.posthaste_is_predicate(jsonpath), public.posthaste_regex_fault(text, text),
    public.posthaste_path_fault(text), public.posthaste_filter_cost(jsonb), public.posthaste_filter_fault(jsonb),
    public.posthaste_types_fault(text[]), public.posthaste_usable(uuid[]),
    public.posthaste_subscriptions(uuid[], uuid[]), public.posthaste_holds(text, jsonb),
    public.posthaste_data(uuid, uuid, uuid, uuid, text, text, text, text, text, jsonb, timestamp),
    public.posthaste_backfill(uuid, timestamp, timestamp, uuid, integer, integer, interval),
    public.posthaste_printed(jsonb, integer),
    public.posthaste_print(uuid[], bigint[], bigint[], integer, bigint)
    TO :"role";
