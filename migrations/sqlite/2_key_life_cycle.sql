-- What people call a key, and that it was taken back.
ALTER TABLE api_keys ADD COLUMN name TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revoked_at TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revocation_reason TEXT NULL;
