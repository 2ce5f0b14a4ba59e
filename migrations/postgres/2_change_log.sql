-- The identity of this database, the change log, and the servers that follow it.

-- Servers know the database by this id, wherever it is: a failover, a restored dump or a logical replica keeps it.
-- `tenantgate migrate --new-identity` gives a copy another one, so that servers see it as a different database.
CREATE TABLE tenantgate_identity (
    one     bool        PRIMARY KEY DEFAULT true CHECK (one),
    id      uuid        NOT NULL DEFAULT gen_random_uuid(),
    -- Which change log this is: a dump keeps it, a logical replica writes a log of its own.
    log     uuid        NOT NULL DEFAULT gen_random_uuid(),
    made_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tenantgate_identity DEFAULT VALUES;
COMMENT ON TABLE tenantgate_identity IS 'tenantgate: the id by which servers know this database';

-- What changed, written by the changing transaction itself, so that replicas see changes by any SQL client.
--
-- A replica asks for the rows whose transaction became visible since its last poll
-- (NOT pg_visible_in_snapshot(xid, last snapshot)), so a transaction that commits late is never missed. The
-- notification only wakes the replica early.
CREATE TABLE tenantgate_change (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid        xid8   NOT NULL DEFAULT pg_current_xact_id(),
    -- What changed: at most one of the two is set. Neither: everything may have changed.
    key_prefix text   NULL,
    tenant_id  uuid   NULL,
    -- For pruning only: the start of the transaction.
    at         timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(key_prefix, tenant_id) <= 1)
);
CREATE INDEX tenantgate_change_xid ON tenantgate_change (xid);
COMMENT ON TABLE tenantgate_change IS 'tenantgate: what changed in tenants and api_keys, by transaction';

-- The newest transaction that was pruned. A replica whose last snapshot is older loads everything again.
CREATE TABLE tenantgate_change_floor (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    xid xid8 NOT NULL DEFAULT '0'
);
INSERT INTO tenantgate_change_floor DEFAULT VALUES;
COMMENT ON TABLE tenantgate_change_floor IS 'tenantgate: the newest transaction that was pruned from tenantgate_change';

-- Servers that hold the keys in memory, and the snapshot each of them has applied: a command that revokes a key
-- can wait until the last one has.
CREATE TABLE tenantgate_replica (
    id           uuid        PRIMARY KEY,
    -- Host and process, for people.
    name         text        NOT NULL,
    -- Everything visible in this snapshot has been applied.
    applied      pg_snapshot NOT NULL,
    seen_at      timestamptz NOT NULL,
    -- From then on the server refuses every key unless it polls again.
    serves_until timestamptz NOT NULL
);
COMMENT ON TABLE tenantgate_replica IS 'tenantgate: servers and the snapshot each of them has applied';
