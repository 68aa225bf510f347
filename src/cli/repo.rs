//! `kiln repo`: package repositories as users have them, checked and taken in.

use super::exit::{self, Exit};
use super::{output, places};
use crate::repo::finding::{Finding, Report};
use crate::repo::gpgv::Keyring;
use crate::repo::pin::{Import, Pinned};
use crate::repo::place::Place;
use crate::repo::verify::{apt, yum};
use crate::repo::{import as taking, layout};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Folders below the one that was named, in which repositories are looked for.
const DEPTH_MAX: usize = 8;
const REPOSITORIES_MAX: usize = 1000;

/// Package repositories.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List the repositories that were imported
    Ls {
        /// Where imports lie; else KILN_REPOS, /var/lib/kiln/repos, or below $XDG_DATA_HOME
        #[arg(long, value_name = "DIR")]
        repos: Option<PathBuf>,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Check every metadata file and package against checksum, size, signature and header
    Verify {
        /// A folder (all yum repositories and apt suites in it), or the URL of one repository or suite
        #[arg(required = true, value_name = "DIR|URL")]
        places: Vec<String>,
        /// Public keys, armoured or binary: everything must be signed by one of them
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Take in repositories from a tarball or a folder, make an index where there is none, pin them
    Import {
        /// A tar archive (plain, gz, xz, bz2 or zst) or a folder
        #[arg(value_name = "FILE.tar.gz|DIR")]
        source: PathBuf,
        /// The import's name; else the file's
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// Where imports lie; else KILN_REPOS, /var/lib/kiln/repos, or below $XDG_DATA_HOME
        #[arg(long, value_name = "DIR")]
        repos: Option<PathBuf>,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Verb::Ls { repos, json } => list(&places::repos(repos), json),
        Verb::Verify { places, key, json } => verify(&places, &key, json),
        Verb::Import { source, name, repos, json } => import(&source, name.as_deref(), &places::repos(repos), json),
    }
}

enum Repository {
    Yum(Place),
    Apt(apt::Suite),
}

fn usage(error: anyhow::Error) -> anyhow::Error {
    exit::error(Exit::Usage, format!("{error:#}"))
}

fn verify(places: &[String], keys: &[PathBuf], json: bool) -> Result<()> {
    let keyring = if keys.is_empty() { None } else { Some(Keyring::open(keys).map_err(usage)?) };
    let mut repositories = Vec::new();
    for text in places {
        let place = Place::parse(text).map_err(usage)?;
        let found = find(&place)?;
        if found.is_empty() {
            let text = format!(
                "{text}: neither repodata/repomd.xml nor a Release file lies there; \
                 kiln repo import makes an index for a folder of packages"
            );
            return Err(exit::error(Exit::Usage, text));
        }
        repositories.extend(found);
    }
    let mut reports = Vec::new();
    for repository in &repositories {
        let report = match repository {
            Repository::Yum(place) => yum::verify(place, keyring.as_ref()),
            Repository::Apt(suite) => apt::verify(suite, keyring.is_some().then_some(keys)),
        };
        let mut report = report.with_context(|| format!("verifying {}", shown(repository)))?;
        if let Repository::Yum(Place::Folder(dir)) = repository {
            check_pin(dir, &mut report)?;
        }
        if !json {
            output::text(&text_of(&report))?;
        }
        reports.push(report);
    }
    if json {
        output::json(&Document { repositories: reports.iter().map(Json::of).collect() })?;
    }
    let problems: u64 = reports.iter().map(Report::problem_count).sum();
    if problems == 0 {
        return Ok(());
    }
    let text = format!(
        "{problems} problem(s) in {} of {} repositories; fetch what is damaged again from its source",
        reports.iter().filter(|r| r.problem_count() > 0).count(),
        reports.len()
    );
    Err(exit::error(Exit::Check, text))
}

/// A repository that was imported must still be the one that was pinned.
fn check_pin(dir: &Path, report: &mut Report) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))?;
    for top in dir.ancestors().take(DEPTH_MAX) {
        let Some(import) = taking::pinned(top)? else { continue };
        let path = dir.strip_prefix(top).ok().and_then(|p| p.to_str()).unwrap_or_default();
        let found = format!("sha256:{}", report.metadata);
        match import.metadata(path) {
            Some(pinned) if pinned == found => {}
            Some(pinned) => report.problem("pin", yum::REPOMD, format!("is {found}, it was imported as {pinned}")),
            None => report.problem("pin", yum::REPOMD, format!("was not there when {} was imported", top.display())),
        }
        return Ok(());
    }
    Ok(())
}

