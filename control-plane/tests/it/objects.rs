//! Files in a real S3 server: whole or not there, whatever becomes of the server.

use std::{
    fs::File,
    io::{Seek, Write},
    time::Duration,
};

use control_plane::objects::{ObjectError, Objects};
use futures_util::StreamExt;

use crate::{
    fleet::until,
    s3_server::{ACCESS_KEY, S3Server, Store, settings},
};

/// More than one part of an upload.
const LONG: u32 = 64 << 20;

fn file(length: u32) -> (File, Vec<u8>) {
    let data: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&data).unwrap();
    file.rewind().unwrap();
    (file, data)
}

async fn content(objects: &Objects, name: &str) -> Result<Vec<u8>, ObjectError> {
    let mut reading = objects.read(name).await?;
    let mut content = Vec::new();
    while let Some(part) = reading.content.next().await {
        content.extend_from_slice(&part?);
    }
    assert_eq!(content.len() as u64, reading.bytes);
    Ok(content)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_in_s3_read_replaced_and_deleted() {
    shared::tls::install_provider();
    let Some(Some(settings)) = Store::S3.settings() else { return };
    let objects = Objects::new(&settings).unwrap();
    assert!(matches!(content(&objects, "exports/a.zip").await, Err(ObjectError::Missing)));
    for (name, length) in [("exports/a.zip", 5), ("exports/a.zip", 0), ("exports/long.zip", LONG)] {
        let (file, data) = file(length);
        assert_eq!(objects.store(name, file).await.unwrap(), u64::from(length));
        assert!(content(&objects, name).await.unwrap() == data, "{length}");
    }
    for name in ["exports/a.zip", "exports/a.zip", "exports/long.zip"] {
        objects.delete(name).await.unwrap();
    }
    assert!(matches!(content(&objects, "exports/a.zip").await, Err(ObjectError::Missing)));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_credentials_and_a_missing_bucket_are_told_as_such() {
    shared::tls::install_provider();
    let Some(server) = S3Server::start().await else { return };
    for length in [5, LONG] {
        let refused = Objects::new(&settings(&server.endpoint(), "sentinel", "objects")).unwrap();
        let told = refused.store("a.zip", file(length).0).await.unwrap_err();
        assert!(matches!(told, ObjectError::Refused) && !format!("{told:?}").contains("sentinel"), "{told:?}");
        assert!(matches!(content(&refused, "a.zip").await, Err(ObjectError::Refused)));
        assert!(matches!(refused.delete("a.zip").await, Err(ObjectError::Refused)));
        let nowhere = Objects::new(&settings(&server.endpoint(), ACCESS_KEY, "missing")).unwrap();
        let told = nowhere.store("a.zip", file(length).0).await.unwrap_err();
        assert!(matches!(told, ObjectError::NoBucket), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_half_way_leaves_the_old_file_or_none_and_no_half() {
    shared::tls::install_provider();
    let Some(mut server) = S3Server::start().await else { return };
    let objects = Objects::new(&settings(&server.endpoint(), ACCESS_KEY, "objects")).unwrap();
    let (short, old) = file(1000);
    objects.store("kept.zip", short).await.unwrap();
    for (name, kept) in [("kept.zip", Some(&old)), ("new.zip", None)] {
        let before = server.holds();
        // What is stored comes to its end only after the server's.
        let (from, mut to) = std::io::pipe().unwrap();
        let (killed, wait) = std::sync::mpsc::channel();
        let writing = std::thread::spawn(move || {
            let part = vec![7; 24 << 20];
            to.write_all(&part).unwrap();
            wait.recv().unwrap();
            // Nobody may read on.
            let _read = to.write_all(&part);
        });
        let storing = tokio::spawn({
            let objects = objects.clone();
            async move { objects.store(name, File::from(std::os::fd::OwnedFd::from(from))).await }
        });
        until("some parts are there", async || (server.holds() > before + (8 << 20)).then_some(())).await;
        server.kill();
        killed.send(()).unwrap();
        let told = tokio::time::timeout(Duration::from_secs(60), storing).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(told, ObjectError::Unavailable), "{told:?}");
        writing.join().unwrap();
        assert!(matches!(content(&objects, name).await, Err(ObjectError::Unavailable)), "nobody answers");
        server.start_again().await;
        match (content(&objects, name).await, kept) {
            (Ok(found), Some(kept)) => assert!(found == *kept, "{} bytes", found.len()),
            (Err(ObjectError::Missing), None) => {}
            (found, _) => panic!("{name}: {:?}", found.map(|found| found.len())),
        }
        let (again, data) = file(LONG);
        objects.store(name, again).await.unwrap();
        assert!(content(&objects, name).await.unwrap() == data);
    }
}
