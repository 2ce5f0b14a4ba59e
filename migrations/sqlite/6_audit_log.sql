-- Who changed what by the command line, and when: one row a change, written by the changing transaction itself.
--
-- Each row's hash is over the hash of the row before it and over the row, so that nobody can change, remove or
-- put in a row without changing the hashes of all rows after it. README, "Audit", says how to check that without
-- tenantgate.

CREATE TABLE audit_log (
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

CREATE TRIGGER audit_log_not_updated BEFORE UPDATE ON audit_log BEGIN
    SELECT RAISE(ABORT, 'UPDATE of audit_log is refused, it is append-only');
END;
CREATE TRIGGER audit_log_not_deleted BEFORE DELETE ON audit_log BEGIN
    SELECT RAISE(ABORT, 'DELETE of audit_log is refused, it is append-only');
END;
-- REPLACE would delete what is in its way, and no trigger would hear of that.
CREATE TRIGGER audit_log_appended BEFORE INSERT ON audit_log
WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit_log) BEGIN
    SELECT RAISE(ABORT, 'audit_log is append-only: the next row has the next number');
END;
