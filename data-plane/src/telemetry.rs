//! What the data plane counts.
//!
//! No series has a label for a session or a tenant: there are thousands of them.

use metrics::{describe_counter, describe_gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

/// Installs the process's metrics recorder.
///
/// # Errors
/// If there is one already.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    describe_metrics();
    Ok(handle)
}

/// Says what each series means, to the recorder that is installed.
pub fn describe_metrics() {
    describe_gauge!("data_plane_sessions", "Sessions on this worker");
    describe_gauge!("data_plane_sessions_connected", "Sessions on this worker that are connected to WhatsApp");
    describe_counter!("data_plane_messages_received_total", "Messages committed to the outbox");
    describe_counter!("data_plane_messages_acked_total", "Messages that WhatsApp took or refused");
    describe_counter!("data_plane_messages_resent_total", "Tries of messages whose earlier try's outcome isn't known");
    describe_counter!(
        "data_plane_receipts_dropped_total",
        "Receipts dropped because too many came at once, or the outbox was full"
    );
    describe_counter!("data_plane_outbox_shipped_total", "Outbox rows that the control plane has stored");
    describe_counter!("data_plane_ship_failures_total", "Batches of outbox rows that were not accepted");
    describe_counter!("data_plane_rebuilds_total", "Clients built anew because a write or the durability hook failed");
    describe_counter!("data_plane_leases_lost_total", "Leases that ended before they were renewed");
}
