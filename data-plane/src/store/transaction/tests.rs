//! A stale write and a claim, interleaved by hand at each step: the stale one never lands.

use std::sync::Arc;

use rstest::rstest;
use sea_orm::{ConnectionTrait, Statement};
use shared::{
    ids::{Incarnation, SessionId},
    seal::DataKey,
};
use tokio::task::JoinHandle;
use wacore::store::traits::{ProtocolStore, SignalStore};

use super::*;
use crate::store::{
    Claim, FencedBackend, JournalWord, Lease, Store, StoreOptions,
    test_database::{On, TestDatabase},
};

const ADDRESS: &str = "15550001111@s.whatsapp.net";

/// Where in the old holder's transaction the new holder's claim arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    BeforeBegin,
    AfterBegin,
    AfterLock,
    AfterWrite,
    AfterCommit,
}

/// An old holder whose lease has ended without its knowledge, and a claimant on a handle of its own.
struct Duel {
    database: TestDatabase,
    old: Arc<FencedBackend>,
    new: Store,
    new_lease: Lease,
    session: SessionId,
    key: DataKey,
}

impl Duel {
    async fn new(on: On) -> Option<Self> {
        let database = TestDatabase::new(on).await?;
        let options = StoreOptions { max_connections: 4, ..StoreOptions::default() };
        let (session, key) = (SessionId::new(), DataKey::generate());
        let store = Store::open_with(&database.url, options.clone()).await.unwrap();
        let lease = Lease::acquire(&store, "old".parse().unwrap(), Incarnation::new()).await.unwrap();
        let Claim::Held(fence) = store.claim(&lease, &session, 1, 1).await.unwrap() else { panic!("not held") };
        let old = store.backend(fence, key.clone(), lease);
        old.put_session(ADDRESS, b"first").await.unwrap();
        // Suspended for so long that the store's clock is past the lease, while its own has not moved.
        database.meddle("UPDATE worker_lease SET until = 0 WHERE worker_id = 'old'").await;
        let new = Store::open_with(&database.url, options).await.unwrap();
        let new_lease = Lease::acquire(&new, "new".parse().unwrap(), Incarnation::new()).await.unwrap();
        Some(Self { database, old, new, new_lease, session, key })
    }

    /// Starts the claim, which answers with what the new holder finds the moment it is granted.
    fn claim(&self) -> JoinHandle<(Arc<FencedBackend>, Vec<u8>)> {
        let (new, lease, session, key) =
            (self.new.clone(), self.new_lease.clone(), self.session.clone(), self.key.clone());
        tokio::spawn(async move {
            let Claim::Held(fence) = new.claim(&lease, &session, 2, 1).await.unwrap() else { panic!("not held") };
            let backend = new.backend(fence, key, lease);
            let found = backend.get_session(ADDRESS).await.unwrap().unwrap().to_vec();
            (backend, found)
        })
    }

