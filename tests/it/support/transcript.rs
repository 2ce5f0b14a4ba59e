//! Collects the output of a process and waits for lines in it.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

/// The output of a process on one stream, which grows while it runs.
#[derive(Clone, Default)]
pub(crate) struct Transcript(Arc<(Mutex<Said>, Condvar)>);

impl Transcript {
    /// Reads a stream until it ends, on its own thread.
    pub(crate) fn of(stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let writer = transcript.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                writer.change(|said| said.lines.push(text));
                line.clear();
            }
            writer.change(|said| said.ended = true);
        });
        transcript
    }

    fn change(&self, change: impl FnOnce(&mut Said)) {
        let (said, news) = &*self.0;
        change(&mut said.lock().unwrap_or_else(PoisonError::into_inner));
        news.notify_all();
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// The text so far.
    pub(crate) fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Waits until `find` finds something in the lines; panics with all lines after the deadline.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        find: impl Fn(&[String]) -> Option<T>,
    ) -> T {
        let (said, news) = &*self.0;
        let end = Instant::now() + deadline;
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&said.lines) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            let over = if said.ended { "the stream ended" } else { "time is over" };
            assert!(
                !said.ended && !left.is_zero(),
                "no `{what}`, and {over}; it said:\n{}",
                said.lines.join("\n")
            );
            said = news.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream is closed. Returns the whole text.
    pub(crate) fn to_the_end(&self, deadline: Duration) -> String {
        let (said, news) = &*self.0;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = news.wait_timeout_while(said, deadline, |said| !said.ended);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(
            said.ended,
            "the stream is still open after {deadline:?}; it said:\n{}",
            said.lines.join("\n")
        );
        said.lines.join("\n")
    }
}

/// Returns the value of a field in a log line: `name=value`, `name="value"` or JSON's `"name":"value"`.
pub(crate) fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let json = format!("\"{name}\":");
    let text = format!("{name}=");
    let start =
        line.find(&json).map(|at| at + json.len()).or_else(|| line.find(&text).map(|at| at + text.len()))?;
    let value = &line[start..];
    value
        .strip_prefix('"')
        .map_or_else(|| value.split([' ', ',', '}']).next(), |quoted| quoted.split('"').next())
}

/// Whether this is a log line with exactly this message.
pub(crate) fn says(line: &str, message: &str) -> bool {
    if line.starts_with('{') {
        return field(line, "message") == Some(message);
    }
    let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.contains('=')).collect();
    words.last() == Some(&message) && words.get(words.len().wrapping_sub(2)) != Some(&"not")
}
