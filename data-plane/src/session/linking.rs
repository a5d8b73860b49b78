//! Linking other than by QR code: with a code that is typed into the phone, and past a passkey.
//!
//! The library carries both: it makes the code and answers the phone, and it relays WebAuthn's request and answer. The passkey
//! itself is its owner's; nothing here could stand in for it.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Utc;
use shared::wire::{
    linking::{PairingCode, Passkey, PasskeyAnswer},
    session::{Observed, SecretText},
};
use tokio::{sync::watch, time::timeout};
use wacore::pair_code::{PairCodeError, PairCodeRejection, PairCodeUtils};
use whatsapp_rust::{
    pair_code::{PairCodeOptions, PairError},
    passkey::Assertion,
};

use super::{View, client::Link};

/// How long a session that has just been started may take until it can be linked.
const UNTIL_PAIRING: Duration = Duration::from_secs(8);
/// How long WhatsApp may take to answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a session was not linked, or not brought further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkingError {
    /// It isn't being linked: it is linked, or has no connection to WhatsApp now.
    #[error("the session is not being linked")]
    NotPairing,
    /// WhatsApp asks for nothing of this kind now.
    #[error("WhatsApp asks for nothing of this kind")]
    NotAsked,
    /// WhatsApp, or the library on its behalf, says no: the number isn't one, or the assertion doesn't fit.
    #[error("WhatsApp refused")]
    Refused,
    /// Too many codes for this number.
    #[error("WhatsApp throttles codes for this number")]
    Throttled,
    /// No answer.
    #[error("WhatsApp did not answer")]
    NoAnswer,
}

/// Asks WhatsApp for a code. One that is out already is withdrawn: whoever still types it gets nowhere.
///
/// # Errors
/// [`LinkingError`].
pub async fn pairing_code(
    mut view: watch::Receiver<View>,
    mut link: watch::Receiver<Option<Arc<Link>>>,
    phone: &SecretText,
) -> Result<PairingCode, LinkingError> {
    let pairing = async {
        let shown = view.wait_for(|view| view.report.observed != Observed::Starting).await;
        let pairing = shown.is_ok_and(|view| view.report.observed == Observed::Pairing);
        let link = link.wait_for(Option::is_some).await.ok()?.clone()?;
        link.unlinked_client().filter(|_| pairing)
    };
    let client = timeout(UNTIL_PAIRING, pairing).await.ok().flatten().ok_or(LinkingError::NotPairing)?;
    client.cancel_pair_code().await;
    let options = PairCodeOptions { phone_number: phone.expose().to_owned(), ..PairCodeOptions::default() };
    let began = Utc::now();
    let code = timeout(DEADLINE, client.pair_with_code(options))
        .await
        .map_err(|_| LinkingError::NoAnswer)?
        .map_err(|error| refusal(&error))?;
    Ok(PairingCode { code: SecretText::new(code), expires_at: began + PairCodeUtils::code_validity() })
}

fn refusal(error: &PairError) -> LinkingError {
    match (error.rejection(), error) {
        (Some(rejection), _) if rejection != PairCodeRejection::BadRequest && rejection.is_throttled() => {
            LinkingError::Throttled
        }
        (Some(_), _) => LinkingError::Refused,
        (None, PairError::PairCode(PairCodeError::Cancelled | PairCodeError::CodeAlreadyOutstanding { .. })) => {
            LinkingError::Throttled
        }
        (None, PairError::PairCode(_)) => LinkingError::Refused,
        (None, _) => LinkingError::NoAnswer,
    }
}

/// Hands WhatsApp the owner's answer.
///
/// # Errors
/// [`LinkingError`].
pub async fn answer_passkey(
    view: &watch::Receiver<View>,
    link: Option<Arc<Link>>,
    answer: PasskeyAnswer,
) -> Result<(), LinkingError> {
    let asked = view.borrow().passkey.clone();
    let client = link.as_ref().and_then(|link| link.unlinked_client()).ok_or(LinkingError::NotPairing)?;
    let answered = async {
        match (asked, answer) {
            (Some(Passkey::Assertion { .. }), PasskeyAnswer::Assertion { assertion, credential_id }) => {
                let credential_id =
                    URL_SAFE_NO_PAD.decode(credential_id.expose()).map_err(|_| LinkingError::Refused)?;
                let assertion = Assertion { assertion_json: assertion.expose().as_bytes().to_vec(), credential_id };
                client.send_passkey_response(assertion).await.map_err(|_| LinkingError::Refused)
            }
            (Some(Passkey::Confirmation { .. }), PasskeyAnswer::Confirmation) => {
                client.send_passkey_confirmation().await.map_err(|_| LinkingError::Refused)
            }
            _ => Err(LinkingError::NotAsked),
        }
    };
    timeout(DEADLINE, answered).await.unwrap_or(Err(LinkingError::NoAnswer))
}
