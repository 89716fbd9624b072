-- The tables that an application usually owns already. On an empty database they are created as written here;
-- on an application's database only what is missing is added (src/store/migrate says how).
--
-- Form, on which the migrator relies: one column a line, constraints and indexes apart from their table, and
-- everything spelled the way PostgreSQL prints it, because that is how it is compared with what is there. The
-- exception is IN: what PostgreSQL prints for it over varchar is something else when it is read again.

CREATE TABLE public.organizations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(255) NOT NULL,
    slug character varying(100),
    created_at timestamp without time zone DEFAULT now() NOT NULL,
    updated_at timestamp without time zone DEFAULT now() NOT NULL
);
ALTER TABLE public.organizations ADD CONSTRAINT organizations_pkey PRIMARY KEY (id);
ALTER TABLE public.organizations ADD CONSTRAINT organizations_slug_key UNIQUE (slug);

CREATE TABLE public.employees (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    org_id uuid NOT NULL,
    email character varying(255),
    full_name character varying(255),
    created_at timestamp without time zone DEFAULT now() NOT NULL,
    updated_at timestamp without time zone DEFAULT now() NOT NULL
);
ALTER TABLE public.employees ADD CONSTRAINT employees_pkey PRIMARY KEY (id);
ALTER TABLE public.employees ADD CONSTRAINT employees_org_id_fkey FOREIGN KEY (org_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

CREATE TABLE public.activity_logs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    org_id uuid NOT NULL,
    employee_id uuid,
    session_id uuid,
    client_name character varying(100),
    client_version character varying(50),
    event_type character varying(100) NOT NULL,
    event_category character varying(50) NOT NULL,
    content text,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp without time zone DEFAULT now() NOT NULL
);
ALTER TABLE public.activity_logs ADD CONSTRAINT activity_logs_pkey PRIMARY KEY (id);
ALTER TABLE public.activity_logs ADD CONSTRAINT activity_logs_org_id_fkey FOREIGN KEY (org_id) REFERENCES public.organizations(id) ON DELETE CASCADE;
ALTER TABLE public.activity_logs ADD CONSTRAINT activity_logs_employee_id_fkey FOREIGN KEY (employee_id) REFERENCES public.employees(id) ON DELETE SET NULL;
CREATE INDEX idx_activity_logs_org_id ON public.activity_logs USING btree (org_id);
CREATE INDEX idx_activity_logs_employee_id ON public.activity_logs USING btree (employee_id);
CREATE INDEX idx_activity_logs_session_id ON public.activity_logs USING btree (session_id) WHERE (session_id IS NOT NULL);
CREATE INDEX idx_activity_logs_client ON public.activity_logs USING btree (client_name);
CREATE INDEX idx_activity_logs_client_version ON public.activity_logs USING btree (client_name, client_version);
CREATE INDEX idx_activity_logs_event_type ON public.activity_logs USING btree (event_type);
CREATE INDEX idx_activity_logs_created_at ON public.activity_logs USING btree (created_at DESC);
CREATE INDEX idx_activity_logs_session_created ON public.activity_logs USING btree (session_id, created_at) WHERE (session_id IS NOT NULL);

CREATE TABLE public.webhook_destinations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    org_id uuid NOT NULL,
    name character varying(100) NOT NULL,
    url text NOT NULL,
    auth_type character varying(50) DEFAULT 'none'::character varying NOT NULL,
    auth_config jsonb DEFAULT '{}'::jsonb,
    event_types text[] DEFAULT '{}'::text[],
    event_filter jsonb DEFAULT '{}'::jsonb,
    enabled boolean DEFAULT true NOT NULL,
    batch_size integer DEFAULT 1 NOT NULL,
    timeout_ms integer DEFAULT 5000 NOT NULL,
    retry_max integer DEFAULT 3 NOT NULL,
    retry_backoff_ms integer DEFAULT 1000 NOT NULL,
    signing_secret character varying(255),
    created_by uuid,
    created_at timestamp without time zone DEFAULT now() NOT NULL,
    updated_at timestamp without time zone DEFAULT now() NOT NULL
);
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_pkey PRIMARY KEY (id);
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_org_id_name_key UNIQUE (org_id, name);
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_org_id_fkey FOREIGN KEY (org_id) REFERENCES public.organizations(id) ON DELETE CASCADE;
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.employees(id) ON DELETE SET NULL;
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_auth_type_check CHECK ((auth_type IN ('none', 'bearer', 'header', 'basic', 'oauth2')));
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_batch_size_check CHECK (((batch_size >= 1) AND (batch_size <= 100)));
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_timeout_ms_check CHECK (((timeout_ms >= 1000) AND (timeout_ms <= 30000)));
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_retry_max_check CHECK (((retry_max >= 0) AND (retry_max <= 10)));
ALTER TABLE public.webhook_destinations ADD CONSTRAINT webhook_destinations_retry_backoff_ms_check CHECK ((retry_backoff_ms >= 100));
CREATE INDEX idx_webhook_destinations_org_id ON public.webhook_destinations USING btree (org_id);
CREATE INDEX idx_webhook_destinations_enabled ON public.webhook_destinations USING btree (org_id, enabled) WHERE (enabled = true);

-- Claims write one unindexed column: with room on the page that is a HOT update, which costs a third. There is
-- room for a second version of each row, as a whole page is often claimed at once, and for a third one of most
-- of them, its result: while somebody's transaction is open, nothing of it can be removed.
CREATE TABLE public.webhook_deliveries (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    destination_id uuid NOT NULL,
    log_id uuid NOT NULL,
    status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    last_attempt_at timestamp without time zone,
    next_retry_at timestamp without time zone,
    response_status integer,
    response_body text,
    error_message text,
    created_at timestamp without time zone DEFAULT now() NOT NULL,
    delivered_at timestamp without time zone
) WITH (fillfactor = 38);
ALTER TABLE public.webhook_deliveries ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id);
ALTER TABLE public.webhook_deliveries ADD CONSTRAINT webhook_deliveries_destination_id_log_id_key UNIQUE (destination_id, log_id);
ALTER TABLE public.webhook_deliveries ADD CONSTRAINT webhook_deliveries_destination_id_fkey FOREIGN KEY (destination_id) REFERENCES public.webhook_destinations(id) ON DELETE CASCADE;
ALTER TABLE public.webhook_deliveries ADD CONSTRAINT webhook_deliveries_log_id_fkey FOREIGN KEY (log_id) REFERENCES public.activity_logs(id) ON DELETE CASCADE;
ALTER TABLE public.webhook_deliveries ADD CONSTRAINT webhook_deliveries_status_check CHECK ((status IN ('pending', 'delivered', 'failed', 'dead')));
CREATE INDEX idx_webhook_deliveries_pending ON public.webhook_deliveries USING btree (status, next_retry_at) WHERE (status IN ('pending', 'failed'));
CREATE INDEX idx_webhook_deliveries_destination ON public.webhook_deliveries USING btree (destination_id);
CREATE INDEX idx_webhook_deliveries_log ON public.webhook_deliveries USING btree (log_id);
