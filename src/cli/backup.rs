//! `kiln backup`: everything that a site's server cannot make again, in one file: the ledger as it is
//! at one moment (also while `kiln serve` writes it), keys, secrets and site. Images, the builder's
//! key and what nodes keep are not in it.

use super::exit::{Exit, error};
use super::{output, places, restore, secrets, serve};
use crate::image::id::Digest;
use crate::ledger::backup::{self, Manifest, Member};
use crate::ledger::sqlite;
use crate::sys::{clock, files};
use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::io::{BufWriter, Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes ledger, keys, secrets and site of a server to one file, also while it runs
#[derive(clap::Args)]
pub struct Arguments {
    /// The file to write; it must not exist. Whoever can read it has every secret of the site
    file: PathBuf,
    /// The site's file, as `serve` has it
    #[arg(long, value_name = "FILE")]
    site: PathBuf,
    /// The server's state: ledger and keys [default: /var/lib/kiln]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The site's secrets [default: secrets.toml beside the site, if it exists]
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
}

/// A member, and where its bytes come from.
pub(super) struct Piece {
    pub member: Member,
    pub from: Box<dyn Read>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    output::text(&backup(arguments)?)
}

/// Writes the backup; returns what there is to say of it.
pub(super) fn backup(arguments: &Arguments) -> Result<String> {
    let file = &arguments.file;
    if file.symlink_metadata().is_ok() {
        return Err(exists(file));
    }
    let state = places::state(arguments.state.clone());
    restore::refuse_unfinished(&state)?;
    let (site, site_text) = serve::read_site_text(&arguments.site)?;
    let secrets_text = match secrets::file_of(arguments.secrets.as_deref(), &arguments.site) {
        Some(path) => Some(read_secrets(&path)?),
        None => {
            eprintln!("note: no secrets.toml beside {}: the backup holds no secrets", arguments.site.display());
            None
        }
    };
    let ledger = state.join(backup::LEDGER);
    if !ledger.is_file() {
        let next = "name the folder that kiln serve has with --state";
        return Err(error(Exit::Usage, format!("there is no ledger in {}; next: {next}", state.display())));
    }
    let work = restore::private_folder(folder_of(file))?;
    let copy = work.path().join(backup::LEDGER);
    let head = sqlite::snapshot(&ledger, &copy)?;

    let mut pieces = vec![of_file(backup::LEDGER, &copy)?];
    for name in backup::KEYS {
        pieces.push(of_bytes(name, files::read_bounded(&state.join(name), serve::keys::KEY_MAX_BYTES)?));
    }
    pieces.extend(secrets_text.map(|text| of_bytes(backup::SECRETS, text.into_bytes())));
    pieces.push(of_bytes(backup::SITE, site_text.into_bytes()));
    let size = write(file, &site.cluster.name, head, pieces)?;
    Ok(format!(
        "{}: cluster {}, ledger at revision {head}, {}; keep it where you keep secrets\n",
        file.display(),
        site.cluster.name,
        output::size(size)
    ))
}

fn exists(file: &Path) -> anyhow::Error {
    error(Exit::Refused, format!("{} exists; a backup replaces nothing", file.display()))
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// As they stand in the file, comments too, but only if the server would take them.
fn read_secrets(path: &Path) -> Result<String> {
    let text = secrets::read_text(path)?;
    crate::site::secrets::parse(&text, &path.display().to_string())?;
    Ok(text)
}

pub(super) fn of_bytes(name: &str, bytes: Vec<u8>) -> Piece {
    let member = Member { name: name.into(), size: bytes.len() as u64, sha256: Digest::of(&bytes) };
    Piece { member, from: Box::new(Cursor::new(bytes)) }
}

pub(super) fn of_file(name: &str, path: &Path) -> Result<Piece> {
    let sha256 = Digest(files::hash_file(path)?);
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("asking for the size of {}", path.display()))?.len();
    Ok(Piece { member: Member { name: name.into(), size, sha256 }, from: Box::new(file) })
}

/// Writes the archive; whole or absent, and readable by its owner only. Returns its size.
pub(super) fn write(file: &Path, cluster: &str, head: u64, pieces: Vec<Piece>) -> Result<u64> {
    let writing = || format!("writing {}", file.display());
    let made_ms = clock::now_ms();
    let members = pieces.iter().map(|piece| piece.member.clone()).collect();
    let (manifest, seal) = Manifest::new(cluster, made_ms, head, members).encode().map_err(|e| anyhow!(e))?;
    let frame = [of_bytes(backup::MANIFEST, manifest), of_bytes(backup::SEAL, seal)];
    let mut tmp = tempfile::Builder::new()
        .prefix(files::TMP_PREFIX)
        .permissions(PermissionsExt::from_mode(0o600))
        .tempfile_in(folder_of(file))
        .with_context(writing)?;
    let mut tar = tar::Builder::new(BufWriter::new(tmp.as_file_mut()));
    for mut piece in frame.into_iter().chain(pieces) {
        let mut header = tar::Header::new_gnu();
        header.set_path(&piece.member.name)?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(made_ms / 1000);
        header.set_size(piece.member.size);
        header.set_cksum();
        tar.append(&header, &mut piece.from).with_context(writing)?;
    }
    tar.into_inner().and_then(|mut out| out.flush()).with_context(writing)?;
    tmp.as_file().sync_all().with_context(writing)?;
    let size = tmp.as_file().metadata().with_context(writing)?.len();
    match tmp.persist_noclobber(file) {
        Ok(_) => files::sync_dir(folder_of(file)).map(|()| size),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(file)),
        Err(e) => Err(e.error).with_context(writing),
    }
}
