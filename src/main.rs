//! The program `tenantgate`: a runtime, and what [`tenantgate::cli`] makes of the arguments.

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

#[tokio::main]
async fn main() -> ExitCode {
    keep_memory_to_ourselves();
    tenantgate::cli::run(std::env::args_os()).await
}

/// Keys pass through our memory: no core dump takes them along, and no debugger of the same user reads them.
/// Where the system refuses, we are no worse off than without.
fn keep_memory_to_ourselves() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
