-- Retention: which part of its history a destination has lost, and the indexes by which old rows are found.

-- Deliveries that were created before may have been deleted; a backfill of events from before would send them
-- again. Written by the statement that deletes.
CREATE TABLE public.posthaste_retention (
    destination_id uuid NOT NULL,
    pruned_until timestamp without time zone NOT NULL
);
ALTER TABLE public.posthaste_retention ADD CONSTRAINT posthaste_retention_pkey PRIMARY KEY (destination_id);
ALTER TABLE public.posthaste_retention ADD CONSTRAINT posthaste_retention_destination_id_fkey FOREIGN KEY (destination_id) REFERENCES public.webhook_destinations(id) ON DELETE CASCADE;

-- New entries go to the right end, old ones leave from the left one: neither costs much. A claim writes none
-- of these columns, so it stays free of index entries (HOT); last_attempt_at must never stand here.
CREATE INDEX posthaste_deliveries_delivered ON public.webhook_deliveries USING btree (delivered_at) WHERE (status = 'delivered');
CREATE INDEX posthaste_deliveries_dead ON public.webhook_deliveries USING btree (created_at) WHERE (status = 'dead');
CREATE INDEX posthaste_attempts_started ON public.posthaste_attempts USING btree (started_at);
CREATE INDEX posthaste_jobs_ended ON public.posthaste_jobs USING btree (updated_at) WHERE (state <> 'running'::text);
