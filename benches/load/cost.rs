//! What does a process cost: CPU, memory, instructions?
//!
//! CPU and memory as the kernel has booked them. Instructions in user mode as callgrind
//! counts them, of the whole process and free of noise: it runs under valgrind from its
//! start, where nothing is counted until somebody wants it, and then says how many there
//! were between two moments. It must not know what the process is, nor what it is asked.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// CPU time so far, in microseconds: of all its threads, to the nanosecond, where `/proc/PID/stat` has ticks.
/// <https://docs.kernel.org/scheduler/sched-stats.html>
pub(crate) fn cpu(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let times = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    let nanos =
        times.map(|times| times.split(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number"));
    nanos.sum::<f64>() / 1_000.0
}

/// Resident memory now and at its most, in bytes.
pub(crate) fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// A program that can be counted; arguments are the caller's to add. What callgrind has to say goes to `file`.
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
    /// Counts from now on.
    pub(crate) fn start(pid: u32, file: &Path) -> Self {
        let counter = Self { pid, file: file.to_owned(), read: 0 };
        counter.tell(&["-i", "on"]);
        counter
    }

    /// Forgets what it has counted so far.
    pub(crate) fn zero(&self) {
        self.tell(&["-z"]);
    }

    /// How many there were since it was read, zeroed or started the last time.
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
        assert!(said.contains("OK."), "callgrind does as it is told: {args:?} {said}");
    }
}
