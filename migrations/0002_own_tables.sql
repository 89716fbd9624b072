-- Posthaste's own tables, and its own indexes on webhook_deliveries.

-- Which of these files have been applied; `serve` refuses to start before all of them are.
CREATE TABLE public.posthaste_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp without time zone DEFAULT timezone('UTC'::text, now()) NOT NULL
);
ALTER TABLE public.posthaste_migrations ADD CONSTRAINT posthaste_migrations_pkey PRIMARY KEY (version);

-- What `migrate` was told once and keeps to: fan_out, notify.
CREATE TABLE public.posthaste_options (
    name text NOT NULL,
    value boolean NOT NULL
);
ALTER TABLE public.posthaste_options ADD CONSTRAINT posthaste_options_pkey PRIMARY KEY (name);
ALTER TABLE public.posthaste_options ADD CONSTRAINT posthaste_options_name_check CHECK ((name = ANY (ARRAY['fan_out'::text, 'notify'::text])));

-- At most one row per destination; a missing row means these defaults. Written by people, by SQL or by the
-- API.
CREATE TABLE public.posthaste_destination_settings (
    destination_id uuid NOT NULL,
    payload_format text DEFAULT 'standard'::text NOT NULL,
    format_options jsonb DEFAULT '{}'::jsonb NOT NULL,
    rate_limit_per_second double precision,
    rate_limit_burst integer,
    max_in_flight integer,
    ordered boolean DEFAULT false NOT NULL,
    batch_wait_ms integer DEFAULT 0 NOT NULL,
    batch_max_events integer,
    batch_max_bytes integer,
    max_age_seconds integer,
    extra_headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    signature_scheme text DEFAULT 'standard'::text NOT NULL,
    signature_header text,
    previous_signing_secret character varying(255),
    previous_secret_expires_at timestamp without time zone,
    gzip boolean DEFAULT false NOT NULL,
    tls_client_cert text,
    tls_client_key text,
    tls_ca text
);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_pkey PRIMARY KEY (destination_id);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_destination_id_fkey FOREIGN KEY (destination_id) REFERENCES public.webhook_destinations(id) ON DELETE CASCADE;
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_payload_format_check CHECK (payload_format IN ('standard', 'flat', 'ndjson', 'cloudevents', 'cloudevents_binary', 'splunk_hec', 'datadog', 'elastic_bulk', 'slack', 'teams', 'pagerduty'));
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_format_options_check CHECK (jsonb_typeof(format_options) = 'object');
-- NaN sorts above Infinity, so that one comparison keeps out both.
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_rate_limit_check CHECK (rate_limit_per_second > 0 AND rate_limit_per_second < 'Infinity');
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_rate_limit_burst_check CHECK (rate_limit_burst >= 1);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_max_in_flight_check CHECK (max_in_flight >= 1 AND max_in_flight <= 10000);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_batch_wait_ms_check CHECK (batch_wait_ms >= 0 AND batch_wait_ms <= 300000);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_batch_max_events_check CHECK (batch_max_events >= 1 AND batch_max_events <= 10000);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_batch_max_bytes_check CHECK (batch_max_bytes >= 1024 AND batch_max_bytes <= 67108864);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_max_age_seconds_check CHECK (max_age_seconds >= 1);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_extra_headers_check CHECK (jsonb_typeof(extra_headers) = 'object' AND NOT jsonb_path_exists(extra_headers, '$.* ? (@.type() != "string")'));
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_signature_scheme_check CHECK (signature_scheme IN ('standard', 'hex'));
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_signature_header_check CHECK (signature_header ~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]{1,100}$');
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_previous_secret_check CHECK (previous_signing_secret <> '');
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_previous_expiry_check CHECK (isfinite(previous_secret_expires_at));
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_tls_client_check CHECK ((tls_client_cert IS NULL) = (tls_client_key IS NULL));
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_tls_client_cert_check CHECK (tls_client_cert LIKE '%-----BEGIN CERTIFICATE-----%' AND octet_length(tls_client_cert) <= 65536);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_tls_client_key_check CHECK (tls_client_key <> '' AND octet_length(tls_client_key) <= 65536);
ALTER TABLE public.posthaste_destination_settings ADD CONSTRAINT posthaste_destination_settings_tls_ca_check CHECK (tls_ca LIKE '%-----BEGIN CERTIFICATE-----%' AND octet_length(tls_ca) <= 1048576);

