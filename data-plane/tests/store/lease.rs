//! Leases, claims, and who gets through when.

use std::time::{Duration, Instant};

use data_plane::store::{Claim, Lease, LeaseError, Store, StoreError, StoreOptions, Wanted};
use rstest::rstest;
use shared::{
    ids::{Incarnation, SessionId},
    seal::DataKey,
};
use wacore::store::traits::SignalStore;

use crate::harness::{On, Run, TestDatabase, options, until, worker};

fn short() -> StoreOptions {
    StoreOptions { lease_ttl: Duration::from_secs(5), ..options() }
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_store_keeps_its_id_and_opens_from_several_places_at_once(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let opened = futures_util::future::join_all((0..4).map(|_| Store::open_with(&database.url, options()))).await;
    let ids: Vec<_> = opened.into_iter().map(|store| store.unwrap().id().clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let again = Store::open_with(&database.url, options()).await.unwrap();
    again.ping().await.unwrap();
    assert_eq!(*again.id(), ids[0]);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_worker_id_is_taken_while_another_run_holds_it(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let first = Run::start(&database, "w").await;
    let store = Store::open_with(&database.url, options()).await.unwrap();
    let second = Lease::acquire(&store, worker("w"), Incarnation::new()).await;
    assert!(matches!(second, Err(LeaseError::Taken { .. })));
    Lease::acquire(&store, worker("other"), Incarnation::new()).await.unwrap();
    first.lease.release().await.unwrap();
    assert!(!first.lease.is_valid());
    Lease::acquire(&store, worker("w"), Incarnation::new()).await.unwrap();
    assert!(matches!(first.lease.renew().await, Err(LeaseError::Lost)), "the released one is not revived");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_claim_waits_for_the_holders_lease_and_no_longer(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let claimant = Run::start(&database, "b").await;
    let begun = Instant::now();
    let holder = Run::start_with(&database, "a", short()).await;
    holder.hold(&session, 1).await;

    assert!(matches!(claimant.claim(&session, 2).await, Claim::Busy { .. }));
    let renewed = Instant::now();
    holder.lease.renew().await.unwrap();
    until("the claim is granted", || async {
        matches!(claimant.claim(&session, 2).await, Claim::Held(_)).then_some(())
    })
    .await;
    assert!(renewed.elapsed() >= short().lease_ttl, "granted {:?} after the renewal", renewed.elapsed());
    assert!(begun.elapsed() >= short().lease_ttl);
    assert!(!holder.lease.is_valid(), "the holder's own deadline is never later than the store's");
    assert!(matches!(holder.lease.renew().await, Err(LeaseError::Lost)));
    holder.lease.ended().await;

    assert!(matches!(holder.store.claim(&holder.lease, &session, 3, 1).await, Err(StoreError::LeaseEnded)));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_living_holder_learns_at_its_renewal_that_a_session_is_wanted(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (wanted, kept) = (SessionId::new(), SessionId::new());
    let holder = Run::start(&database, "a").await;
    let fence = holder.hold(&wanted, 1).await;
    holder.hold(&kept, 1).await;
    assert_eq!(holder.lease.renew().await.unwrap(), []);

    let claimant = Run::start(&database, "b").await;
    assert!(matches!(claimant.claim(&wanted, 2).await, Claim::Busy { .. }));
    assert_eq!(holder.lease.renew().await.unwrap(), [Wanted { session_id: wanted.clone(), generation: 2 }]);
    fence.release().await.unwrap();
    claimant.hold(&wanted, 2).await;
    assert_eq!(holder.lease.renew().await.unwrap(), []);

    let now = claimant.store.holder(&wanted).await.unwrap().unwrap();
    assert!(now.is_alive());
    assert_eq!((now.generation, now.worker_id), (2, worker("b")));
    assert_eq!(holder.store.holder(&SessionId::new()).await.unwrap(), None);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_claim_that_nobody_uses_is_freed_for_a_newer_generation_and_fenced_off(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let (holder, claimant) = (Run::start(&database, "a").await, Run::start(&database, "b").await);
    let left = holder.open(&session, 1, &DataKey::generate()).await;
    assert!(matches!(claimant.claim(&session, 2).await, Claim::Busy { .. }));
    let wanted = holder.lease.renew().await.unwrap().remove(0);
    claimant.store.release_left(&claimant.lease, &wanted).await.unwrap();
    assert!(matches!(claimant.claim(&session, 2).await, Claim::Busy { .. }), "it isn't the claimant's to free");
    holder.store.release_left(&holder.lease, &wanted).await.unwrap();
    let late = left.put_identity("15550100001@s.whatsapp.net.0", [1; 32]).await;
    assert!(late.is_err() && left.is_poisoned(), "what still ran under it writes nothing more");
    claimant.hold(&session, 2).await;
    holder.store.release_left(&holder.lease, &wanted).await.unwrap();
    assert!(claimant.store.holder(&session).await.unwrap().unwrap().is_alive(), "nor does it touch the newer one");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn only_a_newer_generation_claims(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let (a, b) = (Run::start(&database, "a").await, Run::start(&database, "b").await);
    let fence = a.hold(&session, 5).await;
    a.hold(&session, 5).await;
    fence.release().await.unwrap();
    for generation in [4, 5] {
        let claim = b.claim(&session, generation).await;
        assert!(matches!(claim, Claim::Stale { current_generation: 5 }), "generation {generation}");
    }
    a.hold(&session, 5).await;
    a.hold(&session, 6).await;
    fence.release().await.unwrap();
    assert!(matches!(b.claim(&session, 7).await, Claim::Busy { .. }), "an old fence lets go of nothing new");
    a.lease.release().await.unwrap();
    b.hold(&session, 7).await;
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_claims_at_once_one_is_granted(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let mut runs = Vec::new();
    for name in ["a", "b", "c", "d"] {
        runs.push(Run::start(&database, name).await);
    }
    for generation in 1..6 {
        let claims = futures_util::future::join_all(runs.iter().map(|run| run.claim(&session, generation))).await;
        let mut held: Vec<_> = claims
            .into_iter()
            .filter_map(|claim| if let Claim::Held(fence) = claim { Some(fence) } else { None })
            .collect();
        assert_eq!(held.len(), 1, "generation {generation}");
        held.remove(0).release().await.unwrap();
    }
}
