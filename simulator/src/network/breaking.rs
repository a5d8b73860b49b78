//! The part of the Rust API that makes things go wrong.

use super::{Network, NetworkError};
use crate::connection::Command;
use crate::directory::Companion;
use crate::faults::{Fault, FaultPlan, Garble, LoginFailures, Nacks, Plan, PlanCounts};
use crate::login;
use crate::wire::EndReason;

impl Network {
    /// Breaks a device's connection, or holds its deliveries.
    ///
    /// # Errors
    /// If the device is unknown or, for faults of a connection, not connected.
    pub async fn fault(&self, jid: &str, fault: Fault) -> Result<(), NetworkError> {
        self.with_companion(jid, |companion| {
            if fault == Fault::Mute {
                let link = companion.link.as_ref().ok_or(NetworkError::NotConnected)?;
                companion.faults.muted = Some(link.connection);
                return Ok(());
            }
            let Some((stanza, name, goodbye)) = fault.ending() else {
                companion.mailbox.held = fault == Fault::Hold;
                companion.faults.muted = None;
                companion.wake();
                return Ok(());
            };
            let link = companion.link.as_ref().ok_or(NetworkError::NotConnected)?;
            let order = Command::End { stanza: stanza.map(Box::new), reason: EndReason::Fault(name), goodbye };
            login::end(&link.commands, order);
            Ok(())
        })?
    }

    /// Refuses a device's next logins; `None` takes that back.
    ///
    /// # Errors
    /// If the device is unknown, or the order makes no sense.
    pub async fn refuse_logins(&self, jid: &str, order: Option<LoginFailures>) -> Result<(), NetworkError> {
        if order.as_ref().is_some_and(|order| !(400..600).contains(&order.code) || order.times == Some(0)) {
            return Err(NetworkError::Invalid("code is 400 to 599, and times at least 1"));
        }
        self.with_companion(jid, |companion| companion.faults.login = order)
    }

    /// Refuses a device's next messages; `None` takes that back.
    ///
    /// # Errors
    /// If the device is unknown, or the order makes no sense.
    pub async fn refuse_messages(&self, jid: &str, order: Option<Nacks>) -> Result<(), NetworkError> {
        if order.as_ref().is_some_and(|order| !(400..600).contains(&order.error) || order.times == Some(0)) {
            return Err(NetworkError::Invalid("error is 400 to 599, and times at least 1"));
        }
        self.with_companion(jid, |companion| companion.faults.nacks = order)
    }

    /// Makes the next messages to a device undecryptable.
    ///
    /// # Errors
    /// If the device is unknown.
    pub async fn garble(&self, jid: &str, order: Garble) -> Result<(), NetworkError> {
        self.with_companion(jid, |companion| companion.faults.garble = order.times)
    }

    /// Hurts stanzas of all devices by a plan, until the next order; `None` ends it. Gives the counts of the one before.
    ///
    /// # Errors
    /// If the plan's shares are over 1,000 thousandths, or its times are impossible.
    pub async fn plan_faults(&self, order: Option<FaultPlan>) -> Result<PlanCounts, NetworkError> {
        if order.as_ref().is_some_and(|order| !order.is_valid()) {
            return Err(NetworkError::Invalid("shares add up to at most 1000, and delays are 1 ms to 60 s"));
        }
        let counts = self.planned_faults().await.map(|(_, counts)| counts).unwrap_or_default();
        self.set_plan(order.map(Plan::new));
        Ok(counts)
    }

    /// The plan in force, and how often it struck.
    pub async fn planned_faults(&self) -> Option<(FaultPlan, PlanCounts)> {
        self.plan().map(|plan| (plan.order.clone(), plan.counts()))
    }

    /// Gives the server another static key under the same root, as WhatsApp does now and then. Clients that resume with the
    /// old one are led through the fallback handshake.
    ///
    /// # Errors
    /// [`NetworkError::Internal`] if a certificate can't be signed.
    pub async fn rotate_static_key(&self) -> Result<(), NetworkError> {
        self.authority().rotate().map_err(|_| NetworkError::Internal("signing a certificate"))
    }

    fn with_companion<T>(&self, jid: &str, act: impl FnOnce(&mut Companion) -> T) -> Result<T, NetworkError> {
        let (account, device) = self.device(jid)?;
        let mut state = account.state();
        state.companions.get_mut(&device).map(act).ok_or(NetworkError::UnknownDevice)
    }
}
