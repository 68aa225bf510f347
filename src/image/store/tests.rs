use super::*;
use crate::image::testing::{builder, image};
use std::collections::BTreeMap;

fn fresh() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

/// Every file of the store with its content, without our own folder.
fn snapshot(store: &Store) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![store.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with(".kiln") => {}
                true => folders.push(path),
                false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    files
}

#[test]
fn a_store_is_made_in_an_empty_folder_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(&dir.path().join("a/b/store")).unwrap();
    Store::open(&dir.path().join("a/b/store")).unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    Store::open(&dir.path().join("empty")).unwrap();
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter.txt"), "dear").unwrap();
    let error = format!("{:#}", Store::open(&full).err().unwrap());
    assert!(error.contains("is not a store"), "{error}");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1, "nothing was put there");
    assert!(Store::open_existing(&dir.path().join("none")).is_err());
    assert!(!dir.path().join("none").exists());
    fs::write(dir.path().join("empty/oci-layout"), r#"{"imageLayoutVersion":"9"}"#).unwrap();
    assert!(Store::open(&dir.path().join("empty")).is_err(), "a layout of another version");
}

#[test]
fn a_half_made_store_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join(".kiln")).unwrap();
    fs::create_dir_all(dir.path().join("blobs")).unwrap();
    fs::write(dir.path().join(".kiln-tmp-x"), "{").unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().list().unwrap().len(), 0);
}

#[test]
fn an_image_is_seen_after_commit_with_all_that_was_said_of_it() {
    let (_dir, store) = fresh();
    let image = image("zed", "test", 1);
    image.import(&store);
    assert_eq!(store.list().unwrap().len(), 0);
    assert!(store.image(&image.id).is_err(), "only commit makes visible");
    let id = store.commit(&image.manifest, &image.envelope, Some("v1")).unwrap();
    assert_eq!(id, image.id);
    let [entry] = &store.list().unwrap()[..] else { panic!("one image") };
    assert_eq!((entry.id, &entry.names[..]), (id, &["zed/test:v1".to_string()][..]));
    assert_eq!(entry.size, image.manifest.len() as u64 + image.blobs.iter().map(|b| b.len() as u64).sum::<u64>());
    assert_eq!(store.envelope(&id).unwrap(), image.envelope);
    assert_eq!(store.manifest_bytes(&id).unwrap(), image.manifest);
    assert_eq!(store.verify(&id).unwrap(), Vec::<String>::new());
}

#[test]
fn committing_again_changes_nothing_but_may_add_a_tag() {
    let (_dir, store) = fresh();
    let image = image("zed", "test", 1);
    image.commit(&store, Some("v1"));
    let before = snapshot(&store);
    image.commit(&store, Some("v1"));
    image.commit(&store, None);
    assert_eq!(snapshot(&store), before);
    image.commit(&store, Some("zed/test:v2"));
    assert_eq!(store.list().unwrap()[0].names, ["zed/test:v1", "zed/test:v2"]);
}

