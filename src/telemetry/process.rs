//! Metrics of the process itself.
//!
//! They have the names that all Prometheus client libraries use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), so that dashboards and alerts for
//! any program work for this one. They are read from the system at each scrape; a number that the system does not
//! provide is omitted.

use std::fmt;
use std::fs;

use rustix::process::{Resource, getrlimit};

use super::page::MetricsPage;
use crate::clock::{Timestamp, cpu_time};

/// Writes all metrics of the process.
pub(super) fn write(page: &mut MetricsPage<'_>, started: Timestamp) -> fmt::Result {
    let (start, cpu) = (started.since(Timestamp::default()), cpu_time());
    page.gauge_f64("process_start_time_seconds", "When the process started, Unix time", start.as_secs_f64())?;
    page.counter_f64("process_cpu_seconds", "CPU time, user and system", cpu.as_secs_f64())?;
    for (name, help, number) in [
        ("process_resident_memory_bytes", "Resident memory", resident_memory()),
        ("process_open_fds", "Open files and sockets", open_files()),
        ("process_max_fds", "The limit of open files and sockets", getrlimit(Resource::Nofile).current),
    ] {
        if let Some(number) = number {
            page.gauge(name, help, number)?;
        }
    }
    Ok(())
}

/// `VmRSS` in kB: <https://man7.org/linux/man-pages/man5/proc_pid_status.5.html>
fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Counts open files, without the one that is opened for counting.
fn open_files() -> Option<u64> {
    let files = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(files.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_open_files() {
        assert!(resident_memory().is_some_and(|bytes| bytes > 1 << 20));
        assert!(open_files().is_some_and(|files| files >= 2));
    }
}
