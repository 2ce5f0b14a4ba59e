//! Is the contract kept? One binary, so that it links once.
