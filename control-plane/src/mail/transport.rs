//! How mail leaves: by SMTP, or, in development, into the log.

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, MultiPart},
};
use secrecy::ExposeSecret;
use shared::ids::MailId;

use super::{DEADLINE, Letter};
use crate::config::MailConfig;

/// Settings that mail can't be sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MailConfigError {
    /// The URL has an unknown parameter or no host.
    #[error("SMTP_URL can't be used: smtps://…, smtp://…?tls=required or smtp://…")]
    Url,
    /// The sender is no mailbox.
    #[error("MAIL_FROM can't be used: it must be like Switchboard <switchboard@example.com>")]
    From,
}

/// Why a mail didn't go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server doesn't answer or asks to come again.
    Later(&'static str),
    /// It will never go.
    Never(&'static str),
}

/// What became of a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The server took it.
    Accepted,
    /// There is no server; its link stands in the log.
    Shown,
}

pub(super) struct Transport {
    smtp: Option<AsyncSmtpTransport<Tokio1Executor>>,
    from: Mailbox,
}

impl Transport {
    pub(super) fn new(config: &MailConfig) -> Result<Self, MailConfigError> {
        let smtp = config.smtp_url.as_ref().map(|url| {
            AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret())
                .map(|builder| builder.timeout(Some(DEADLINE / 3)).build())
        });
        Ok(Self {
            smtp: smtp.transpose().map_err(|_| MailConfigError::Url)?,
            from: config.from.parse().map_err(|_| MailConfigError::From)?,
        })
    }

    pub(super) async fn send(&self, id: &MailId, kind: &str, letter: &Letter) -> Result<Sent, Failure> {
        let Some(smtp) = &self.smtp else {
            if let Some(action) = &letter.action {
                tracing::info!(target: "control_plane::mail", kind, link = %action.url, "no SMTP_URL: this mail is not sent, open its link");
            }
            return Ok(Sent::Shown);
        };
        let (text, html) = letter.bodies().map_err(|_| Failure::Never("the template fails"))?;
        let to = letter.to.parse().map_err(|_| Failure::Never("the address can't be mailed to"))?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(letter.subject)
            .message_id(Some(format!("<{}@{}>", id.as_str(), self.from.email.domain())))
            .multipart(MultiPart::alternative_plain_html(text, html))
            .map_err(|_| Failure::Never("the message can't be built"))?;
        match tokio::time::timeout(DEADLINE, smtp.send(message)).await {
            Err(_) => Err(Failure::Later("the mail server took too long")),
            Ok(Ok(_)) => Ok(Sent::Accepted),
            // The server's words can hold the address.
            Ok(Err(error)) if error.is_permanent() => Err(Failure::Never("the mail server refuses it")),
            Ok(Err(error)) if error.is_tls() => Err(Failure::Later("no TLS with the mail server")),
            Ok(Err(_)) => Err(Failure::Later("the mail server can't be reached or asks to wait")),
        }
    }
}
