//! Shows the progress of an import.
//!
//! On a terminal, shows a bar with rate and remaining time; elsewhere, prints a line every ten seconds. Always on
//! standard error.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::super::print_stderr;

/// The interval between lines.
const EVERY: Duration = Duration::from_secs(10);

/// The progress of reading a file, whose size in bytes may be unknown.
pub(super) struct ImportProgress {
    bar: Option<ProgressBar>,
    bytes: Option<u64>,
    start: Instant,
    said: Instant,
}

impl ImportProgress {
    pub(super) fn new(bytes: Option<u64>) -> Self {
        let now = Instant::now();
        let bar = io::stderr().is_terminal().then(|| bar(bytes));
        Self { bar, bytes, start: now, said: now }
    }

    /// Shows that `rows` rows were read, which end at the byte `position`.
    pub(super) fn at(&mut self, rows: u64, position: u64) {
        let seconds = self.start.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let (rate, done) =
            (rows as f64 / seconds.max(0.001), self.bytes.map(|all| position as f64 / all as f64));
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(format!("{rows} rows, {rate:.0} a second"));
        } else if self.said.elapsed() >= EVERY {
            self.said = Instant::now();
            let left = done.filter(|done| *done > 0.0).map(|done| {
                let left = Duration::from_secs_f64(seconds * (1.0 - done.min(1.0)) / done);
                format!(", {:.0} %, {} s left", done * 100.0, left.as_secs())
            });
            print_stderr(&format!("{rows} rows, {rate:.0} a second{}\n", left.unwrap_or_default()));
        }
    }

    /// Prints a line on standard error, above the bar.
    pub(super) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_stderr(line)),
            None => print_stderr(line),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(bytes: Option<u64>) -> ProgressBar {
    let style = match bytes {
        Some(_) => "{elapsed_precise} [{bar:30}] {percent:>3} %  {msg}, {eta} left",
        None => "{elapsed_precise} {spinner} {msg}",
    };
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
