//! What the tour prints: each step as it happens, and a table of steps and times at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The steps so far.
pub struct Report {
    began: Instant,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    took: Duration,
    passed: bool,
}

impl Report {
    /// Starts the clock.
    pub fn new() -> Self {
        Self { began: Instant::now(), steps: Vec::new() }
    }

    /// Runs one step, prints what it is and what came of it, and remembers how long it took. The step's text is what
    /// the reader is told beside its name.
    pub async fn step<T>(&mut self, name: &'static str, doing: impl Future<Output = Result<(T, String)>>) -> Result<T> {
        let number = self.steps.len() + 1;
        let began = Instant::now();
        let outcome = doing.await;
        let took = began.elapsed();
        self.steps.push(Step { name, took, passed: outcome.is_ok() });
        match outcome {
            Ok((value, told)) => {
                println!("{number:>3}  {name:<44} {:>8}  {told}", millis(took));
                Ok(value)
            }
            Err(error) => {
                println!("{number:>3}  {name:<44} {:>8}  FAILED", millis(took));
                Err(error).with_context(|| format!("step {number}, {name}"))
            }
        }
    }

    /// The table.
    pub fn print(&self) {
        println!("\n  step                                              time  result");
        for step in &self.steps {
            println!("  {:<44} {:>9}  {}", step.name, millis(step.took), if step.passed { "ok" } else { "FAILED" });
        }
        println!("  {:<44} {:>9}", "all", millis(self.began.elapsed()));
    }
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
