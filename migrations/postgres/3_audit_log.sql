-- Who changed what with the commands, and when: one row for each change, written by the changing transaction.
--
-- Each row's hash covers the hash of the row before it and the row itself, so that no row can be changed, removed
-- or inserted without changing the hashes of all later rows.

CREATE TABLE tenantgate_audit_log (
    -- 1, 2, 3 and so on, without a gap. Of two rows with the same number, the second is rejected.
    seq     bigint      PRIMARY KEY CHECK (seq > 0),
    at      timestamptz NOT NULL,
    actor   text        NOT NULL,
    action  text        NOT NULL,
    subject text        NOT NULL,
    -- json and not jsonb: the hash covers the text as written.
    before  json        NULL,
    after   json        NULL,
    hash    text        NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$')
);
COMMENT ON TABLE tenantgate_audit_log IS 'tenantgate: who changed what, and when; append-only, chained by hash';
COMMENT ON COLUMN tenantgate_audit_log.at IS 'By the clock of the database';
COMMENT ON COLUMN tenantgate_audit_log.actor IS 'The user of the operating system, or the value of --actor';
COMMENT ON COLUMN tenantgate_audit_log.action IS 'Such as key.revoke';
COMMENT ON COLUMN tenantgate_audit_log.subject IS 'The id of the tenant or key that changed';
COMMENT ON COLUMN tenantgate_audit_log.before IS 'The row before, without hash and memo; NULL: there was none';
COMMENT ON COLUMN tenantgate_audit_log.after IS 'The row after';
COMMENT ON COLUMN tenantgate_audit_log.hash IS 'SHA-256 over the hash of the row before and this row';
