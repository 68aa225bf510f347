//! `kiln image gc`: frees what no tag, no node and no running bake needs.

use crate::cli::{output, places};
use crate::image::id::{Digest, ImageId};
use crate::image::store::{GcReport, Store};
use crate::sys::files;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Below the server's state: the images that it needs, a JSON list of ids, rewritten by the server
/// whenever that changes: the one each role has, those that nodes run, and the ones before.
pub const IN_USE_FILE: &str = "images-in-use.json";
const IN_USE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Remove images without a name, and blobs that no image needs.
///
/// Kept are: images with a name, those that the server's roles and nodes use, run or used before
/// (from images-in-use.json in the server's state), those named by --keep, and what a bake, a load
/// or a pull that runs right now brings in.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Keep this image too
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    keep: Vec<String>,
    /// The server's state folder [default: /var/lib/kiln]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(store: &Store, arguments: Arguments) -> Result<()> {
    let mut keep = in_use(&places::state(arguments.state))?;
    for image in &arguments.keep {
        keep.push(super::resolve(store, image)?);
    }
    let report = store.gc(&keep, arguments.dry_run)?;
    if arguments.json {
        return output::json(&json!({
            "dry_run": arguments.dry_run,
            "images": report.images,
            "blobs": report.blobs,
            "bytes": report.bytes,
            "dead_writers": report.dead_writers,
        }));
    }
    output::text(&said(&report, arguments.dry_run))
}

fn said(report: &GcReport, dry_run: bool) -> String {
    let would = if dry_run { "would remove" } else { "removed" };
    let mut text: String = report.images.iter().map(|id| format!("{would} image {id}\n")).collect();
    let size = output::size(report.bytes);
    text.push_str(&format!("{would} {} images and {} blobs, {size}\n", report.images.len(), report.blobs.len()));
    if report.dead_writers > 0 {
        text.push_str(&format!("{would} what {} interrupted writers left behind\n", report.dead_writers));
    }
    text
}

/// What the server needs. No file: no server has run here. A file that cannot be read stops
/// everything: it may name what nodes are running from.
fn in_use(state: &Path) -> Result<Vec<ImageId>> {
    let path = state.join(IN_USE_FILE);
    if matches!(path.try_exists(), Ok(false)) {
        return Ok(Vec::new());
    }
    let bytes = files::read_bounded(&path, IN_USE_MAX_BYTES)?;
    serde_json::from_slice::<Vec<Digest>>(&bytes)
        .with_context(|| format!("reading the images in use from {}; nothing was removed", path.display()))
}
