//! Controls a real Chromium over a pipe, with the protocol of its developer tools.
//!
//! Clicks and keys are real input events of the browser, so that covered or hidden elements cannot be clicked. Waits
//! are for events, such as a loaded page or a response.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{PATIENCE, eventually, excused, left_out};

static MISSING: Once = Once::new();

fn tool(variable: &str, program: &str, path: &str) -> Option<PathBuf> {
    let told = std::env::var_os(variable).map(PathBuf::from);
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|dir| dir.join(program));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(path);
    let found = told.into_iter().chain(on_path).chain([ours]).find(|file| file.is_file());
    if found.is_none() && !excused("chromium") {
        left_out(
            &MISSING,
            "the page in a browser",
            &format!("no {program} (`envoy/get chromium` and `envoy/get axe` get what is needed)"),
        );
    }
    found
}

/// Returns the source of axe-core, which checks accessibility.
pub(crate) fn axe() -> Option<String> {
    let found = tool("TENANTGATE_AXE", "axe.min.js", "axe-4.14.1/axe.min.js")?;
    Some(std::fs::read_to_string(found).expect("axe can be read"))
}

#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Value>,
    events: Vec<Value>,
    ended: bool,
}

/// A browser with one tab, which ends with this value.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    session: Option<String>,
    asked: u64,
    /// The number of events that were already processed.
    seen: usize,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser; `None` with a message if there is none.
    pub(crate) fn start() -> Option<Self> {
        let path = "chromium-headless-shell/usr/lib/chromium/chromium-headless-shell";
        let program = tool("TENANTGATE_CHROMIUM", "chromium-headless-shell", path)?;
        let profile = tempfile::tempdir().expect("a directory");
        // The protocol uses the file descriptors 3 and 4.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(program)
            .args(["--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts it");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        listen(BufReader::new(from), Arc::clone(&heard));
        let mut this = Self { child, to, heard, session: None, asked: 0, seen: 0, _profile: profile };
        this.open_tab();
        Some(this)
    }

    fn open_tab(&mut self) {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call("Target.attachToTarget", attach);
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Audits", "DOM"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true }));
    }

    /// Calls a method of the protocol.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let mut message = json!({ "id": id, "method": method });
        message["params"] = params;
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        let answer = self.wait(&format!("an answer to {method}"), |heard| heard.answers.remove(&id));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn wait<T>(&self, what: &str, mut found: impl FnMut(&mut Heard) -> Option<T>) -> T {
        let (mut heard, end) = (locked(&self.heard), Instant::now() + PATIENCE);
        loop {
            if let Some(found) = found(&mut heard) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!heard.ended && !left.is_zero(), "{what}: not within {PATIENCE:?}");
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Performs an action that loads a page, and waits until it is loaded.
    pub(crate) fn loading(&mut self, act: impl FnOnce(&mut Self)) {
        let before = locked(&self.heard).events.len();
        act(self);
        self.wait("a page that has loaded", |heard| {
            heard.events[before..].iter().find(|event| event["method"] == "Page.loadEventFired").map(|_| ())
        });
    }

    pub(crate) fn goto(&mut self, url: &str) {
        self.loading(|browser| {
            browser.call("Page.navigate", json!({ "url": url }));
        });
    }

    /// Evaluates JavaScript in the page, without the restrictions of its policy.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    #[track_caller]
    pub(crate) fn text(&mut self) -> String {
        self.eval("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub(crate) fn path(&mut self) -> String {
        self.eval("location.pathname").as_str().unwrap_or_default().to_owned()
    }

    /// Clicks into the middle of the element that an expression returns.
    #[track_caller]
    fn click_on(&mut self, expression: &str) {
        let place = self.eval(&format!(
            "(() => {{ const e = {expression}; if (!e) return null; e.scrollIntoView({{ block: 'center' }});
               const r = e.getBoundingClientRect(); const at = [r.x + r.width / 2, r.y + r.height / 2];
               const hit = document.elementFromPoint(...at); return e.contains(hit) ? at : ['covered by', hit?.outerHTML]; }})()"
        ));
        let (Some(x), Some(y)) = (place[0].as_f64(), place[1].as_f64()) else {
            panic!("{expression} cannot be clicked: {place}\n{}", self.text())
        };
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Clicks on the element of a selector whose text begins with `text`.
    #[track_caller]
    pub(crate) fn click(&mut self, selector: &str, text: &str) {
        self.click_on(&format!(
            "[...document.querySelectorAll({})].find(e => e.innerText.trim().startsWith({}) && e.getClientRects().length)",
            json!(selector),
            json!(text)
        ));
    }

    /// Replaces the text of a field, by typing.
    #[track_caller]
    pub(crate) fn fill(&mut self, selector: &str, text: &str) {
        self.click_on(&format!("document.querySelector({})", json!(selector)));
        self.eval(&format!("document.querySelector({}).select()", json!(selector)));
        self.type_text(text);
    }

    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key that has no text, or Enter.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            " " => (32, " "),
            other => panic!("the key {other} is not supported"),
        };
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        for kind in [down, "keyUp"] {
            let text = if kind == "keyUp" { "" } else { text };
            let name = if key == " " { "Space" } else { key };
            let event = json!({ "type": kind, "key": key, "code": name, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Waits until an element has the focus. One with `autofocus` gets it with the first frame, which can come after the
    /// page has loaded.
    #[track_caller]
    pub(crate) fn wait_for_focus(&mut self, selector: &str) {
        let has_it = format!("document.activeElement?.matches({}) === true", json!(selector));
        eventually(&format!("{selector} has the focus"), PATIENCE, || {
            if self.eval(&has_it) == true {
                Ok(())
            } else {
                Err(self.eval("document.activeElement?.outerHTML"))
            }
        });
    }

    /// Presses Tab until the focused element has this text or label.
    #[track_caller]
    pub(crate) fn tab_to(&mut self, name: &str) {
        let mut passed = Vec::new();
        for _ in 0..80 {
            self.press("Tab");
            let focused = self.eval(
                "(() => { const e = document.activeElement; return (e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || e.value || '').trim() })()",
            );
            let focused = focused.as_str().unwrap_or_default().to_owned();
            if focused.starts_with(name) {
                let shown = self.eval("getComputedStyle(document.activeElement).outlineStyle !== 'none'");
                assert_eq!(shown, true, "the focus on {name} is not visible");
                return;
            }
            passed.push(focused);
        }
        panic!("the keyboard does not reach {name}: {passed:?}");
    }

    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub(crate) fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme },
                              { "name": "prefers-reduced-motion", "value": "reduce" }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub(crate) fn scripts(&mut self, allowed: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !allowed }));
    }

    /// Returns a screenshot as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("base64")
    }

    /// Returns the policy violations and script errors since the last call.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // The browser reports all earlier events before the response to this call.
        self.eval("0");
        let heard = locked(&self.heard);
        let events = &heard.events[self.seen..];
        let complaint = |event: &Value| {
            let params = &event["params"];
            let bad = match event["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => {
                    params["entry"]["level"] == "error" && params["entry"]["source"] != "network"
                }
                Some("Audits.issueAdded") => params["issue"]["code"] == "ContentSecurityPolicyIssue",
                _ => false,
            };
            bad.then(|| params.to_string())
        };
        let complaints = events.iter().filter_map(complaint).collect();
        self.seen = heard.events.len();
        complaints
    }
}

fn locked(heard: &(Mutex<Heard>, Condvar)) -> MutexGuard<'_, Heard> {
    heard.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(mut from: impl std::io::BufRead + Send + 'static, heard: Arc<(Mutex<Heard>, Condvar)>) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while from.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
            if bytes.last() == Some(&0) {
                bytes.pop();
            }
            let message: Value = serde_json::from_slice(&bytes).expect("JSON");
            bytes.clear();
            let mut heard_now = locked(&heard);
            match message["id"].as_u64() {
                Some(id) => drop(heard_now.answers.insert(id, message)),
                None => heard_now.events.push(message),
            }
            drop(heard_now);
            heard.1.notify_all();
        }
        locked(&heard).ended = true;
        heard.1.notify_all();
    });
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
