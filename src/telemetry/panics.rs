//! What is said of a panic?
//!
//! That there was one and where, which is what a report of the defect needs; and its words, if they are
//! a sentence of the program's own. Words that were put together when it happened may repeat what was
//! being worked on: the end of a key, cut from its `llmk_`, that nobody would know again to black it out.
//! They are not said.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write as _};
use std::panic::{self, PanicHookInfo};

use tracing::{dispatcher, error, field};

/// From now on panics are said without what they are about.
pub fn say_no_secrets() {
    panic::set_hook(Box::new(say));
}

fn say(info: &PanicHookInfo<'_>) {
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    let message = sentence(info.payload());
    if !dispatcher::has_been_set() {
        // Before a log, and in commands, which have none.
        let _ = writeln!(
            io::stderr(),
            "error: panic at {at}, a defect of tenantgate, please report it: {message}"
        );
        return;
    }
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    // Taken if the operator asks for it (RUST_BACKTRACE); names of functions and places, no values.
    let backtrace = Some(Backtrace::capture()).filter(|trace| trace.status() == BacktraceStatus::Captured);
    error!(
        at,
        thread,
        said = message,
        backtrace = backtrace.map(field::display),
        "panic, a defect of tenantgate: please report it"
    );
}

/// A literal is the program's own; anything else was put together.
fn sentence(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(not said: it may hold a secret)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(work: impl FnOnce() + panic::UnwindSafe) -> &'static str {
        sentence(panic::catch_unwind(work).unwrap_err().as_ref())
    }

    #[test]
    fn only_sentences_of_the_programs_own_are_said() {
        let key = "llmk_demo_secret123".to_owned();
        assert_eq!(said(|| panic!("a sentence")), "a sentence");
        for silent in [
            said(|| panic!("about {key}")),
            said(|| panic!("{key}")),
            said(|| {
                let _ = &key[key.len() / 2..][..key.len()];
            }),
            said(|| {
                let wrong: Result<u8, _> = std::hint::black_box(Err(key.clone()));
                let _ = wrong.unwrap();
            }),
            said(|| assert_eq!(key, "")),
            said(|| panic::panic_any(key.clone())),
        ] {
            assert_eq!(silent, "(not said: it may hold a secret)");
        }
    }
}
