-- Which servers hold these keys in memory, and how far each of them has looked:
-- so that whoever takes a key back can wait until the last one knows.

CREATE TABLE auth_replica (
    id           TEXT PRIMARY KEY NOT NULL,
    -- Host and process, for people.
    name         TEXT NOT NULL,
    -- Every change up to this one has been applied.
    applied      INTEGER NOT NULL,
    seen_at      TEXT NOT NULL,
    -- From then on it refuses every key unless it looks again: it keeps nothing alive any more.
    serves_until TEXT NOT NULL
);
