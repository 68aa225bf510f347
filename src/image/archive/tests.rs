use super::*;
use crate::image::testing::image;
use std::fs;
use std::path::Path;

fn store(dir: &Path, name: &str) -> Store {
    Store::open(&dir.join(name)).unwrap()
}

fn saved(dir: &Path) -> (ImageId, Vec<u8>) {
    let store = store(dir, "from");
    let id = image("zed", "test", 1).commit(&store, Some("v1"));
    let mut tar = Vec::new();
    save(&store, &id, &store.names(&id).unwrap(), &mut tar).unwrap();
    (id, tar)
}

/// (name, bytes)
type Entries = Vec<(String, Vec<u8>)>;

/// The archive's entries, for rebuilding a hostile one.
fn entries(tar: &[u8]) -> Entries {
    let mut archive = tar::Archive::new(tar);
    let read = |entry: io::Result<tar::Entry<&[u8]>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

fn pack(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        // Written raw: the crate itself refuses to write a hostile path.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn blob_files(store: &Store) -> usize {
    fs::read_dir(store.path().join("blobs/sha256")).unwrap().count()
}

/// Loading fails with `expected`, and the store is as it was.
fn check_refused(label: &str, tar: &[u8], expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let to = store(dir.path(), "to");
    let other = image("zed", "infra", 3).commit(&to, Some("v1"));
    to.settle().unwrap();
    let (index, blobs) = (fs::read(to.path().join("index.json")).unwrap(), blob_files(&to));
    let error = format!("{:#}", load(&to, tar).expect_err(label));
    assert!(error.contains(expected), "{label}: {error}");
    assert_eq!(fs::read(to.path().join("index.json")).unwrap(), index, "{label}");
    assert_eq!(blob_files(&to), blobs, "{label}");
    assert_eq!(to.verify(&other).unwrap(), Vec::<String>::new(), "{label}");
    assert_eq!(fs::read_dir(to.path().join(".kiln/sessions")).unwrap().count(), 0, "{label}: no temporary file stays");
}

#[test]
fn an_image_goes_through_a_file_with_its_signature_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let (id, tar) = saved(dir.path());
    assert_eq!(saved(dir.path()).1, tar, "the same image gives the same bytes");
    let to = store(dir.path(), "to");
    let loaded = load(&to, &tar[..]).unwrap();
    assert_eq!((loaded.id, loaded.names[0].to_string()), (id, "zed/test:v1".into()));
    assert_eq!(to.resolve("zed/test:v1").unwrap(), id);
    assert_eq!(to.verify(&id).unwrap(), Vec::<String>::new());
    load(&to, &tar[..]).unwrap();
    assert_eq!(to.list().unwrap().len(), 1, "twice is once");
    assert_eq!(to.gc(&[], false).unwrap(), Default::default(), "nothing stray came with it");
}

#[test]
fn another_tools_order_and_folders_load_too() {
    let dir = tempfile::tempdir().unwrap();
    let (id, tar) = saved(dir.path());
    let mut reordered = entries(&tar);
    reordered.reverse();
    reordered.iter_mut().for_each(|(name, _)| *name = format!("./{name}"));
    let to = store(dir.path(), "to");
    assert_eq!(load(&to, &pack(&reordered)[..]).unwrap().id, id);
}

#[test]
fn surplus_blobs_do_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (_, tar) = saved(dir.path());
    let mut more = entries(&tar);
    more.push((blob_name(&Digest::of(b"surplus")), b"surplus".to_vec()));
    let to = store(dir.path(), "to");
    load(&to, &pack(&more)[..]).unwrap();
    assert!(!to.blob_path(&Digest::of(b"surplus")).exists());
}

