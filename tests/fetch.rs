//! Fetching an image over loopback from servers that cut, corrupt, stall and lie: what arrives is
//! what the manifest names, or nothing.

use ed25519_dalek::SigningKey;
use kiln::image::fetch::{Pauses, Source};
use kiln::image::id::Digest;
use kiln::image::manifest::{Image, Manifest};
use kiln::image::sign;
use kiln::sys::http::{Client, Timeouts};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a server does to the bodies of its layers.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Every body ends after a third of the whole.
    CutAtThirds,
    /// Every body stalls after a third of the whole.
    StallAtThirds,
    /// As many answers have one wrong byte.
    WrongByte(usize),
    /// Ranges are ignored, the first answer is cut.
    NoRangesCutOnce,
    /// Answers 503 as many times.
    Busy(usize),
}

struct Server {
    base: String,
    /// `PATH RANGE` of every request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>, fault: Fault) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, files) = (seen.clone(), Arc::new(files));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, files) = (log.clone(), files.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &files, fault, &log));
            }
        });
        Server { base, seen }
    }

    fn source(&self) -> Source {
        let timeouts = Timeouts { connect: Duration::from_secs(5), idle: Duration::from_millis(300) };
        let pauses = Pauses { first: Duration::from_millis(5), max: Duration::from_millis(20) };
        Source { base: self.base.clone(), client: Client::new().timeouts(timeouts), pauses }
    }

    fn seen(&self, part: &str) -> Vec<String> {
        self.seen.lock().unwrap().iter().filter(|s| s.contains(part)).cloned().collect()
    }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, fault: Fault, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().and_then(|l| l.split(' ').nth(1).map(String::from)).unwrap_or_default();
    let mut from = 0;
    for line in lines.take_while(|l| !l.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    let nth = {
        let mut log = log.lock().unwrap();
        log.push(format!("{path} {from}"));
        log.iter().filter(|l| l.starts_with(&path)).count()
    };
    let Some(whole) = files.get(&path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        return;
    };
    let fault = if path.contains("/blobs/") && whole.len() > 1000 { fault } else { Fault::None };
    if matches!(fault, Fault::Busy(times) if nth <= times) {
        let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    let mut whole = whole.clone();
    if matches!(fault, Fault::WrongByte(times) if nth <= times) {
        let middle = whole.len() / 2;
        whole[middle] ^= 1;
    }
    let ranged = from > 0 && fault != Fault::NoRangesCutOnce;
    let body = if ranged { &whole[from..] } else { &whole[..] };
    let head = match ranged {
        true => format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", whole.len() - 1, whole.len()),
        false => "200 OK".to_string(),
    };
    let _ = write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
    let third = whole.len() / 3 + 1;
    let sent = match fault {
        Fault::CutAtThirds | Fault::StallAtThirds => body.len().min(third),
        Fault::NoRangesCutOnce if nth == 1 => third,
        _ => body.len(),
    };
    let _ = stream.write_all(&body[..sent]);
    if fault == Fault::StallAtThirds && sent < body.len() {
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// An image of two layers with every file that a server of it has.
fn image(builder: &SigningKey) -> (Image, BTreeMap<String, Vec<u8>>) {
    let bytes = |seed: u32, n: u32| -> Vec<u8> { (0..n).map(|i| (i.wrapping_mul(seed) >> 7) as u8).collect() };
    let config = br#"{"kiln":"0","release":"zed","role":"test","distribution":"debian12","architecture":"amd64",
        "kernel":"6.1","cmdline":[],"systems":[],"controller":false,"epoch":1,"lock":"","squashfs_tools":"",
        "builders":[],"memory_min_mib":512,"unpacked_bytes":1,"packages":[]}"#;
    let blobs =
        [config.to_vec(), b"kernel".to_vec(), b"initramfs".to_vec(), bytes(2654435761, 300_000), bytes(40503, 70_001)];
    let named: Vec<(Digest, u64)> = blobs.iter().map(|b| (Digest::of(b), b.len() as u64)).collect();
    let manifest = Manifest::new(named[0], named[1], named[2], &[("base", named[3]), ("role", named[4])]).encode();
    let image = Image::parse(&manifest).unwrap();
    let mut files: BTreeMap<String, Vec<u8>> =
        blobs.into_iter().map(|b| (format!("/blobs/sha256/{}", Digest::of(&b).hex()), b)).collect();
    let envelope = serde_json::to_vec(&sign::sign(&manifest, builder)).unwrap();
    files.insert(format!("/images/{}/manifest", image.id.hex()), envelope);
    (image, files)
}

fn builder() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn trusted() -> Vec<String> {
    vec![sign::public_text(&builder().verifying_key())]
}

/// Fetches the whole image as the initramfs does.
fn fetch(source: &Source, image: &Image, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut said = Vec::new();
    let found = source.image(image.id, &trusted())?;
    source.config(&found)?;
    for layer in found.layers() {
        source.blob(layer, folder, &mut |text| said.push(text.to_string()))?;
    }
    Ok(said)
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn bodies_that_end_stall_or_begin_anew_still_make_the_layers() {
    let (image, files) = image(&builder());
    for (fault, requests) in [
        (Fault::None, 1),
        (Fault::CutAtThirds, 3),
        (Fault::StallAtThirds, 3),
        (Fault::NoRangesCutOnce, 2),
        (Fault::Busy(2), 3),
        (Fault::WrongByte(1), 2),
    ] {
        let server = Server::start(files.clone(), fault);
        let folder = tempfile::tempdir().unwrap();
        let said = fetch(&server.source(), &image, folder.path()).unwrap();
        for layer in image.layers() {
            let file = folder.path().join(layer.digest.hex());
            assert_eq!(Digest::of(&std::fs::read(file).unwrap()), layer.digest);
            let seen = server.seen(&layer.digest.hex());
            assert_eq!(seen.len(), requests, "{seen:?}");
        }
        assert_eq!(said.len(), 2 * (requests - 1), "every set-back is said: {said:?}");
        assert_eq!(names(folder.path()).len(), 2, "no part is left");
    }
}

#[test]
fn a_cut_fetch_goes_on_where_it_was() {
    let (image, files) = image(&builder());
    let server = Server::start(files, Fault::CutAtThirds);
    let folder = tempfile::tempdir().unwrap();
    fetch(&server.source(), &image, folder.path()).unwrap();
    let path = format!("/blobs/sha256/{}", image.layers()[0].digest.hex());
    assert_eq!(server.seen(&path), [format!("{path} 0"), format!("{path} 100001"), format!("{path} 200002")]);
}

#[test]
fn a_layer_that_is_corrupted_at_its_source_is_refused_and_nothing_of_it_stays() {
    let (image, files) = image(&builder());
    let server = Server::start(files, Fault::WrongByte(usize::MAX));
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", fetch(&server.source(), &image, folder.path()).unwrap_err());
    assert!(error.contains("corrupted") && error.contains(&image.layers()[0].digest.hex()), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    assert_eq!(server.seen(&image.layers()[0].digest.hex()).len(), 3);
}

#[test]
fn a_strangers_image_is_refused_before_anything_else_is_asked_for() {
    let (image, files) = image(&SigningKey::from_bytes(&[8; 32]));
    let server = Server::start(files, Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", fetch(&server.source(), &image, folder.path()).unwrap_err());
    assert!(error.contains("none of which this image trusts"), "{error}");
    assert_eq!(server.seen("/blobs/"), Vec::<String>::new());
}

#[test]
fn another_image_of_the_same_builder_is_not_the_one_that_was_asked_for() {
    let (image, mut files) = image(&builder());
    let asked = Digest::of(b"another");
    let manifest = files.remove(&format!("/images/{}/manifest", image.id.hex())).unwrap();
    files.insert(format!("/images/{}/manifest", asked.hex()), manifest);
    let server = Server::start(files, Fault::None);
    let error = format!("{:#}", server.source().image(asked, &trusted()).unwrap_err());
    assert!(error.contains(&format!("image {} instead of {asked}", image.id)), "{error}");
}

#[test]
fn what_the_server_lacks_or_shortens_is_an_error_and_not_a_loop() {
    let (image, mut files) = image(&builder());
    let layer = &image.layers()[1];
    files.remove(&format!("/blobs/sha256/{}", layer.digest.hex()));
    let server = Server::start(files.clone(), Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", fetch(&server.source(), &image, folder.path()).unwrap_err());
    assert!(error.contains("404"), "{error}");

    files.insert(format!("/blobs/sha256/{}", layer.digest.hex()), vec![0; 5000]);
    let server = Server::start(files, Fault::None);
    assert!(fetch(&server.source(), &image, folder.path()).is_err());
    assert!(!folder.path().join(layer.digest.hex()).exists());
}