const COLUMNS: [&str; 5] = ["URL", "PACKAGES", "SIZE", "INDEX", "METADATA"];

/// A line a repository of an import.
fn rows(folder: &Path, import: &Import) -> Vec<Vec<String>> {
    let row = |r: &Pinned| {
        vec![url(folder, r), r.packages.to_string(), output::size(r.bytes), index(r).into(), r.metadata.clone()]
    };
    import.repositories.iter().map(row).collect()
}

/// What a recipe writes.
fn url(folder: &Path, pinned: &Pinned) -> String {
    match pinned.path.as_str() {
        "" => format!("file://{}", folder.display()),
        path => format!("file://{}/{path}", folder.display()),
    }
}

fn index(pinned: &Pinned) -> &'static str {
    if pinned.made { "made" } else { "theirs" }
}

fn list(into: &Path, json: bool) -> Result<()> {
    let mut imports = Vec::new();
    if into.is_dir() {
        for entry in std::fs::read_dir(into).with_context(|| format!("listing {}", into.display()))? {
            let folder = entry.with_context(|| format!("listing {}", into.display()))?.path();
            let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
            if name.starts_with('.') || !folder.is_dir() {
                continue; // an import that was cut off, the lock
            }
            if let Some(import) = taking::pinned(&folder)? {
                imports.push((name, folder.canonicalize().unwrap_or(folder), import));
            }
        }
    }
    imports.sort_by(|a, b| a.0.cmp(&b.0));
    if json {
        let imports: Vec<JsonImport> = imports.iter().map(|(n, f, i)| JsonImport::of(n, f, None, i)).collect();
        return output::json(&serde_json::json!({ "imports": imports }));
    }
    let rows: Vec<Vec<String>> = imports.iter().flat_map(|(_, folder, import)| rows(folder, import)).collect();
    output::text(&output::table(&COLUMNS, &rows))
}

fn import(source: &Path, name: Option<&str>, into: &Path, json: bool) -> Result<()> {
    let file = source.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = name.unwrap_or_else(|| layout::name_of(file));
    layout::check_name(name).map_err(|why| exit::error(Exit::Usage, why))?;
    if !source.exists() {
        return Err(exit::error(Exit::Usage, format!("{} does not exist", source.display())));
    }
    let outcome = taking::import(source, name, into, &|what| eprintln!("{name}: {what}"))?;
    match outcome {
        taking::Outcome::Unfit(why) => Err(exit::error(Exit::Usage, why)),
        taking::Outcome::Taken(folder) => Err(exit::error(
            Exit::Refused,
            format!("{} is there with other metadata; give another name with --as, or remove it", folder.display()),
        )),
        taking::Outcome::Damaged(reports) => {
            for report in &reports {
                let at = if report.place.is_empty() { name } else { &report.place };
                let lines: String = report.problems().map(|f| line("PROBLEM", f)).collect();
                output::text(&format!("{lines}{at}: {} problem(s)\n", report.problem_count()))?;
            }
            let problems: u64 = reports.iter().map(Report::problem_count).sum();
            let text = format!(
                "{}: {problems} problem(s), so nothing was imported; fetch what is damaged again",
                source.display()
            );
            Err(exit::error(Exit::Check, text))
        }
        taking::Outcome::Done { folder, import, known, warnings } => {
            let folder = folder.canonicalize().unwrap_or(folder);
            if json {
                return output::json(&JsonImport::of(name, &folder, Some(known), &import));
            }
            let mut text: String = warnings.iter().flat_map(Report::warnings).map(|f| line("warning", f)).collect();
            let said = if known { "already imported" } else { "imported" };
            text += &format!("{name}: {said}, {} repositories in {}\n", import.repositories.len(), folder.display());
            text += &output::table(&COLUMNS, &rows(&folder, &import));
            output::text(&(text + "use one in a recipe by its url with trust = \"pinned\", or with --mirror ID=URL\n"))
        }
    }
}

fn shown(repository: &Repository) -> String {
    match repository {
        Repository::Yum(place) => place.shown(),
        Repository::Apt(suite) => suite.place.shown(),
    }
}

