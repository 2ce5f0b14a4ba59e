//! Is the contract kept? One binary, so that it links once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod architecture;
