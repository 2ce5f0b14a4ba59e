//! Logs panics without their secrets.
//!
//! A report of the defect needs the place of the panic, and its message if that is a literal of the program. A message
//! that was formatted may contain what the code was working on, such as the end of a key, cut from its `llmk_`, which
//! no pattern would recognize. Such a message is not logged.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write as _};
use std::panic::{self, PanicHookInfo};

use tracing::{dispatcher, error, field};

/// Logs panics from now on, without values.
pub fn hide_secrets() {
    panic::set_hook(Box::new(report));
}

fn report(info: &PanicHookInfo<'_>) {
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    let message = sentence(info.payload());
    if !dispatcher::has_been_set() {
        // Before logging starts, and in commands, which do not log.
        let _ = writeln!(
            io::stderr(),
            "error: panic at {at}, a defect of tenantgate, please report it: {message}"
        );
        return;
    }
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    // Captured if the operator sets RUST_BACKTRACE. It has names of functions and places, no values.
    let backtrace = Some(Backtrace::capture()).filter(|trace| trace.status() == BacktraceStatus::Captured);
    error!(
        at,
        thread,
        said = message,
        backtrace = backtrace.map(field::display),
        "panic, a defect of tenantgate: please report it"
    );
}

/// Returns the message if it is a literal of the program, which a formatted one is not.
fn sentence(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(omitted: it may contain a secret)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(work: impl FnOnce() + panic::UnwindSafe) -> &'static str {
        sentence(panic::catch_unwind(work).unwrap_err().as_ref())
    }

    #[test]
    fn only_literals_of_the_program_are_logged() {
        let key = "llmk_demo_secret123".to_owned();
        assert_eq!(logged(|| panic!("a sentence")), "a sentence");
        for silent in [
            logged(|| panic!("about {key}")),
            logged(|| panic!("{key}")),
            logged(|| {
                let _ = &key[key.len() / 2..][..key.len()];
            }),
            logged(|| {
                let wrong: Result<u8, _> = std::hint::black_box(Err(key.clone()));
                let _ = wrong.unwrap();
            }),
            logged(|| assert_eq!(key, "")),
            logged(|| panic::panic_any(key.clone())),
        ] {
            assert_eq!(silent, "(omitted: it may contain a secret)");
        }
    }
}
