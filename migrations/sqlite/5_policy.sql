-- What a key may do: scopes, networks, plans and routes; and what can be changed of a key.

-- Limits of tenants and keys, such as 100/MINUTE. Envoy's rate limits enforce them. A plan in use is not deleted.
CREATE TABLE tenantgate_plan (
    name          TEXT PRIMARY KEY NOT NULL CHECK (length(name) BETWEEN 1 AND 64 AND name NOT GLOB '*[^a-z0-9_-]*'),
    request_limit TEXT NULL CHECK (request_limit IS NULL OR (
        request_limit NOT GLOB '*[^0-9]*/*' AND request_limit NOT GLOB '0[0-9]*' AND request_limit GLOB '[0-9]*/*'
        AND CAST(request_limit AS INTEGER) <= 4294967295
        AND substr(request_limit, instr(request_limit, '/') + 1) IN ('SECOND', 'MINUTE', 'HOUR', 'DAY', 'MONTH', 'YEAR'))),
    total_limit   TEXT NULL CHECK (total_limit IS NULL OR (
        total_limit NOT GLOB '*[^0-9]*/*' AND total_limit NOT GLOB '0[0-9]*' AND total_limit GLOB '[0-9]*/*'
        AND CAST(total_limit AS INTEGER) <= 4294967295
        AND substr(total_limit, instr(total_limit, '/') + 1) IN ('SECOND', 'MINUTE', 'HOUR', 'DAY', 'MONTH', 'YEAR'))),
    input_limit   TEXT NULL CHECK (input_limit IS NULL OR (
        input_limit NOT GLOB '*[^0-9]*/*' AND input_limit NOT GLOB '0[0-9]*' AND input_limit GLOB '[0-9]*/*'
        AND CAST(input_limit AS INTEGER) <= 4294967295
        AND substr(input_limit, instr(input_limit, '/') + 1) IN ('SECOND', 'MINUTE', 'HOUR', 'DAY', 'MONTH', 'YEAR'))),
    output_limit  TEXT NULL CHECK (output_limit IS NULL OR (
        output_limit NOT GLOB '*[^0-9]*/*' AND output_limit NOT GLOB '0[0-9]*' AND output_limit GLOB '[0-9]*/*'
        AND CAST(output_limit AS INTEGER) <= 4294967295
        AND substr(output_limit, instr(output_limit, '/') + 1) IN ('SECOND', 'MINUTE', 'HOUR', 'DAY', 'MONTH', 'YEAR')))
);

-- What requests need. The most specific rule wins.
CREATE TABLE tenantgate_route (
    id         TEXT PRIMARY KEY NOT NULL DEFAULT (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
        CHECK (id GLOB '????????-????-????-????-????????????' AND id NOT GLOB '*[^0-9a-f-]*'),
    host       TEXT NOT NULL DEFAULT '*' CHECK (length(host) BETWEEN 1 AND 257 AND host NOT GLOB '*[^]*[a-z0-9_.:-]*'),
    method     TEXT NOT NULL DEFAULT '*' CHECK (method = '*' OR (method GLOB '[A-Z]*' AND method NOT GLOB '*[^A-Z0-9_-]*')),
    path       TEXT NOT NULL CHECK (path GLOB '/*' AND path NOT GLOB '*[^!-~]*'),
    mode       TEXT NOT NULL DEFAULT 'required' CHECK (mode IN ('required', 'optional', 'public')),
    -- Such as `a b | c`: (a and b) or c.
    scopes     TEXT NULL CHECK (scopes <> '' AND scopes NOT GLOB '*[^A-Za-z0-9_.:/| -]*'),
    -- A key that lacks a scope passes, and is reported.
    shadow     INTEGER NOT NULL DEFAULT 0 CHECK (shadow IN (0, 1)),
    name       TEXT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CHECK (mode <> 'public' OR scopes IS NULL)
);

ALTER TABLE api_keys ADD COLUMN disabled_at TEXT NULL;
-- Until this instant the key is not yet valid.
ALTER TABLE api_keys ADD COLUMN not_before TEXT NULL;
-- What the key grants, separated by spaces; NULL: everything.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NULL CHECK (scopes NOT GLOB '*[^A-Za-z0-9_.:/* -]*');
-- CIDRs that the key may be used from, separated by spaces; NULL: anywhere.
ALTER TABLE api_keys ADD COLUMN networks TEXT NULL
    CHECK (trim(networks) <> '' AND networks NOT GLOB '*[^0-9A-Fa-f.:/ ]*');
-- The plan of the key, before that of its tenant.
ALTER TABLE api_keys ADD COLUMN plan TEXT NULL REFERENCES tenantgate_plan (name);
-- For people and filters: an object of texts.
ALTER TABLE api_keys ADD COLUMN labels TEXT NULL CHECK (labels IS NULL OR (json_valid(labels) AND json_type(labels) = 'object'));
ALTER TABLE tenants ADD COLUMN plan TEXT NULL REFERENCES tenantgate_plan (name);
-- Lists in the order of creation. None has last_used_at, so that recording a use changes no index.
CREATE INDEX idx_api_keys_created ON api_keys (created_at, id);
CREATE INDEX idx_api_keys_tenant_created ON api_keys (tenant_id, created_at, id);
CREATE INDEX idx_api_keys_revoked ON api_keys (created_at, id) WHERE revoked_at IS NOT NULL;
CREATE INDEX idx_api_keys_disabled ON api_keys (created_at, id) WHERE disabled_at IS NOT NULL;

CREATE INDEX idx_api_keys_plan ON api_keys (plan) WHERE plan IS NOT NULL;

-- A change of a plan or of a route.
ALTER TABLE tenantgate_change ADD COLUMN plan TEXT NULL;
ALTER TABLE tenantgate_change ADD COLUMN route_id TEXT NULL;