#[test]
fn hostile_archives_are_refused_and_leave_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (id, good) = saved(dir.path());
    let change = |edit: &dyn Fn(&mut Entries)| {
        let mut list = entries(&good);
        edit(&mut list);
        pack(&list)
    };
    let blob = blob_name(&Digest::of(b"x"));
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "no oci-layout"),
        ("zeros", vec![0; 4096], "no oci-layout"),
        ("not a tar", b"hello world".repeat(100), "reading the archive"),
        ("parent", change(&|l| l.push(("../evil".into(), vec![1]))), "has no place"),
        ("absolute", change(&|l| l.push(("/etc/passwd".into(), vec![1]))), "has no place"),
        ("hidden parent", change(&|l| l.push(("blobs/sha256/../../x".into(), vec![1]))), "has no place"),
        ("stranger", change(&|l| l.push(("readme".into(), vec![1]))), "has no place"),
        ("upper case", change(&|l| l.push((blob.to_uppercase(), vec![1]))), "has no place"),
        ("duplicate", change(&|l| l.push(l[2].clone())), "twice"),
        ("same by another path", change(&|l| l.push((format!("./{}", l[2].0), l[2].1.clone()))), "twice"),
        ("wrong bytes", change(&|l| l.push((blob.clone(), b"y".to_vec()))), "bytes hash to"),
        ("no index", change(&|l| l.retain(|(n, _)| n != "index.json")), "no index.json"),
        ("no layout", change(&|l| l.retain(|(n, _)| n != "oci-layout")), "no oci-layout"),
        ("other layout", change(&|l| l[0].1 = br#"{"imageLayoutVersion":"2"}"#.to_vec()), "layout version"),
        ("bad index", change(&|l| l[1].1 = b"{}".to_vec()), "index is not valid"),
        ("empty index", change(&|l| l[1].1 = Index::default().encode()), "holds 0 images"),
        ("huge index", change(&|l| l[1].1 = vec![b' '; MANIFEST_MAX_BYTES as usize + 1]), "at most"),
        ("no manifest", change(&|l| l.retain(|(n, _)| *n != blob_name(&id))), "reading the image's manifest"),
        ("layer missing", change(&|l| drop(l.pop())), "missing"),
        ("no signature", change(&|l| drop(l.remove(3))), "reading the image's signature"),
        ("cut", good[..good.len() / 2].to_vec(), "archive"),
        ("cut within a blob", good[..good.len() - 1024 - 2000].to_vec(), "archive"),
    ];
    for (label, tar, expected) in rows {
        check_refused(label, &tar, expected);
    }
}

#[test]
fn links_devices_and_extensions_are_refused() {
    use tar::EntryType;
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Fifo,
        EntryType::GNUSparse,
        EntryType::GNULongName,
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_path(blob_name(&Digest::of(b"x"))).unwrap();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_link_name("/etc/passwd").unwrap();
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        check_refused(&format!("{kind:?}"), &builder.into_inner().unwrap(), "plain files only");
    }
}

#[test]
fn a_size_that_the_archive_does_not_hold_is_no_allocation() {
    for size in [1 << 40, u64::MAX / 2] {
        for name in ["index.json".to_string(), blob_name(&Digest::of(b"x"))] {
            let mut header = tar::Header::new_gnu();
            header.set_path(&name).unwrap();
            header.set_size(size);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend([b'x'; 1000]);
            check_refused(&name, &bytes, "archive");
        }
    }
}

#[test]
fn a_signature_by_a_stranger_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (id, good) = saved(dir.path());
    let mut list = entries(&good);
    let manifest = list[2].1.clone();
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let forged = crate::image::signature::wrap(&manifest, &crate::image::sign::sign(&manifest, &stranger));
    list.push((blob_name(&Digest::of(&forged.manifest)), forged.manifest.clone()));
    list.push((blob_name(&Digest::of(&forged.envelope)), forged.envelope));
    let mut index = Index::default();
    index.add(&id, manifest.len() as u64, &Digest::of(&forged.manifest), forged.manifest.len() as u64);
    list[1].1 = index.encode();
    check_refused("stranger", &pack(&list), "none of which this image trusts");
}

#[test]
fn a_corrupt_blob_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let from = store(dir.path(), "from");
    let image = image("zed", "test", 1);
    let id = image.commit(&from, None);
    let layer = Digest::of(&image.blobs[3]);
    fs::write(from.blob_path(&layer), vec![0; image.blobs[3].len()]).unwrap();
    assert!(format!("{:#}", save(&from, &id, &[], io::sink()).unwrap_err()).contains("corrupt"));
    fs::write(from.blob_path(&layer), "short").unwrap();
    assert!(save(&from, &id, &[], io::sink()).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn changed_archives_never_panic_and_never_make_a_bad_image_visible(
        edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 1..20),
        cut in proptest::prelude::any::<proptest::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut tar) = saved(dir.path());
        for (at, byte) in edits {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        tar.truncate(cut.index(tar.len() * 4).max(1));
        let to = store(dir.path(), "to");
        match load(&to, &tar[..]) {
            Ok(loaded) => proptest::prop_assert_eq!(to.verify(&loaded.id).unwrap(), Vec::<String>::new()),
            Err(_) => proptest::prop_assert_eq!((to.list().unwrap().len(), blob_files(&to)), (0, 0)),
        }
    }
}
