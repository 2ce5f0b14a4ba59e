-- What people call a key, that it was taken back, and what took its place.
ALTER TABLE api_keys ADD COLUMN name TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revoked_at TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revocation_reason TEXT NULL;
-- The key that a rotation put in its place, and that lives as long as this one was issued for.
ALTER TABLE api_keys ADD COLUMN replaced_by TEXT NULL;
