//! What a process takes, as the kernel counts it.

use anyhow::Context;

/// Proportional set size in KiB: what is shared with other processes is counted in part.
pub fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    line.trim().trim_end_matches(" kB").trim().parse().context("Pss isn't a number")
}

/// KiB in MiB.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Seconds of CPU that a process has had, user and system.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    /// `USER_HZ`, which is 100 on every Linux that this runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("stat")?;
    // The name in parentheses may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}