    /// Waits until the claim stands before the old holder's lock. SQLite's waiters can't be seen from outside, but
    /// whether its write lock is held can.
    async fn until_blocked(&self, claim: &JoinHandle<(Arc<FencedBackend>, Vec<u8>)>) {
        let outside = self.database.outside().await;
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let blocked = match self.database.on {
                On::Sqlite => {
                    outside.execute_unprepared("PRAGMA busy_timeout = 0").await.unwrap();
                    let free = outside.execute_unprepared("BEGIN IMMEDIATE; ROLLBACK").await.is_ok();
                    !free
                }
                On::Postgres => {
                    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
                                   AND wait_event_type = 'Lock'";
                    let backend = outside.get_database_backend();
                    let waiting = Statement::from_string(backend, waiting);
                    outside.query_one_raw(waiting).await.unwrap().is_some()
                }
            };
            assert!(!claim.is_finished(), "granted while the old holder's transaction has the lock");
            if blocked {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the claim was never held up");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_write_never_lands(
    #[values(On::Sqlite, On::Postgres)] on: On,
    #[values(At::BeforeBegin, At::AfterBegin, At::AfterLock, At::AfterWrite, At::AfterCommit)] at: At,
    #[values(FenceLock::Shared, FenceLock::Alone)] lock: FenceLock,
) {
    let Some(duel) = Duel::new(on).await else { return };
    // SQLite's transaction has the database's only write lock from its beginning; PostgreSQL's has the row's from
    // there on where it asked for it.
    let held_up = match on {
        On::Sqlite => (At::AfterBegin..At::AfterCommit).contains(&at),
        On::Postgres => (At::AfterLock..At::AfterCommit).contains(&at),
    };
    let mut claim = None;
    let mut granted = None;
    let row = duel.old.keys().row(Kind::Session, &[ADDRESS.as_bytes()], b"second").unwrap();

    macro_rules! step {
        ($now:expr) => {
            if at == $now {
                let pending = duel.claim();
                if held_up {
                    duel.until_blocked(&pending).await;
                    claim = Some(pending);
                } else {
                    granted = Some(pending.await.unwrap());
                }
            }
        };
    }

    step!(At::BeforeBegin);
    let begun = Begun::new(duel.old.fence()).await.unwrap();
    step!(At::AfterBegin);
    match begun.lock(lock).await {
        Ok(locked) => {
            assert!(granted.is_none(), "locked although a claim was granted before");
            step!(At::AfterLock);
            locked.put(vec![row]).await.unwrap();
            step!(At::AfterWrite);
            locked.commit().await.unwrap();
            step!(At::AfterCommit);
        }
        Err(refused) => {
            assert!(granted.is_some(), "refused although nobody claimed");
            assert!(matches!(refused, StoreError::Poisoned(Poison::Fenced)));
        }
    }
    if let Some(claim) = claim {
        granted = Some(claim.await.unwrap());
    }
    let (new, found) = granted.unwrap();

    let landed_before = held_up || at == At::AfterCommit;
    assert_eq!(found, if landed_before { b"second".to_vec() } else { b"first".to_vec() });
    // From here on nothing of the old holder lands, by any way in.
    duel.old.put_session(ADDRESS, b"third").await.unwrap_err();
    assert_eq!(*duel.old.poisoned().borrow(), Some(Poison::Fenced));
    let now = new.get_session(ADDRESS).await.unwrap().unwrap();
    assert_eq!(now, found, "what the new holder found at its claim is what is there");
    new.put_session(ADDRESS, b"fourth").await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_write_given_up_before_its_commit_leaves_nothing_and_lets_the_claim_through(
    #[values(On::Sqlite, On::Postgres)] on: On,
) {
    let Some(duel) = Duel::new(on).await else { return };
    let row = duel.old.keys().row(Kind::Session, &[ADDRESS.as_bytes()], b"second").unwrap();
    let locked = Begun::new(duel.old.fence()).await.unwrap().lock(FenceLock::Shared).await.unwrap();
    locked.put(vec![row]).await.unwrap();
    let claim = duel.claim();
    duel.until_blocked(&claim).await;
    drop(locked);
    let (_, found) = claim.await.unwrap();
    assert_eq!(found, b"first");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_write_is_fenced(#[values(On::Sqlite, On::Postgres)] on: On) {
    use shared::wire::session::OnUnknown;
    let Some(duel) = Duel::new(on).await else { return };
    duel.old.store_sent_message(ADDRESS, "A", b"kept").await.unwrap();
    let (new, _) = duel.claim().await.unwrap();
    let stale = || {
        let fence = duel.old.fence().clone();
        let lease = duel.old.lease().clone();
        duel.new.backend(fence, duel.key.clone(), lease)
    };
    let message = shared::ids::MessageId::new();
    let item = crate::store::JournalItem { message_id: &message, wa_id: "A", chat: ADDRESS };
    let ack = shared::wire::outbox::OutboxEvent::ServerAck {
        message_id: message.clone(),
        wa_id: "A".into(),
        error: None,
        at: chrono::Utc::now(),
        tries: 1,
    };
    assert!(stale().put_session(ADDRESS, b"x").await.is_err());
    assert!(stale().delete_session(ADDRESS).await.is_err());
    assert!(stale().store_prekeys_batch(&[(1, bytes::Bytes::from_static(b"x"))], false).await.is_err());
    assert!(stale().take_sent_message(ADDRESS, "A").await.is_err());
    assert!(stale().delete_expired_sent_messages(i64::MAX).await.is_err());
    assert!(stale().touch_tc_token_sender_timestamp(ADDRESS, 1).await.is_err());
    assert!(stale().mark_prekeys_uploaded(&[1]).await.is_err());
    assert!(stale().commit_events(&[ack]).await.is_err());
    assert!(stale().journal_open(&[item], OnUnknown::Resend).await.is_err());
    assert!(
        stale()
            .journal_ack(&[JournalWord { wa_id: "A".into(), error: None, at: chrono::Utc::now() }], &[])
            .await
            .is_err()
    );
    assert!(stale().journal_withdraw(&["A"]).await.is_err());
    assert!(stale().erase_session().await.is_err());
    assert_eq!(new.take_sent_message(ADDRESS, "A").await.unwrap().as_deref(), Some(&b"kept"[..]));
    assert_eq!(duel.new.outbox_len(&duel.session).await.unwrap(), 0);
}
