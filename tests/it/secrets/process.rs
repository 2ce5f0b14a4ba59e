//! Checks that other processes cannot read the memory of a server.
//!
//! The server runs as an ordinary user, even if root runs the tests, because root may read everything. That user must
//! not be able to read it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::PATIENCE;
use crate::support::cli::{DATABASE_URL, command, tenantgate};
use crate::support::transcript::{Transcript, says};

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The user that root switches to.
const NOBODY: u32 = 65_534;

fn as_an_ordinary_user(command: &mut Command) -> &mut Command {
    if Path::new("/proc/self").metadata().is_ok_and(|own| own.uid() == 0) {
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    command
}

/// Returns the result of reading a file of a process as the same user.
fn read(process: &Child, file: &str) -> String {
    let mut cat = Command::new("cat");
    let said = as_an_ordinary_user(cat.arg(format!("/proc/{}/{file}", process.id()))).output().expect("cat");
    if said.status.success() { "read".to_owned() } else { String::from_utf8_lossy(&said.stderr).into_owned() }
}

#[test]
fn other_processes_cannot_read_the_memory_of_a_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("tenantgate");
    // Copied by another process, because a program cannot be started while any process has it open for writing, and
    // the tests beside this one start processes that may inherit our file.
    let copied = Command::new("install").args(["-m", "755"]).arg(tenantgate()).arg(&program).status();
    assert!(copied.expect("install starts").success(), "the binary is copied to a public directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("ours");
    let mut plan = Command::new(&program);
    let environment = command(dir.path());
    environment.get_envs().filter(|(_, value)| value.is_none()).for_each(|(name, _)| {
        plan.env_remove(name);
    });
    as_an_ordinary_user(&mut plan).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null());
    plan.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    plan.env(DATABASE_URL, format!("sqlite://{}", dir.path().join("own.db").display()));
    let mut server = Process(plan.spawn().expect("the binary starts"));
    let stderr = Transcript::of(server.0.stderr.take().expect("piped"));
    stderr.wait_for("ready", PATIENCE, |lines| lines.iter().any(|line| says(line, "ready")).then_some(()));

    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.0.id())).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");

    // Another process of that user is readable; otherwise this test would prove nothing.
    let mut sleep = Command::new("sleep");
    let other = Process(as_an_ordinary_user(sleep.arg("600")).spawn().expect("sleep"));
    assert_eq!(read(&other.0, "environ"), "read");
    assert!(!read(&other.0, "mem").contains("Permission denied"), "{}", read(&other.0, "mem"));
    for file in ["environ", "mem", "maps"] {
        let said = read(&server.0, file);
        assert!(said.contains("Permission denied"), "{file}: {said}");
    }
}
