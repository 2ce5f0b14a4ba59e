-- A function is everybody's until somebody says otherwise. These were: whoever could connect could cut the
-- change log, make every server write down where it is, and hang the triggers on a table of his own to fill
-- the log with nothing. Triggers that are in place ask for no right. Who may call what: see ../roles.sql.

REVOKE EXECUTE ON FUNCTION auth_prune(interval), auth_mark(), auth_key_changed(), auth_tenant_changed(),
    auth_refuse_truncate() FROM PUBLIC;
