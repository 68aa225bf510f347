//! Where a repository lies: a folder, or behind a URL. Files are read once, as streams, bounded.

use super::href;
use crate::sys::http::{self, Client, Get};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// A mirror that fails once is asked again; one that is gone is not waited for.
const TRIES: usize = 3;
const READ_BYTES: usize = 256 << 10;

#[derive(Clone)]
pub enum Place {
    Folder(PathBuf),
    /// Without a trailing slash.
    Web(Client, String),
}

/// How a file was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Whole,
    Missing,
    /// It is there, but it cannot be had: why. Only this file is meant.
    Unreadable(String),
}

impl Place {
    /// A path, `file://`, `http://` or `https://`.
    pub fn parse(text: &str) -> Result<Place> {
        let trimmed = text.trim_end_matches('/');
        if trimmed.starts_with("http://") || trimmed.starts_with("https://") {
            return Ok(Place::Web(Client::new(), trimmed.to_string()));
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.contains("://") {
            bail!("{text:?} is neither a folder nor a file, http or https URL");
        }
        Ok(Place::Folder(PathBuf::from(path)))
    }

    /// The place below.
    pub fn below(&self, sub: &str) -> Place {
        match self {
            Place::Folder(dir) => Place::Folder(dir.join(sub)),
            Place::Web(client, url) => Place::Web(client.clone(), format!("{url}/{}", href::encode(sub))),
        }
    }

    pub fn shown(&self) -> String {
        match self {
            Place::Folder(dir) => dir.display().to_string(),
            Place::Web(_, url) => url.clone(),
        }
    }

    /// Hands the file's bytes to `to`, at most `max_bytes` of them: the rest of a longer file is
    /// not read. An error is the place's: a disk or a mirror that fails.
    pub fn stream(&self, href: &str, max_bytes: u64, to: &mut dyn FnMut(&[u8])) -> Result<Found> {
        match self {
            Place::Folder(dir) => stream_file(&dir.join(href), max_bytes, to),
            Place::Web(client, url) => stream_url(client, &format!("{url}/{}", href::encode(href)), max_bytes, to),
        }
    }

    /// A small file's bytes; `None`: it is missing.
    pub fn read(&self, href: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let found = self.stream(href, max_bytes + 1, &mut |chunk| bytes.extend_from_slice(chunk));
        match found.with_context(|| format!("reading {} of {}", href, self.shown()))? {
            Found::Missing => Ok(None),
            Found::Unreadable(why) => bail!("reading {href} of {}: {why}", self.shown()),
            Found::Whole if bytes.len() as u64 > max_bytes => {
                bail!("{href} of {} is larger than {max_bytes} bytes", self.shown())
            }
            Found::Whole => Ok(Some(bytes)),
        }
    }

    /// The file on this machine: itself, or a copy in `scratch`.
    pub fn local(&self, href: &str, max_bytes: u64, scratch: &Path) -> Result<Option<PathBuf>> {
        if let Place::Folder(dir) = self {
            let path = dir.join(href);
            return Ok(path.is_file().then_some(path));
        }
        let copy = scratch.join(super::digest::of(super::digest::Kind::Sha256, href.as_bytes()).hex);
        let mut file = File::create(&copy).with_context(|| format!("creating {}", copy.display()))?;
        let mut failed = None;
        let found = self.stream(href, max_bytes, &mut |chunk| {
            failed = failed.take().or(file.write_all(chunk).err());
        })?;
        if let Some(error) = failed {
            return Err(error).with_context(|| format!("writing {}", copy.display()));
        }
        match found {
            Found::Whole => Ok(Some(copy)),
            Found::Missing => Ok(None),
            Found::Unreadable(why) => bail!("reading {href} of {}: {why}", self.shown()),
        }
    }
}

fn stream_file(path: &Path, max_bytes: u64, to: &mut dyn FnMut(&[u8])) -> Result<Found> {
    match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Found::Missing),
        Err(e) => return Ok(Found::Unreadable(e.to_string())),
        // A pipe would be waited for, a device would never end.
        Ok(meta) if !meta.is_file() => return Ok(Found::Unreadable("is no regular file".into())),
        Ok(_) => {}
    }
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return Ok(Found::Unreadable(e.to_string())),
    };
    let (mut left, mut buffer) = (max_bytes, vec![0u8; READ_BYTES]);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
        match file.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(n) => {
                to(&buffer[..n]);
                left -= n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Ok(Found::Unreadable(e.to_string())),
        }
    }
    Ok(Found::Whole)
}

/// Hands over what comes, up to a limit that is no error.
struct Sink<'a> {
    to: &'a mut dyn FnMut(&[u8]),
    seen: u64,
    max: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = usize::try_from(self.max - self.seen).unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 {
            return Err(std::io::Error::other("enough"));
        }
        (self.to)(&bytes[..room]);
        self.seen += room as u64;
        Ok(room)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn stream_url(client: &Client, url: &str, max: u64, to: &mut dyn FnMut(&[u8])) -> Result<Found> {
    let mut sink = Sink { to, seen: 0, max };
    let mut tried = 0;
    loop {
        tried += 1;
        // What came already is not asked for again: the sink's reader has seen it.
        let get = Get { url, headers: &[], from: sink.seen, max: u64::MAX };
        match client.download(&get, &mut sink, &mut |_, _| {}) {
            Ok(_) => return Ok(Found::Whole),
            Err(_) if sink.seen == max => return Ok(Found::Whole),
            Err(error) => match http::status_of(&error) {
                Some(404 | 410) => return Ok(Found::Missing),
                Some(status) if status < 500 => return Ok(Found::Unreadable(format!("{error:#}"))),
                _ if tried < TRIES => {}
                Some(_) => return Ok(Found::Unreadable(format!("{error:#}"))),
                None => return Err(error.context(format!("the mirror failed {TRIES} times"))),
            },
        }
    }
}
