//! The clock that a lease's deadline is counted on.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Counts on while the machine sleeps, so that a laptop's lid or a suspended virtual machine can't stretch a lease.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
/// The nearest there is.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Time since the machine started.
pub fn since_boot() -> Duration {
    let now = clock_gettime(CLOCK);
    // Neither part is negative on this clock.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}
