//! The program `tenantgate`: starts a runtime and runs [`tenantgate::cli`].

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    protect_memory();
    raise_file_limit();
    tenantgate::cli::run(std::env::args_os()).await
}

/// Disables core dumps, and debuggers of the same user, because keys are in memory. Failures are ignored: the program
/// is then no less safe than without this.
fn protect_memory() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Raises the limit of open files to its maximum: each connection needs one, and the usual limit of 1,024 is too low.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
