//! The clocks of the operating system, beside the words of time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
pub use tenantgate_core::clock::{Clock, MICROS_PER_DAY, ManualClock, Moment, Timestamp};

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let time = clock_gettime(ClockId::Realtime);
        Timestamp(time.tv_sec * 1_000_000 + time.tv_nsec / 1_000)
    }

    fn uptime(&self) -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn boot(&self) -> String {
        // <https://man7.org/linux/man-pages/man4/random.4.html>
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map_or_else(|_| String::new(), |id| id.trim().to_owned())
    }
}

/// Returns the CPU time that this process has taken so far.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
