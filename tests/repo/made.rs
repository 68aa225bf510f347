//! What the tests of repositories make by hand: packages and keys in the shape of the el7 era,
//! archives that no honest tool writes, a web server that may vanish.

use sha2::Digest as _;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAGIC: [u8; 8] = [0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0];
const RSA_HEADER: u32 = 268;
const PGP: u32 = 1002;

/// An RPM header of these tags: type, count, bytes.
fn header(tags: &[(u32, u32, u32, Vec<u8>)]) -> Vec<u8> {
    let (mut table, mut data) = (Vec::new(), Vec::new());
    for (tag, kind, count, value) in tags {
        while *kind == 4 && data.len() % 4 != 0 {
            data.push(0);
        }
        for field in [*tag, *kind, data.len() as u32, *count] {
            table.extend(field.to_be_bytes());
        }
        data.extend(value);
    }
    let counts = [(tags.len() as u32).to_be_bytes(), (data.len() as u32).to_be_bytes()].concat();
    [MAGIC.to_vec(), counts, table, data].concat()
}

/// A package as rpm 4.11 writes it: no digest of the payload in its header. Signed by these keys
/// as CentOS 7's are: over the header, and over header and payload.
pub fn package(name: &str, payload: &[u8], keys: &[&Key]) -> Vec<u8> {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let main = header(&[
        (1000, 6, 1, text(name)),
        (1001, 6, 1, text("1")),
        (1002, 6, 1, text("1")),
        (1004, 9, 1, text("a package")),
        (1006, 4, 1, 1_420_070_400u32.to_be_bytes().to_vec()),
        (1022, 6, 1, text("noarch")),
        (1044, 6, 1, text("x-1-1.src.rpm")),
    ]);
    let both = [&main[..], payload].concat();
    let mut tags = vec![(1000, 4, 1, (both.len() as u32).to_be_bytes().to_vec())];
    for key in keys {
        let (alone, whole) = (key.sign_v3(&main), key.sign_v3(&both));
        tags.push((RSA_HEADER, 7, alone.len() as u32, alone));
        tags.push((PGP, 7, whole.len() as u32, whole));
    }
    let mut signature = header(&tags);
    signature.resize(signature.len().next_multiple_of(8), 0);
    let mut lead = vec![0xed, 0xab, 0xee, 0xdb, 3];
    lead.resize(96, 0);
    [lead, signature, both].concat()
}

/// Where a package has its header's signature.
fn signature(package: &[u8]) -> Range<usize> {
    let number = |at: usize| u32::from_be_bytes(package[at..at + 4].try_into().unwrap()) as usize;
    let (entries, data) = (number(104), 112 + 16 * number(104));
    let at = (0..entries).map(|e| 112 + 16 * e).find(|at| number(*at) == RSA_HEADER as usize).unwrap();
    let start = data + number(at + 8);
    start..start + number(at + 12)
}

/// Leading zeros of a signature are not written: one of 256 is shorter.
pub fn signature_len(package: &Path) -> usize {
    signature(&std::fs::read(package).unwrap()).len()
}

/// Puts the header's signature of one package into another; both are of one length.
pub fn exchange_signature(into: &Path, from: &Path) {
    let (mut bytes, other) = (std::fs::read(into).unwrap(), std::fs::read(from).unwrap());
    let (to, from) = (signature(&bytes), signature(&other));
    bytes[to].copy_from_slice(&other[from]);
    std::fs::write(into, bytes).unwrap();
}

/// An OpenPGP key that vouches for itself with SHA-1, as CentOS 7's does.
pub struct Key {
    pem: PathBuf,
    body: Vec<u8>,
}

const CREATED: [u8; 4] = 1_400_000_000u32.to_be_bytes();
const USER: &[u8] = b"el7 era <old@kiln.example>";

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

/// A number in OpenPGP's form (RFC 4880 §3.2).
fn number(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[bytes.iter().position(|b| *b != 0).unwrap()..];
    let bits = bytes.len() as u16 * 8 - bytes[0].leading_zeros() as u16;
    [&bits.to_be_bytes()[..], bytes].concat()
}

fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[0x80 | (tag << 2) | 1], &(body.len() as u16).to_be_bytes()[..], body].concat()
}

impl Key {
    pub fn new(folder: &Path) -> Key {
        let pem = folder.join("key.pem");
        openssl(&["genrsa", "-out", pem.to_str().unwrap(), "2048"], b"");
        let modulus = openssl(&["rsa", "-noout", "-modulus", "-in", pem.to_str().unwrap()], b"");
        let hex = String::from_utf8(modulus).unwrap().trim().trim_start_matches("Modulus=").to_string();
        let modulus: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let body = [&[4], &CREATED[..], &[1], &number(&modulus), &number(&[1, 0, 1])].concat();
        Key { pem, body }
    }

    fn hashed_body(&self) -> Vec<u8> {
        [&[0x99], &(self.body.len() as u16).to_be_bytes()[..], &self.body].concat()
    }

    fn id(&self) -> Vec<u8> {
        sha1::Sha1::digest(self.hashed_body())[12..].to_vec()
    }

    fn sign(&self, digest: &str, data: &[u8]) -> Vec<u8> {
        number(&openssl(&["dgst", digest, "-sign", self.pem.to_str().unwrap()], data))
    }

