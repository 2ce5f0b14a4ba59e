-- Who changed what with the commands, and when: one row for each change, written by the changing transaction.
--
-- Each row's hash covers the hash of the row before it and the row itself, so that no row can be changed, removed
-- or inserted without changing the hashes of all later rows.

CREATE TABLE tenantgate_audit_log (
    -- 1, 2, 3 and so on, without a gap.
    seq     INTEGER PRIMARY KEY NOT NULL,
    at      TEXT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    before  TEXT NULL,
    after   TEXT NULL,
    hash    TEXT NOT NULL CHECK (length(hash) = 64 AND hash NOT GLOB '*[^0-9a-f]*')
);
