//! A worker as it is released refuses the simulator: its certificate chain isn't WhatsApp's.
//!
//! Run twice: with the feature `sandbox` the same dial succeeds, so that the refusal is the certificate check's and
//! nothing else's.
#![recursion_limit = "512"]

use std::sync::Arc;

use async_trait::async_trait;
use data_plane::transport::{Dialer, pacing::LoginPace};
use simulator::{Config, Simulator};
use wacore::{
    net::{HttpClient, HttpRequest, HttpResponse, Transport, TransportEvent, TransportFactory},
    store::InMemoryBackend,
};
use whatsapp_rust::{TokioRuntime, async_channel, bot::Bot, client::ConnectError};

struct Dials(Dialer);

#[async_trait]
impl TransportFactory for Dials {
    async fn create_transport(&self) -> anyhow::Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
        Ok(self.0.dial().await?)
    }
}

struct NoHttp;

#[async_trait]
impl HttpClient for NoHttp {
    async fn execute(&self, _: HttpRequest) -> anyhow::Result<HttpResponse> {
        anyhow::bail!("no HTTP here")
    }
}

async fn dial() -> Result<(), ConnectError> {
    shared::tls::install_provider();
    let sim = Simulator::start(Config::default()).await.unwrap();
    let url = sim.ws_url().parse().unwrap();
    let dialer = Dialer::new(Some(url), LoginPace::new(1_000.try_into().unwrap()));
    let bot = Bot::builder()
        .with_backend_arc(Arc::new(InMemoryBackend::new()))
        .with_transport_factory(Dials(dialer))
        .with_http_client(NoHttp)
        .with_runtime(TokioRuntime)
        .with_version((2, 3000, 1))
        .build()
        .await
        .unwrap();
    let outcome = bot.client().connect().await;
    bot.client().disconnect().await;
    sim.shutdown().await;
    outcome
}

#[cfg(not(feature = "sandbox"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_released_worker_refuses_the_simulator_s_certificate() {
    let refused = format!("{:?}", dial().await.unwrap_err());
    assert!(refused.contains("Handshake") && refused.to_lowercase().contains("cert"), "{refused}");
}

#[cfg(feature = "sandbox")]
#[tokio::test(flavor = "multi_thread")]
async fn with_the_sandbox_feature_the_same_dial_succeeds() {
    dial().await.unwrap();
}
