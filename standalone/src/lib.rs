//! Switchboard in one process, and the guided tour of it.

#![recursion_limit = "512"]

pub mod embedded;
#[cfg(feature = "sandbox")]
pub mod tour;

/// Until somebody presses Ctrl-C or the process is told to end.
///
/// # Errors
/// If the process can't listen for signals.
pub async fn interrupted() -> anyhow::Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed?,
        _ = terminated.recv() => {}
    }
    Ok(())
}
