-- Who changed what by the command line, and when: one row a change, written by the changing transaction itself.
--
-- Each row's hash is over the hash of the row before it and over the row, so that nobody can change, remove or
-- put in a row without changing the hashes of all rows after it. README, "Audit", says how to check that without
-- tenantgate.

CREATE TABLE audit_log (
    -- 1, 2, 3 and so on, without a gap. Two that would both be the next one: the second is refused.
    seq     bigint      PRIMARY KEY CHECK (seq > 0),
    at      timestamptz NOT NULL,
    actor   text        NOT NULL,
    action  text        NOT NULL,
    subject text        NOT NULL,
    -- json and not jsonb: the hash is over the text as it was written.
    before  json        NULL,
    after   json        NULL,
    hash    text        NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$')
);
COMMENT ON TABLE audit_log IS 'tenantgate: who changed what, and when; append-only, chained by hash';
COMMENT ON COLUMN audit_log.at IS 'By the clock of the database';
COMMENT ON COLUMN audit_log.actor IS 'The user of the operating system, or what --actor said';
COMMENT ON COLUMN audit_log.action IS 'Such as key.revoke';
COMMENT ON COLUMN audit_log.subject IS 'The id of the tenant or key that changed, or what else did';
COMMENT ON COLUMN audit_log.before IS 'The row before; never a hash or a memo. NULL: there was none';
COMMENT ON COLUMN audit_log.after IS 'The row after';
COMMENT ON COLUMN audit_log.hash IS 'SHA-256 over the hash of the row before and this row';

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused', tg_op, tg_table_name
        USING HINT = 'The audit log is append-only.';
END $$;

CREATE TRIGGER audit_log_kept BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_log_not_truncated BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_kept;
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_not_truncated;
