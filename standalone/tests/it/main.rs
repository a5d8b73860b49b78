//! The whole system: separate processes, real databases, the real protocol, and somebody who kills things.
#![cfg(feature = "sandbox")]
#![recursion_limit = "512"]

mod baileys;
mod chaos;
mod chaos_sends;
mod exchange;
mod fault_run;
mod fault_table;
mod history;
mod hygiene;
mod idempotency;
mod large_texts;
mod linking;
mod operating;
mod outages;
mod postgres;
mod sent;
mod stack;
mod tenants;
