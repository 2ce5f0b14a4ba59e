//! The background thread, which holds the connection to the server, receives the shared memory and sends reports.
//!
//! Without a server there is no memory: Checks decide on every request, and the thread reconnects.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tenantgate_snapshot::{Hello, Mapping, Reader, Report};

use crate::abi::without_signals;
use crate::exchange::ContextPolicy;
use crate::filter::SystemClock;
use crate::judge::Published;
use crate::reports::Reports;

/// The interval between reports, and between checks whether the filter has ended.
const TICK: Duration = Duration::from_millis(250);

/// The pause before the next attempt to reach the server.
const PAUSE: Duration = Duration::from_millis(100);

/// The address of the server, and the operator's statements about `ext_authz`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    path: PathBuf,
    uid: Option<u32>,
    /// Whether Envoy chooses the route again once the headers of the tenant are set.
    pub(crate) clears_route_cache: bool,
    /// The default for routes without their own configuration.
    pub(crate) context_policy: ContextPolicy,
}

impl Target {
    /// Parses `unix:/path context_extensions=none clear_route_cache=false uid=N`; `None` if it is invalid. The words,
    /// in this order:
    ///
    /// * `unix:/path`: the socket of the server.
    /// * `context_extensions=none|some`, optional: whether routes set a scope or a mode by `context_extensions` of
    ///   `ext_authz`. Defaults to `some`: the module decides only on routes whose own configuration has `none`.
    /// * `clear_route_cache=true|false`: the setting of `ext_authz`. If it is wrong and a route depends on the headers
    ///   of the tenant, a client can choose a route with a forged header. Therefore it has no default.
    /// * `uid=N`, optional: the user of the server, if it is neither root nor the user of Envoy.
    ///
    /// The module cannot read the configuration of `ext_authz`. Envoy Gateway passes the text in quotation marks.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let text = quoted.filter(|text| !text.contains(['"', '\\'])).unwrap_or(text);
        let mut words = text.split_whitespace();
        let path = PathBuf::from(words.next()?.strip_prefix("unix:")?);
        let mut word = words.next()?;
        let context_policy = ContextPolicy::parse(word);
        if context_policy.is_some() {
            word = words.next()?;
        }
        let context_policy = context_policy.unwrap_or_default();
        let clears_route_cache = word.strip_prefix("clear_route_cache=")?.parse().ok()?;
        let uid = match words.next() {
            Some(word) => Some(word.strip_prefix("uid=")?.parse().ok()?),
            None => None,
        };
        let whole = path.is_absolute() && words.next().is_none();
        whole.then_some(Self { path, uid, clears_route_cache, context_policy })
    }

    /// Returns whether a server that runs as this user is trusted.
    fn trusts(&self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || Some(uid) == self.uid
    }
}

/// The handle of the thread, which ends soon after [`Link::stop`].
#[derive(Debug)]
pub(crate) struct Link(Arc<AtomicBool>);

impl Link {
    /// Starts the thread; `None` if the system cannot.
    pub(crate) fn start(
        target: Target,
        published: &Arc<ArcSwapOption<Published<Mapping>>>,
        reports: &Arc<Reports>,
    ) -> Option<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            target,
            published: Arc::clone(published),
            reports: Arc::clone(reports),
            ended: Arc::clone(&ended),
        };
        let run = move || while catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {};
        let thread = std::thread::Builder::new().name("tenantgate".to_owned());
        without_signals(|| thread.spawn(run)).ok()?;
        Some(Self(ended))
    }

    pub(crate) fn stop(&self) {
        self.0.store(true, Relaxed);
    }
}

struct Worker {
    target: Target,
    published: Arc<ArcSwapOption<Published<Mapping>>>,
    reports: Arc<Reports>,
    ended: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self) {
        while !self.ended.load(Relaxed) {
            // Every error leads to the next attempt. Until then, the Check decides about all requests.
            let _ = self.converse();
            self.published.store(None);
            std::thread::sleep(PAUSE);
        }
    }

    fn converse(&self) -> io::Result<()> {
        let mut socket = UnixStream::connect(&self.target.path)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if !self.target.trusts(peer.uid.as_raw()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        while !self.ended.load(Relaxed) {
            match Hello::receive(&socket) {
                Ok((hello, file)) => {
                    let reader = Reader::new(Mapping::open(file)?, hello.key);
                    let published = reader.and_then(Published::new).ok_or(io::ErrorKind::InvalidData)?;
                    if !published.has_our_clock(&SystemClock) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    self.published.store(Some(Arc::new(published)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self
                .published
                .load()
                .as_deref()
                .is_some_and(|published| !published.has_our_clock(&SystemClock))
            {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let batch: Vec<Report> = self.reports.take();
            if !batch.is_empty() {
                socket.write_all(&Report::frames(&batch))?;
            }
        }
        // Sends the last reports.
        socket.write_all(&Report::frames(&self.reports.take()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_absolute_path_two_promises_and_perhaps_a_user() {
        const SAID: &str = "context_extensions=none clear_route_cache=false";
        for (word, context_policy) in [
            ("context_extensions=none ", ContextPolicy::None),
            ("context_extensions=some ", ContextPolicy::Some),
            ("", ContextPolicy::Some),
        ] {
            let target = Target::parse(&format!("unix:/a {word}clear_route_cache=false uid=1")).unwrap();
            assert_eq!((target.context_policy, target.uid), (context_policy, Some(1)), "{word}");
        }
        let target = Target::parse(&format!("unix:/run/a.sock {SAID} uid=7")).unwrap();
        assert_eq!((target.path.to_str(), target.uid), (Some("/run/a.sock"), Some(7)));
        assert!(target.trusts(7) && target.trusts(0) && !target.trusts(8));
        for (word, clears) in [("false", false), ("true", true)] {
            let text = format!("unix:/a context_extensions=none clear_route_cache={word}");
            assert_eq!(Target::parse(&text).unwrap().clears_route_cache, clears);
        }
        for bad in [
            "",
            "unix:/a",
            "unix:/a uid=1",
            "unix:/a context_extensions=none",
            "unix:/a context_extensions=none context_extensions=none clear_route_cache=false",
            "unix:/a context_extensions=None clear_route_cache=false",
            "unix:/a context_extensions clear_route_cache=false",
            "unix:/a context_extensions=none clear_route_cache=maybe",
            "unix:/a clear_route_cache=false context_extensions=none",
        ] {
            assert_eq!(Target::parse(bad), None, "{bad:?}");
        }
        for (path, rest) in
            [("/run/a.sock", ""), ("unix:a.sock", ""), ("unix:/a", "uid=x"), ("unix:/a", "uid=1 more")]
        {
            assert_eq!(Target::parse(&format!("{path} {SAID} {rest}")), None, "{path} {rest}");
        }
        assert!(Target::parse(&format!("unix:/a {SAID}")).is_some());
        assert_eq!(Target::parse(&format!("\"unix:/a {SAID}\"")), Target::parse(&format!("unix:/a {SAID}")));
        for bad in [
            format!("\"unix:/a {SAID}"),
            format!("\"\"unix:/a {SAID}\"\""),
            format!("\"unix:/\\u0061 {SAID}\""),
        ] {
            assert_eq!(Target::parse(&bad), None, "{bad}");
        }
    }
}
