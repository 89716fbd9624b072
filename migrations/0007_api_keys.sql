-- Keys of the HTTP API: who may see and do what.

-- A key is `phk_<prefix>_<secret>`. What stands here is found by its prefix and cannot be turned back into
-- the key.
CREATE TABLE public.posthaste_api_keys (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    org_id uuid NOT NULL,
    name text NOT NULL,
    role text NOT NULL,
    prefix text NOT NULL,
    hash bytea NOT NULL,
    created_at timestamp without time zone NOT NULL,
    last_used_at timestamp without time zone,
    revoked_at timestamp without time zone
);
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_pkey PRIMARY KEY (id);
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_prefix_key UNIQUE (prefix);
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_org_id_fkey FOREIGN KEY (org_id) REFERENCES public.organizations(id) ON DELETE CASCADE;
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_role_check CHECK (role IN ('read', 'write'));
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_name_check CHECK (char_length(name) BETWEEN 1 AND 100);
-- Of SHA-256.
ALTER TABLE public.posthaste_api_keys ADD CONSTRAINT posthaste_api_keys_hash_check CHECK (octet_length(hash) = 32);
CREATE INDEX posthaste_api_keys_org ON public.posthaste_api_keys USING btree (org_id, created_at, id);
CREATE INDEX posthaste_api_keys_created ON public.posthaste_api_keys USING btree (created_at, id);
