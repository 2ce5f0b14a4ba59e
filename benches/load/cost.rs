//! CPU, memory and instructions of a process.
//!
//! CPU and memory are those that the kernel records. Instructions are those in user mode, counted by callgrind for the
//! whole process and without noise: the process runs under valgrind from its start, and counting is switched on for the
//! interval to measure.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the CPU time so far of all threads, in microseconds. Unlike `/proc/PID/stat`, it is precise to nanoseconds.
/// <https://docs.kernel.org/scheduler/sched-stats.html>
pub(crate) fn cpu(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let times = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    let nanos =
        times.map(|times| times.split(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number"));
    nanos.sum::<f64>() / 1_000.0
}

/// Returns the resident memory now and at its peak, in bytes.
pub(crate) fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Returns the command for a program under callgrind; the caller adds arguments. The counts go to `file`.
pub(crate) fn countable(program: &OsStr, file: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--instr-atstart=no", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(program);
    valgrind
}

/// Counts the instructions of a [`countable`] process.
pub(crate) struct Counter {
    pid: u32,
    file: PathBuf,
    read: u32,
}

impl Counter {
    /// Starts counting.
    pub(crate) fn start(pid: u32, file: &Path) -> Self {
        let counter = Self { pid, file: file.to_owned(), read: 0 };
        counter.tell(&["-i", "on"]);
        counter
    }

    /// Resets the count.
    pub(crate) fn zero(&self) {
        self.tell(&["-z"]);
    }

    /// Returns the count since the last read, reset or start.
    pub(crate) fn read(&mut self) -> f64 {
        self.read += 1;
        self.tell(&["-d"]);
        let file = format!("{}.{}", self.file.display(), self.read);
        let text = std::fs::read_to_string(file).expect("callgrind wrote it");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
        total.trim().parse().expect("a number")
    }

    fn tell(&self, args: &[&str]) {
        let said = Command::new("callgrind_control").args(args).arg(self.pid.to_string()).output();
        let said = String::from_utf8_lossy(&said.expect("it comes with valgrind").stdout).into_owned();
        assert!(said.contains("OK."), "callgrind accepts the command: {args:?} {said}");
    }
}
