-- What a key may do: scopes, networks, plans and routes; and what can be changed of a key.

-- Limits of tenants and keys. Envoy's rate limits enforce them; see docs/guides. A plan in use is not deleted.
CREATE TABLE tenantgate_plan (
    name          text PRIMARY KEY CHECK (name ~ '^[a-z0-9_-]{1,64}$'),
    request_limit text NULL,
    total_limit   text NULL,
    input_limit   text NULL,
    output_limit  text NULL
);
COMMENT ON TABLE tenantgate_plan IS 'tenantgate: limits of tenants and keys, such as 100/MINUTE; NULL: unlimited';

DO $do$
DECLARE
    one text;
BEGIN
    FOREACH one IN ARRAY ARRAY['request_limit', 'total_limit', 'input_limit', 'output_limit'] LOOP
        EXECUTE format($check$
            ALTER TABLE tenantgate_plan ADD CHECK (CASE
                WHEN %1$I ~ '^(0|[1-9][0-9]{0,9})/(SECOND|MINUTE|HOUR|DAY|MONTH|YEAR)$'
                THEN split_part(%1$I, '/', 1)::bigint <= 4294967295 ELSE %1$I IS NULL END)
        $check$, one);
    END LOOP;
END $do$;

-- What requests need. The most specific rule wins.
CREATE TABLE tenantgate_route (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    host       text        NOT NULL DEFAULT '*' CHECK (host ~ '^(\*|(\*\.)?[][a-z0-9_.:-]{1,255})$'),
    method     text        NOT NULL DEFAULT '*' CHECK (method ~ '^(\*|[A-Z][A-Z0-9_-]{0,63})$'),
    path       text        NOT NULL CHECK (path ~ '^/[!-~]*$'),
    mode       text        NOT NULL DEFAULT 'required' CHECK (mode IN ('required', 'optional', 'public')),
    -- Such as `a b | c`: (a and b) or c.
    scopes     text        NULL CHECK (scopes ~ '^[A-Za-z0-9_.:/| -]+$'),
    shadow     bool        NOT NULL DEFAULT false,
    name       text        NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (mode <> 'public' OR scopes IS NULL)
);
COMMENT ON TABLE tenantgate_route IS 'tenantgate: which scopes a request needs, by host, method and path';
COMMENT ON COLUMN tenantgate_route.shadow IS 'A key that lacks a scope passes, and is reported';

-- Existing columns with these names must have the same content.
ALTER TABLE api_keys
    ADD COLUMN IF NOT EXISTS disabled_at timestamptz NULL,
    ADD COLUMN IF NOT EXISTS not_before  timestamptz NULL,
    ADD COLUMN IF NOT EXISTS scopes      text        NULL,
    ADD COLUMN IF NOT EXISTS networks    text        NULL,
    ADD COLUMN IF NOT EXISTS plan        text        NULL,
    ADD COLUMN IF NOT EXISTS labels      jsonb       NULL;
ALTER TABLE tenants ADD COLUMN IF NOT EXISTS plan text NULL;
INSERT INTO tenantgate_plan (name)
    SELECT plan FROM tenants WHERE plan IS NOT NULL UNION SELECT plan FROM api_keys WHERE plan IS NOT NULL;
ALTER TABLE api_keys
    ADD CONSTRAINT chk_key_scopes CHECK (scopes ~ '^[A-Za-z0-9_.:/* -]*$'),
    ADD CONSTRAINT chk_key_networks CHECK (networks ~ '^ *[0-9A-Fa-f.:/][0-9A-Fa-f.:/ ]*$'),
    ADD CONSTRAINT chk_key_labels CHECK (jsonb_typeof(labels) = 'object'),
    ADD CONSTRAINT fk_key_plan FOREIGN KEY (plan) REFERENCES tenantgate_plan (name);
ALTER TABLE tenants ADD CONSTRAINT fk_tenant_plan FOREIGN KEY (plan) REFERENCES tenantgate_plan (name);
-- Lists in the order of creation. None has last_used_at, so that recording a use changes no index.
CREATE INDEX idx_api_keys_created ON api_keys (created_at, id);
CREATE INDEX idx_api_keys_tenant_created ON api_keys (tenant_id, created_at, id);
CREATE INDEX idx_api_keys_revoked ON api_keys (created_at, id) WHERE revoked_at IS NOT NULL;
CREATE INDEX idx_api_keys_disabled ON api_keys (created_at, id) WHERE disabled_at IS NOT NULL;

-- For the foreign keys, when a plan is deleted.
CREATE INDEX idx_api_keys_plan ON api_keys (plan) WHERE plan IS NOT NULL;
CREATE INDEX idx_tenants_plan ON tenants (plan) WHERE plan IS NOT NULL;

COMMENT ON COLUMN api_keys.disabled_at IS 'NULL: not disabled';
COMMENT ON COLUMN api_keys.not_before IS 'Until this instant the key is not yet valid; NULL: valid at once';
COMMENT ON COLUMN api_keys.scopes IS 'What the key grants, separated by spaces; NULL: everything';
COMMENT ON COLUMN api_keys.networks IS 'CIDRs that the key may be used from, separated by spaces; NULL: anywhere';
COMMENT ON COLUMN api_keys.plan IS 'The plan of the key, before that of its tenant';
COMMENT ON COLUMN api_keys.labels IS 'For people and filters: an object of texts';
COMMENT ON COLUMN tenants.plan IS 'The plan of keys that have none of their own';

-- A change of a plan or of a route.
ALTER TABLE tenantgate_change
    ADD COLUMN plan text NULL,
    ADD COLUMN route_id uuid NULL,
    DROP CONSTRAINT tenantgate_change_check,
    ADD CONSTRAINT tenantgate_change_check CHECK (num_nonnulls(key_prefix, tenant_id, plan, route_id) <= 1);