#[test]
fn commit_refuses_what_is_not_whole_signed_and_nameable() {
    let (_dir, store) = fresh();
    let good = image("zed", "test", 1);
    let check = |manifest: &[u8], envelope: &Envelope, tag: &str, expected: &str| {
        let before = fs::read(store.path().join("index.json")).unwrap();
        let error = format!("{:#}", store.commit(manifest, envelope, Some(tag)).unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(fs::read(store.path().join("index.json")).unwrap(), before);
    };
    for blob in &good.blobs[..good.blobs.len() - 1] {
        store.import_bytes(blob).unwrap(); // all but the last
    }
    check(&good.manifest, &good.envelope, "v1", "missing");
    good.import(&store);
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    check(&good.manifest, &sign::sign(&good.manifest, &stranger), "v1", "none of which this image trusts");
    let other = image("zed", "test", 2);
    check(&good.manifest, &other.envelope, "v1", "another manifest");
    check(&good.manifest, &good.envelope, "zed/infra:v1", "cannot be named");
    check(&good.manifest, &good.envelope, "a b", "no image name");
    check(b"{}", &good.envelope, "v1", "manifest is not valid");
    fs::write(store.blob_path(&Digest::of(good.blobs.last().unwrap())), "short").unwrap();
    check(&good.manifest, &good.envelope, "v1", "has 5 bytes");
}

#[test]
fn references_find_one_image_or_say_what_there_is() {
    let (_dir, store) = fresh();
    assert!(format!("{:#}", store.resolve("zed/test").unwrap_err()).contains("the store is empty"));
    let (one, two) = (image("zed", "test", 1), image("zed", "test", 2));
    one.commit(&store, Some("latest"));
    two.commit(&store, Some("latest"));
    let resolve = |reference: &str| store.resolve(reference).map_err(|e| format!("{e:#}"));
    assert_eq!(resolve("zed/test"), Ok(two.id), "the tag moved");
    assert_eq!(resolve(&one.id.to_string()), Ok(one.id));
    assert_eq!(resolve(&one.id.hex()), Ok(one.id));
    assert_eq!(resolve(&one.id.hex()[..8]), Ok(one.id));
    let error = resolve("zed/infra").unwrap_err();
    assert!(error.contains("there are: ") && error.contains("zed/test:latest"), "{error}");
    assert!(resolve("zed/test:v9").is_err());
    store.tag(&one.id, "old").unwrap();
    assert_eq!(resolve("zed/test:old"), Ok(one.id));
    assert_eq!(store.untag("zed/test:old").unwrap(), one.id);
    assert!(store.untag("zed/test:old").is_err());
    assert_eq!(resolve(&one.id.hex()), Ok(one.id), "untagged is not gone");
}

#[test]
fn an_ambiguous_prefix_lists_the_candidates() {
    let ids: Vec<Digest> = ["abcd1", "abcd2"].iter().map(|p| format!("{p:0<64}").parse().unwrap()).collect();
    let mut index = Index::default();
    ids.iter().for_each(|id| index.add(id, 1, &Digest::of(&id.0), 1));
    let error = index.resolve(&"abcd".parse().unwrap()).unwrap_err();
    assert!(error.contains("abcd10000000") && error.contains("abcd20000000"), "{error}");
    assert_eq!(index.resolve(&"abcd1".parse().unwrap()), Ok(ids[0]));
}

#[test]
fn verify_names_each_broken_blob() {
    let (_dir, store) = fresh();
    let image = image("zed", "test", 1);
    let id = image.commit(&store, Some("v1"));
    for blob in &image.manifest_parsed().layers {
        fs::write(store.blob_path(&blob.digest), vec![0; blob.size as usize]).unwrap();
    }
    let problems = store.verify(&id).unwrap();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with("kernel: ") && problems[2].starts_with("layer role: "), "{problems:?}");
    image.import(&store);
    assert_eq!(store.verify(&id).unwrap(), Vec::<String>::new(), "importing heals");
    let signature = store.index().unwrap().signature(&id).unwrap();
    fs::remove_file(store.blob_path(&signature)).unwrap();
    assert!(store.verify(&id).unwrap()[0].starts_with("signature: "));
    image.commit(&store, None);
    assert_eq!(store.verify(&id).unwrap(), Vec::<String>::new(), "committing heals the signature");
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let (dir, store) = fresh();
    let before = snapshot(&store);
    let file = dir.path().join("file");
    fs::write(&file, "hello").unwrap();
    let other = Digest::of(b"other");
    assert!(store.import_file(&file, Some(&other)).is_err());
    assert!(store.import_move(&file, Some(&other)).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"hello", "still the caller's");
    assert_eq!(snapshot(&store), before);
    assert_eq!(store.import_move(&file, Some(&Digest::of(b"hello"))).unwrap(), (Digest::of(b"hello"), 5));
    assert!(!file.exists());
    assert_eq!(store.read_blob(&Digest::of(b"hello"), 9).unwrap(), b"hello");
}

#[test]
fn gc_removes_what_nothing_needs() {
    let (_dir, store) = fresh();
    let [tagged, kept, doomed] = [1, 2, 3].map(|n| image("zed", "test", n));
    tagged.commit(&store, Some("v1"));
    kept.commit(&store, None);
    doomed.commit(&store, None);
    store.import_bytes(b"stray").unwrap();
    drop(store); // its session ends
    let store = Store::open(_dir.path().join("store").as_path()).unwrap();
    fs::write(store.path().join(".kiln-tmp-dead"), "x").unwrap();
    let before = snapshot(&store);
    let planned = store.gc(&[kept.id], true).unwrap();
    assert_eq!(snapshot(&store), before, "a dry run changes nothing");
    let report = store.gc(&[kept.id], false).unwrap();
    assert_eq!(report, planned);
    assert_eq!(report.images, [doomed.id]);
    assert!(report.blobs.contains(&Digest::of(b"stray")));
    let left: Vec<_> = store.list().unwrap().into_iter().map(|e| e.id).collect();
    assert!(left.contains(&tagged.id) && left.contains(&kept.id) && left.len() == 2);
    for id in left {
        assert_eq!(store.verify(&id).unwrap(), Vec::<String>::new());
    }
    assert!(!store.path().join(".kiln-tmp-dead").exists());
    assert_eq!(store.gc(&[kept.id], false).unwrap(), GcReport::default(), "nothing more to do");
}

