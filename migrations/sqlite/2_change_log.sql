-- The identity of this database, the change log, and the servers that follow it.

-- Servers know the database by this id, wherever its file is. `tenantgate migrate --new-identity` gives a copy another
-- one, so that servers see it as a different database.
CREATE TABLE tenantgate_identity (
    one     INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    id      TEXT NOT NULL DEFAULT (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    made_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
INSERT INTO tenantgate_identity DEFAULT VALUES;

-- What changed, written by the changing transaction itself. SQLite has one writer at a time, so the order of ids is
-- the order of commits, and a replica remembers the last id it saw.
CREATE TABLE tenantgate_change (
    -- AUTOINCREMENT: an id is never used twice, also after pruning.
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key_prefix TEXT NULL,
    tenant_id  TEXT NULL,
    -- For pruning only.
    at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- Servers that hold the keys in memory, and the change each of them has applied: a command that revokes a key can
-- wait until the last one has.
CREATE TABLE tenantgate_replica (
    id           TEXT PRIMARY KEY NOT NULL,
    -- Host and process, for people.
    name         TEXT NOT NULL,
    -- Every change up to this one has been applied.
    applied      INTEGER NOT NULL,
    seen_at      TEXT NOT NULL,
    -- From then on the server refuses every key unless it polls again.
    serves_until TEXT NOT NULL
);
