//! `kiln image save`, `load`, `push` and `pull`: images from one machine to another.

use crate::cli::exit::{self, Exit};
use crate::cli::{output, places};
use crate::image::archive;
use crate::image::manifest::Descriptor;
use crate::image::reference::{Name, Reference};
use crate::image::registry::{self, Credentials, Progress};
use crate::image::remote::Remote;
use crate::image::store::Store;
use crate::sys::clock;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{self, File, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A line of progress at most so often.
const PROGRESS_EVERY_MS: u64 = 200;

/// Write an image and its signature to one file
#[derive(clap::Args)]
pub struct Save {
    image: String,
    /// `-`: standard output
    file: PathBuf,
}

/// Read an image from a file that `save` wrote
#[derive(clap::Args)]
pub struct Load {
    /// `-`: standard input
    file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Push an image and its signature to a registry
#[derive(clap::Args)]
pub struct Push {
    image: String,
    /// [http://]host[:port]/repository[:tag]
    reference: String,
    #[command(flatten)]
    events: Events,
}

/// Pull an image from a registry; by a tag it gets that tag here too
#[derive(clap::Args)]
pub struct Pull {
    /// [http://]host[:port]/repository[:tag|@digest]
    reference: String,
    /// Print one JSON document at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    events: Events,
}

#[derive(clap::Args)]
struct Events {
    /// Print progress as one JSON object a line
    #[arg(long, value_enum, value_name = "FORMAT")]
    events: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Json,
}

pub fn save(store: &Store, arguments: &Save) -> Result<()> {
    let id = super::resolve(store, &arguments.image)?;
    // Named by a name it travels under that name; named by its id under all that it has.
    let names = match arguments.image.parse() {
        Ok(Reference::Name(name)) => vec![name],
        _ => store.names(&id)?,
    };
    let path = &arguments.file;
    if path == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(exit::error(Exit::Usage, "an archive is not for a terminal: name a file or redirect"));
        }
        return archive::save(store, &id, &names, io::BufWriter::new(io::stdout().lock()));
    }
    let writing = || format!("writing {}", path.display());
    if path.exists() && !path.is_file() {
        let device = File::options().write(true).open(path).with_context(writing)?;
        return archive::save(store, &id, &names, device).with_context(writing);
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let permissions = Permissions::from_mode(0o644);
    let tmp = tempfile::Builder::new().prefix(".kiln-save-").permissions(permissions).tempfile_in(dir);
    let tmp = tmp.with_context(writing)?;
    archive::save(store, &id, &names, io::BufWriter::with_capacity(1 << 20, tmp.as_file())).with_context(writing)?;
    tmp.as_file().sync_all().with_context(writing)?;
    tmp.persist(path).with_context(writing)?;
    Ok(())
}

pub fn load(store: &Store, arguments: &Load) -> Result<()> {
    let path = &arguments.file;
    let loaded = if path == Path::new("-") {
        archive::load(store, io::stdin().lock()).context("loading standard input")?
    } else {
        let loading = || format!("loading {}", path.display());
        let metadata = fs::metadata(path).with_context(loading)?;
        if metadata.is_dir() {
            return Err(exit::error(Exit::Usage, format!("{} is a folder, not an image archive", path.display())));
        }
        archive::load(store, File::open(path).with_context(loading)?).with_context(loading)?
    };
    report(&loaded.id.to_string(), &loaded.names, arguments.json)
}

pub fn push(store: &Store, arguments: &Push) -> Result<()> {
    let id = super::resolve(store, &arguments.image)?;
    let remote = parse(&arguments.reference)?;
    let mut teller = Teller::new(&arguments.events);
    registry::push(store, &id, &remote, credentials(&remote)?, &mut |blob, state| teller.tell(blob, state))?;
    teller.end();
    if arguments.events.events.is_none() {
        output::text(&format!("{id} is at {remote}\n"))?;
    }
    Ok(())
}

pub fn pull(store: &Store, arguments: &Pull) -> Result<()> {
    let remote = parse(&arguments.reference)?;
    let mut teller = Teller::new(&arguments.events);
    let pulled = registry::pull(store, &remote, credentials(&remote)?, &mut |blob, state| teller.tell(blob, state))?;
    teller.end();
    for signer in &pulled.signers {
        eprintln!("signed by builder {signer}");
    }
    report(&pulled.id.to_string(), pulled.name.as_slice(), arguments.json)
}

fn parse(reference: &str) -> Result<Remote> {
    reference.parse().map_err(|e| exit::error(Exit::Usage, e))
}

fn credentials(remote: &Remote) -> Result<Option<Credentials>> {
    Credentials::find(&places::registry_credentials(), &remote.host)
}

fn report(id: &str, names: &[Name], as_json: bool) -> Result<()> {
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    match as_json {
        true => output::json(&json!({ "id": id, "names": names })),
        false => output::text(&format!("{id}{}\n", names.iter().map(|n| format!(" {n}")).collect::<String>())),
    }
}

/// Tells a transfer: objects for a program, one moving line on a terminal, else a line a blob.
struct Teller {
    json: bool,
    terminal: bool,
    last_ms: u64,
    open: bool,
}

impl Teller {
    fn new(events: &Events) -> Teller {
        Teller { json: events.events.is_some(), terminal: io::stderr().is_terminal(), last_ms: 0, open: false }
    }

    fn tell(&mut self, blob: &Descriptor, progress: Progress) {
        let now = clock::now_ms();
        if matches!(progress, Progress::Moved(_)) && now.saturating_sub(self.last_ms) < PROGRESS_EVERY_MS {
            return;
        }
        self.last_ms = now;
        let (state, moved) = match progress {
            Progress::Cached => ("cached", blob.size),
            Progress::Moved(bytes) => ("progress", bytes),
            Progress::Done => ("done", blob.size),
        };
        if self.json {
            let event = json!({ "t": now, "stage": blob.label(), "state": state, "bytes": moved, "total": blob.size });
            let _ = output::text(&format!("{event}\n")); // a listener that went away stops nothing
            return;
        }
        let line = match progress {
            Progress::Cached => format!("{}: there already", blob.label()),
            Progress::Moved(bytes) => {
                format!("{}: {} of {}", blob.label(), output::size(bytes), output::size(blob.size))
            }
            Progress::Done => format!("{}: {}", blob.label(), output::size(blob.size)),
        };
        match (self.terminal, state) {
            (true, "progress") => {
                eprint!("\r\x1b[K{line}");
                let _ = io::stderr().flush();
                self.open = true;
            }
            (true, _) => {
                eprintln!("\r\x1b[K{line}");
                self.open = false;
            }
            (false, "progress") => {}
            (false, _) => eprintln!("{line}"),
        }
    }

    fn end(&self) {
        if self.open {
            eprintln!();
        }
    }
}