-- Written by the dispatcher on transitions, read at its start. No foreign key: recording a transition must
-- not fail because the destination has just been deleted; a trigger removes the row.
CREATE TABLE public.posthaste_destination_state (
    destination_id uuid NOT NULL,
    paused_until timestamp without time zone,
    tripped_at timestamp without time zone,
    next_probe_at timestamp without time zone,
    failing_since timestamp without time zone,
    last_success_at timestamp without time zone,
    disabled_at timestamp without time zone,
    disabled_reason text
);
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_pkey PRIMARY KEY (destination_id);
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_paused_until_check CHECK (isfinite(paused_until));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_tripped_at_check CHECK (isfinite(tripped_at));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_next_probe_at_check CHECK (isfinite(next_probe_at));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_failing_since_check CHECK (isfinite(failing_since));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_last_success_at_check CHECK (isfinite(last_success_at));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_disabled_at_check CHECK (isfinite(disabled_at));
ALTER TABLE public.posthaste_destination_state ADD CONSTRAINT posthaste_destination_state_disabled_reason_check CHECK (disabled_reason <> '');

-- Written by a trigger when a destination is enabled: since when it had been disabled, if that was known.
CREATE TABLE public.posthaste_disabled_periods (
    destination_id uuid NOT NULL,
    disabled_at timestamp without time zone,
    enabled_at timestamp without time zone NOT NULL
);
ALTER TABLE public.posthaste_disabled_periods ADD CONSTRAINT posthaste_disabled_periods_pkey PRIMARY KEY (destination_id);
ALTER TABLE public.posthaste_disabled_periods ADD CONSTRAINT posthaste_disabled_periods_destination_id_fkey FOREIGN KEY (destination_id) REFERENCES public.webhook_destinations(id) ON DELETE CASCADE;

-- Failed attempts. Looked up by delivery only, so that one index serves the lookup, the order and the
-- cascade.
CREATE TABLE public.posthaste_attempts (
    delivery_id uuid NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp without time zone NOT NULL,
    duration_ms integer NOT NULL,
    response_status integer,
    response_body text,
    error_message text,
    charged boolean NOT NULL
);
ALTER TABLE public.posthaste_attempts ADD CONSTRAINT posthaste_attempts_delivery_id_fkey FOREIGN KEY (delivery_id) REFERENCES public.webhook_deliveries(id) ON DELETE CASCADE;
ALTER TABLE public.posthaste_attempts ADD CONSTRAINT posthaste_attempts_attempt_check CHECK (attempt >= 1);
ALTER TABLE public.posthaste_attempts ADD CONSTRAINT posthaste_attempts_started_at_check CHECK (isfinite(started_at));
ALTER TABLE public.posthaste_attempts ADD CONSTRAINT posthaste_attempts_duration_ms_check CHECK (duration_ms >= 0);
ALTER TABLE public.posthaste_attempts ADD CONSTRAINT posthaste_attempts_response_status_check CHECK (response_status >= 100 AND response_status <= 999);
CREATE INDEX posthaste_attempts_delivery ON public.posthaste_attempts USING btree (delivery_id, started_at);

-- A destination's due deliveries, whatever its history and everybody else's backlog; and the same in
-- insertion order.
CREATE INDEX posthaste_deliveries_due ON public.webhook_deliveries USING btree (destination_id, next_retry_at) WHERE (status IN ('pending', 'failed'));
CREATE INDEX posthaste_deliveries_order ON public.webhook_deliveries USING btree (destination_id, created_at, id) WHERE (status IN ('pending', 'failed'));
