//! The program `tenantgate`: a runtime, and what [`tenantgate::cli`] makes of the arguments.

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    keep_memory_to_ourselves();
    take_all_files_there_are();
    tenantgate::cli::run(std::env::args_os()).await
}

/// Keys pass through our memory: no core dump takes them along, and no debugger of the same user reads them.
/// Where the system refuses, we are no worse off than without.
fn keep_memory_to_ourselves() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// A connection takes a file descriptor, and the number that is customary (1,024) is from another time.
fn take_all_files_there_are() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
