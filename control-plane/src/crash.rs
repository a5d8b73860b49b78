//! Crash points: places between two steps where a test can have the process die as `kill -9` would have it.
//!
//! They exist only with the feature `failpoints`, which no released build has. A test names a point and when it strikes in
//! the variable `FAILPOINTS`, in the syntax of the crate `fail`: `events-committed=2*off->1*return` kills at the third pass.

/// Dies here, without any clean-up, if a test said so.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "failpoints")]
    {
        let strikes = || {
            fail::fail_point!(name, |_| true);
            false
        };
        if strikes() {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .expect("a process may always kill itself");
            // The signal is on its way to this very process.
            loop {
                std::thread::park();
            }
        }
    }
    #[cfg(not(feature = "failpoints"))]
    let _: &'static str = name;
}

/// Reads `FAILPOINTS`. Keep the value for as long as the points are to be armed.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
