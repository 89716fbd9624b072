-- What cannot be done for a lasting reason: a row that cannot be read, a result that cannot be written.

-- Written by the dispatcher when something fails, and removed when it works again. `check` shows it. No foreign
-- keys: telling a fault must not fail because of what it is about.
CREATE TABLE public.posthaste_faults (
    kind text NOT NULL,
    destination_id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    message text NOT NULL,
    since timestamp without time zone NOT NULL,
    last_seen_at timestamp without time zone NOT NULL,
    tries integer NOT NULL
);
-- A fault of a destination has its id in both columns.
ALTER TABLE public.posthaste_faults ADD CONSTRAINT posthaste_faults_pkey PRIMARY KEY (kind, destination_id, delivery_id);
ALTER TABLE public.posthaste_faults ADD CONSTRAINT posthaste_faults_kind_check CHECK (kind IN ('claim', 'result', 'state', 'disable', 'load'));
