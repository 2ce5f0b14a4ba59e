-- What people call a key, that it was taken back, and what took its place.

ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS name varchar(255) NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS revoked_at timestamptz NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS revocation_reason text NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS replaced_by uuid NULL;

COMMENT ON COLUMN api_keys.name IS 'For people; need not be unique';
COMMENT ON COLUMN api_keys.revoked_at IS 'NULL: live';
COMMENT ON COLUMN api_keys.revocation_reason IS 'For people';
COMMENT ON COLUMN api_keys.replaced_by IS 'The key that a rotation put in its place, and that lives as long as this one was issued for';

-- last_used_at changes all the time and no index has it: with room on the page
-- such an update stays there (a HOT update) and leaves the indexes alone.
ALTER TABLE api_keys SET (fillfactor = 80);