#[test]
fn gc_spares_a_live_writer_and_cleans_up_after_a_dead_one() {
    let (_dir, store) = fresh();
    let image = image("zed", "test", 1);
    let writer = Store::open(store.path()).unwrap();
    image.import(&writer);
    let mut open = writer.writer().unwrap();
    open.write_all(b"half").unwrap();
    assert_eq!(store.gc(&[], false).unwrap(), GcReport::default());
    open.write_all(b" and half").unwrap();
    open.finish(None).unwrap();
    image.commit(&writer, None);
    assert_eq!(store.gc(&[], false).unwrap().images, [], "untagged, but its writer lives");
    drop(writer);
    assert_eq!(store.gc(&[], false).unwrap().images, [image.id]);
    // A dead writer: a session whose lock nobody holds.
    let dead = store.path().join(".kiln/sessions/1-dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    fs::write(dead.join("tmp-x"), "half").unwrap();
    assert_eq!(store.gc(&[], false).unwrap().dead_writers, 1);
    assert!(!dead.exists());
}

#[test]
fn a_claim_keeps_a_blob_that_was_there() {
    let (_dir, store) = fresh();
    let (digest, _) = Store::open(store.path()).unwrap().import_bytes(b"cached").unwrap();
    let writer = Store::open(store.path()).unwrap();
    assert_eq!(writer.claim(&digest).unwrap(), Some(6));
    assert_eq!(writer.claim(&Digest::of(b"absent")).unwrap(), None);
    assert_eq!(store.gc(&[], false).unwrap().blobs, []);
    drop(writer);
    assert_eq!(store.gc(&[], false).unwrap().blobs, [digest]);
}

#[test]
fn other_tools_rows_are_kept_and_their_blobs_live() {
    let (_dir, store) = fresh();
    let ours = image("zed", "test", 1);
    ours.commit(&store, Some("v1"));
    let layer = store.import_bytes(b"foreign layer").unwrap().0;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{layer}","size":13}},"layers":[{{"digest":"{layer}","size":13}}]}}"#
    );
    let (foreign, size) = store.import_bytes(manifest.as_bytes()).unwrap();
    let path = store.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let rows = index["manifests"].as_array_mut().unwrap();
    // As an OCI 1.0 tool rewrites them.
    rows.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("artifactType")));
    rows.push(serde_json::json!({
        "mediaType": MEDIA_MANIFEST, "digest": foreign.to_string(), "size": size,
        "platform": {"os": "linux"}, "annotations": {"org.opencontainers.image.ref.name": "theirs"},
    }));
    rows.push(serde_json::json!({"mediaType": "x/y", "digest": "sha512:00", "size": 1}));
    index["annotations"] = serde_json::json!({"who": "them"});
    fs::write(&path, index.to_string()).unwrap();
    let dir = store.path().to_path_buf();
    drop(store);

    let store = Store::open(&dir).unwrap();
    assert_eq!(store.resolve("zed/test:v1").unwrap(), ours.id, "without artifactType");
    let other = image("zed", "test", 2);
    other.commit(&store, Some("v2"));
    assert_eq!(store.gc(&[], false).unwrap().images, []);
    assert_eq!(store.verify(&ours.id).unwrap(), Vec::<String>::new());
    assert!(store.blob_path(&layer).exists() && store.blob_path(&foreign).exists());
    let index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(index["annotations"]["who"], "them");
    let theirs = index["manifests"].as_array().unwrap().iter().find(|r| r["digest"] == foreign.to_string()).unwrap();
    assert_eq!(theirs["platform"]["os"], "linux");
}

#[test]
fn writers_and_collectors_at_once_lose_nothing() {
    let (_dir, store) = fresh();
    let root = store.path();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                Store::open(root).unwrap().gc(&[], false).unwrap();
                rounds += 1;
            }
            rounds
        });
        let writers: Vec<_> = (0..4u8)
            .map(|writer| {
                scope.spawn(move || {
                    for round in 0..6u8 {
                        let store = Store::open(root).unwrap();
                        // Two writers each make the same images: they meet at every blob.
                        let image = image("zed", "test", writer / 2 * 10 + round);
                        image.import(&store);
                        image.commit(&store, Some(&format!("v{}-{round}", writer / 2)));
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(collector.join().unwrap() > 0);
    });
    let images = store.list().unwrap();
    assert_eq!(images.len(), 12);
    for entry in images {
        assert_eq!(store.verify(&entry.id).unwrap(), Vec::<String>::new(), "{:?}", entry.names);
    }
}

#[test]
fn the_signer_of_the_tests_is_the_images_own() {
    assert_eq!(image("zed", "test", 1).config.builders, [sign::public_text(&builder().verifying_key())]);
}

proptest::proptest! {
    #[test]
    fn a_hostile_index_is_refused_or_read_but_never_panics(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        text in r#"\{"schemaVersion":2,"manifests":\[(\{"mediaType":"[a-z/]{0,9}","digest":"(sha256:)?[a-f0-9./]{0,70}","size":[0-9]{1,22}\}){0,2}\]\}"#,
    ) {
        let (_dir, store) = fresh();
        for content in [&bytes[..], text.as_bytes()] {
            fs::write(store.path().join("index.json"), content).unwrap();
            let _ = (store.list(), store.resolve("zed/test"), store.resolve("abcd"), store.gc(&[], true));
        }
    }
}
