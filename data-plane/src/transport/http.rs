//! HTTP for the library: media up and down, and the version of WhatsApp Web.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use wacore::net::{HttpClient, HttpRequest, HttpResponse};

/// How long one exchange may take, body included.
const DEADLINE: Duration = Duration::from_secs(60);
/// The largest reply that is read. WhatsApp's app-state blobs and pictures are far smaller; media stream elsewhere.
const MAX_REPLY: usize = 16 << 20;

/// Why an exchange did not happen.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    /// The library asked for something that HTTP hasn't got.
    #[error("not a usable request")]
    Request,
    /// The exchange broke.
    #[error("the exchange failed")]
    Exchange,
    /// The reply is larger than we read.
    #[error("the reply is too large")]
    TooLarge,
}

/// The worker's HTTP client, shared by all sessions.
#[derive(Clone)]
pub struct MediaHttp(reqwest::Client);

impl MediaHttp {
    /// Uses `client`'s connections.
    #[must_use]
    pub fn new(client: reqwest::Client) -> Self {
        Self(client)
    }
}

#[async_trait]
impl HttpClient for MediaHttp {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let method = request.method.parse::<http::Method>().map_err(|_| HttpError::Request)?;
        let mut exchange = self.0.request(method, &request.url).timeout(DEADLINE);
        for (name, value) in &request.headers {
            exchange = exchange.header(name, value);
        }
        if let Some(body) = request.body {
            exchange = exchange.body(body);
        }
        // What reqwest says of a failure quotes the address, and that may hold a token.
        let reply = exchange.send().await.map_err(|_| HttpError::Exchange)?;
        let status_code = reply.status().as_u16();
        let mut body = Vec::new();
        let mut parts = reply.bytes_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| HttpError::Exchange)?;
            if body.len() + part.len() > MAX_REPLY {
                return Err(HttpError::TooLarge.into());
            }
            body.extend_from_slice(&part);
        }
        Ok(HttpResponse { status_code, body })
    }
}