    /// The key with its user and its own signature, by SHA-1.
    pub fn public(&self) -> Vec<u8> {
        let head = [&[4, 0x13, 1, 2, 0, 9, 5, 2], &CREATED[..], &[2, 27, 3]].concat();
        let length = (head.len() as u32).to_be_bytes();
        let user = [&[0xb4], &(USER.len() as u32).to_be_bytes()[..], USER].concat();
        let data = [self.hashed_body(), user, head.clone(), vec![4, 0xff], length.to_vec()].concat();
        let left = &sha1::Sha1::digest(&data)[..2];
        let body = [&head[..], &[0, 10, 9, 16], &self.id(), left, &self.sign("-sha1", &data)].concat();
        [packet(6, &self.body), packet(13, USER), packet(2, &body)].concat()
    }

    /// A version 3 signature by SHA-256, as rpm 4.11 makes them.
    pub fn sign_v3(&self, data: &[u8]) -> Vec<u8> {
        let hashed = [&[0][..], &CREATED].concat();
        let data = [data, &hashed].concat();
        let left = &sha2::Sha256::digest(&data)[..2];
        packet(2, &[&[3, 5], &hashed[..], &self.id(), &[1, 8], left, &self.sign("-sha256", &data)].concat())
    }
}

/// A tar archive of plain files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        add(&mut archive, name, tar::EntryType::Regular, "", bytes);
    }
    archive.into_inner().unwrap()
}

/// Names go in raw: the crate's own way would refuse what is hostile.
fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, link: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append(&header, bytes).unwrap();
}

/// Archives that must not be taken, with the words that say why.
pub fn hostile_archives(package: &[u8]) -> Vec<(&'static str, Vec<u8>, Vec<&'static str>)> {
    use tar::EntryType::{Char, Fifo, GNULongName, Link, Regular, Symlink};
    let one = |name: &str, kind, link: &str, bytes: &[u8]| {
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, "a.rpm", Regular, "", package);
        add(&mut archive, name, kind, link, bytes);
        archive.into_inner().unwrap()
    };
    vec![
        ("up", one("../evil.rpm", Regular, "", b"x"), vec!["../evil.rpm", "leaves the archive"]),
        ("up inside", one("a/../../evil.rpm", Regular, "", b"x"), vec!["leaves the archive"]),
        ("absolute", one("/etc/evil", Regular, "", b"x"), vec!["leaves the archive"]),
        ("link out", one("evil.rpm", Symlink, "/etc/passwd", b""), vec!["evil.rpm is a link", "--dereference"]),
        ("link inside", one("evil.rpm", Symlink, "a.rpm", b""), vec!["evil.rpm is a link"]),
        ("hard link out", one("evil.rpm", Link, "../../etc/passwd", b""), vec!["link out of it"]),
        ("hard link to nothing", one("evil.rpm", Link, "b.rpm", b""), vec!["did not come before it"]),
        ("through a link", one("evil", Symlink, "/etc", b""), vec!["evil is a link"]),
        ("device", one("evil", Char, "", b""), vec!["a device or pipe"]),
        ("pipe", one("evil", Fifo, "", b""), vec!["a device or pipe"]),
        ("twice", one("a.rpm", Regular, "", package), vec!["has a.rpm twice"]),
        ("a name without end", one("n", GNULongName, "", &vec![b'n'; 3 << 20]), vec!["more than 1048576 bytes"]),
        ("no package", archive(&[("README", b"x")]), vec!["neither a yum repository nor an RPM package"]),
        ("no archive", b"just text, long enough".repeat(50), vec!["tar archive"]),
        ("empty", archive(&[]), vec!["neither a yum repository"]),
        ("half an index", archive(&[("repo/repodata/x", b"x"), ("repo/a.rpm", package)]), vec!["has no repomd.xml"]),
    ]
}

/// Serves a folder by HTTP on loopback for so many requests; then every connection is dropped.
pub fn serve(folder: PathBuf, requests: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            if count >= requests {
                continue;
            }
            let (mut head, mut byte) = (Vec::new(), [0u8]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let name = head.split(' ').nth(1).unwrap_or("/").trim_start_matches('/');
            let (status, body) = match std::fs::read(folder.join(name)) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    url
}

/// An unsigned apt archive with one package.
pub fn apt_archive(folder: &Path) -> PathBuf {
    let (archive, tree) = (folder.join("apt"), folder.join("tree"));
    let _ = std::fs::remove_dir_all(&archive);
    std::fs::create_dir_all(archive.join("pool")).unwrap();
    std::fs::create_dir_all(archive.join("dists/stable/main/binary-amd64")).unwrap();
    std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    let control = "Package: one\nVersion: 1\nArchitecture: all\nMaintainer: k <k@kiln.example>\nDescription: one\n";
    std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(&tree).arg(archive.join("pool/one_1_all.deb"));
    let output = build.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    apt_index(folder, "1");
    archive
}

/// Its index and release file, in which the package has this version.
pub fn apt_index(folder: &Path, version: &str) {
    let archive = folder.join("apt");
    let deb = std::fs::read(archive.join("pool/one_1_all.deb")).unwrap();
    let sum = kiln::recipe::lock::hex_digest;
    let index = format!(
        "Package: one\nVersion: {version}\nArchitecture: all\nFilename: pool/one_1_all.deb\nSize: {}\nSHA256: {}\n",
        deb.len(),
        sum(&deb)
    );
    let name = "main/binary-amd64/Packages";
    std::fs::write(archive.join("dists/stable").join(name), &index).unwrap();
    // A form that no mirror need carry.
    let absent = format!(" {} 77 {name}.xz\n", sum(b"absent"));
    let head = "Origin: kiln\nDate: Sat, 17 May 2025 09:03:45 UTC\nSHA256:\n";
    let release = format!("{head} {} {} {name}\n{absent}", sum(index.as_bytes()), index.len());
    std::fs::write(archive.join("dists/stable/Release"), release).unwrap();
}