/// The repositories at a place; in a folder those further down, too.
fn find(place: &Place) -> Result<Vec<Repository>> {
    if let Place::Folder(dir) = place {
        if !dir.is_dir() {
            return Err(exit::error(Exit::Usage, format!("{} is not a folder", dir.display())));
        }
        let mut found = Vec::new();
        walk(dir, 0, &mut found)?;
        return Ok(found);
    }
    if yum::is_there(place)? {
        return Ok(vec![Repository::Yum(place.clone())]);
    }
    Ok(if apt::is_there(place)? { vec![suite(place)] } else { Vec::new() })
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<Repository>) -> Result<()> {
    if found.len() >= REPOSITORIES_MAX || depth > DEPTH_MAX {
        return Ok(());
    }
    let place = Place::Folder(dir.to_path_buf());
    if dir.join(yum::REPOMD).is_file() {
        found.push(Repository::Yum(place));
    } else if dir.join("InRelease").is_file() || dir.join("Release").is_file() {
        // Indexes lie further down, and release files of their own with them: both are the suite's.
        found.push(suite(&place));
        return Ok(());
    }
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
        if entry.file_type().is_ok_and(|k| k.is_dir()) && entry.file_name() != "repodata" {
            folders.push(entry.path());
        }
    }
    folders.sort();
    folders.iter().try_for_each(|folder| walk(folder, depth + 1, found))
}

/// A suite below `dists/` has its packages beside `dists`; a flat one has them beside its index.
fn suite(place: &Place) -> Repository {
    let up = |text: &str| text.rfind("/dists/").map(|at| text[..at].to_string());
    let archive = match place {
        Place::Folder(dir) => match dir.canonicalize().ok().and_then(|d| up(&d.display().to_string())) {
            Some(top) => Place::Folder(top.into()),
            None => place.clone(),
        },
        Place::Web(client, url) => up(url).map_or(place.clone(), |top| Place::Web(client.clone(), top)),
    };
    Repository::Apt(apt::Suite { place: place.clone(), archive })
}

fn line(what: &str, f: &Finding) -> String {
    format!("{what} {}: {}: {}\n", f.kind, f.object, f.text)
}

fn text_of(report: &Report) -> String {
    let mut text = String::new();
    text.extend(report.warnings().map(|f| line("warning", f)));
    text.extend(report.problems().map(|f| line("PROBLEM", f)));
    if report.more > 0 {
        text += &format!("PROBLEM {} more\n", report.more);
    }
    let state = match report.problem_count() {
        0 => "whole".to_string(),
        n => format!("{n} problem(s)"),
    };
    let signed = match (report.signed, report.packages_signed) {
        (false, 0) => String::new(),
        (metadata, n) => format!(", {}{n} packages signed", if metadata { "metadata and " } else { "" }),
    };
    text + &format!(
        "{} ({}): {state}: {} packages, {}{signed}, metadata sha256:{}\n",
        report.place,
        report.family,
        report.packages,
        output::size(report.bytes),
        report.metadata
    )
}

#[derive(Serialize)]
struct Document<'a> {
    repositories: Vec<Json<'a>>,
}

#[derive(Serialize)]
struct Json<'a> {
    place: &'a str,
    family: &'a str,
    metadata: String,
    metadata_signed: bool,
    packages: u64,
    packages_signed: u64,
    bytes: u64,
    problems: Vec<JsonFinding<'a>>,
    problems_left_out: u64,
    warnings: Vec<JsonFinding<'a>>,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    kind: &'a str,
    object: &'a str,
    text: &'a str,
}

impl<'a> Json<'a> {
    fn of(report: &'a Report) -> Json<'a> {
        let one = |f: &'a Finding| JsonFinding { kind: f.kind, object: &f.object, text: &f.text };
        Json {
            place: &report.place,
            family: report.family,
            metadata: format!("sha256:{}", report.metadata),
            metadata_signed: report.signed,
            packages: report.packages,
            packages_signed: report.packages_signed,
            bytes: report.bytes,
            problems: report.problems().map(one).collect(),
            problems_left_out: report.more,
            warnings: report.warnings().map(one).collect(),
        }
    }
}

#[derive(Serialize)]
struct JsonImport<'a> {
    name: &'a str,
    folder: String,
    /// Of an import: whether it was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<bool>,
    repositories: Vec<JsonImported>,
}

impl JsonImport<'_> {
    fn of<'a>(name: &'a str, folder: &Path, known: Option<bool>, import: &Import) -> JsonImport<'a> {
        let one = |r: &Pinned| JsonImported {
            path: r.path.clone(),
            url: url(folder, r),
            metadata: r.metadata.clone(),
            index: index(r),
            packages: r.packages,
            bytes: r.bytes,
        };
        let repositories = import.repositories.iter().map(one).collect();
        JsonImport { name, folder: folder.display().to_string(), known, repositories }
    }
}

#[derive(Serialize)]
struct JsonImported {
    path: String,
    url: String,
    metadata: String,
    index: &'static str,
    packages: u64,
    bytes: u64,
}
