//! The program `tenantgate`: a runtime, and what [`tenantgate::cli`] makes of the arguments.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    tenantgate::cli::run(std::env::args_os()).await
}
