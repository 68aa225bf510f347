//! `kiln image diff`: what two images differ in.

use crate::build::compare;
use crate::build::diff::{Blob, Change, Difference, Field, File, Stored};
use crate::cli::exit::{self, Exit};
use crate::cli::{output, places};
use crate::image::store::Store;
use anyhow::Result;
use std::collections::BTreeMap;

/// Of each kind of difference as many are shown, the rest is counted; `--json` has all.
pub const SHOWN_MAX: usize = 50;

/// Say what two images differ in: packages, config, units, files, layers (as root); exit status 4 when they differ
#[derive(clap::Args)]
pub struct Arguments {
    /// release/role[:tag], an id or a unique prefix of one
    a: String,
    b: String,
    /// Print one JSON document, with everything
    #[arg(long)]
    json: bool,
}

pub fn run(store: &Store, arguments: &Arguments) -> Result<()> {
    let (a, b) = (super::resolve(store, &arguments.a)?, super::resolve(store, &arguments.b)?);
    let difference = if a == b {
        Difference::default()
    } else {
        crate::cli::build::isolate()?;
        compare::compare((store, &a), (store, &b), &places::cache())?
    };
    if arguments.json {
        output::json(&serde_json::json!({ "a": a, "b": b, "equal": a == b, "difference": difference }))?;
    } else if a == b {
        output::text(&format!("both are {a}\n"))?;
    } else {
        output::text(&text(&difference))?;
    }
    match a == b {
        true => Ok(()),
        false => Err(exit::error(Exit::Check, format!("images {} and {} differ", a.short(), b.short()))),
    }
}

/// A difference for people: `+` only in the second, `-` only in the first, `~` in both.
pub fn text(difference: &Difference) -> String {
    let packages = difference.packages.iter().map(|p| {
        let versions = [&p.from, &p.to].map(String::as_str).into_iter().filter(|v| !v.is_empty());
        format!("{} {} {}", sign(p.change), p.name, versions.collect::<Vec<_>>().join(" -> "))
    });
    let config = difference.config.iter().map(said);
    let units = difference.units.iter().map(|u| format!("{} {}{}", sign(u.change), u.name, fields(&u.fields)));
    let parts = [
        part("packages", packages.collect()),
        part("config", config.collect()),
        part("units", units.collect()),
        files("files", &difference.files),
        files("initramfs", &difference.initramfs),
        part("layers", difference.layers.iter().map(blob).collect()),
    ];
    parts.concat()
}

fn part(name: &str, lines: Vec<String>) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let shown: String = lines.iter().take(SHOWN_MAX).map(|line| format!("  {line}\n")).collect();
    format!("{name}:\n{shown}{}", more(lines.len()))
}

fn more(all: usize) -> String {
    if all > SHOWN_MAX { format!("  and {} more\n", all - SHOWN_MAX) } else { String::new() }
}

/// Files below their packages; those that differ only in their time come last.
fn files(name: &str, files: &[File]) -> String {
    if files.is_empty() {
        return String::new();
    }
    let mut sorted: Vec<&File> = files.iter().collect();
    sorted.sort_by_key(|f| (f.is_time_only(), f.package.is_none(), f.package.as_deref()));
    let mut groups: BTreeMap<(bool, bool, &str), Vec<String>> = BTreeMap::new();
    for file in sorted.into_iter().take(SHOWN_MAX) {
        let key = (file.is_time_only(), file.package.is_none(), file.package.as_deref().unwrap_or("?"));
        let hidden =
            if file.hidden { format!(" (in layer {}, hidden by a later one)", file.layer) } else { String::new() };
        let line = format!("    {} {}{}{hidden}\n", sign(file.change), file.path, fields(&file.fields));
        groups.entry(key).or_default().push(line);
    }
    let groups: String = groups.into_iter().map(|((.., package), l)| format!("  {package}\n{}", l.concat())).collect();
    format!("{name}:\n{groups}{}", more(files.len()))
}

fn sign(change: Change) -> char {
    match change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    }
}

fn fields(fields: &[Field]) -> String {
    if fields.is_empty() {
        return String::new();
    }
    format!("  {}", fields.iter().map(said).collect::<Vec<_>>().join("; "))
}

fn said(field: &Field) -> String {
    let Field { what, from, to } = field;
    let excerpt = what.starts_with("line ");
    match (what.as_str(), from.is_empty(), to.is_empty()) {
        ("is", ..) => {
            if from.is_empty() || to.is_empty() {
                format!("{from}{to}")
            } else {
                format!("{from} -> {to}")
            }
        }
        _ if excerpt => format!("{what}: {from:?} -> {to:?}"),
        (_, true, false) => format!("{what}: {to}"),
        (_, false, true) => format!("{what}: no more {from}"),
        _ => format!("{what} {from} -> {to}"),
    }
}

fn blob(blob: &Blob) -> String {
    let size = |stored: &Stored| output::size(stored.size);
    let note = if blob.same_content { ", the same files: order or packing differs" } else { "" };
    match (&blob.from, &blob.to) {
        (Some(from), Some(to)) if from.size == to.size => format!("~ {}  {}, other bytes{note}", blob.name, size(from)),
        (Some(from), Some(to)) => format!(
            "~ {}  {} -> {} ({:+} B){note}",
            blob.name,
            size(from),
            size(to),
            to.size as i128 - from.size as i128
        ),
        (Some(from), None) => format!("- {}  {}", blob.name, size(from)),
        (None, Some(to)) => format!("+ {}  {}", blob.name, size(to)),
        (None, None) => blob.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::diff::{Package, Unit};
    use crate::image::id::Digest;

    fn field(what: &str, from: &str, to: &str) -> Field {
        Field { what: what.into(), from: from.into(), to: to.into() }
    }

    fn file(path: &str, package: Option<&str>, change: Change, fields: &[Field]) -> File {
        let package = package.map(String::from);
        File { path: path.into(), change, package, layer: "base".into(), hidden: false, fields: fields.to_vec() }
    }

    #[test]
    fn a_difference_is_grouped_and_says_what_was_and_what_is() {
        let stored = |size: u64| Some(Stored { digest: Digest::of(&[1]), size });
        let blob = |from, to, same_content| Blob { name: "layer role".into(), from, to, same_content };
        let difference = Difference {
            packages: vec![
                Package {
                    name: "bash".into(),
                    arch: "amd64".into(),
                    change: Change::Changed,
                    from: "5.1".into(),
                    to: "5.2".into(),
                },
                Package {
                    name: "vim".into(),
                    arch: "amd64".into(),
                    change: Change::Added,
                    from: "".into(),
                    to: "9".into(),
                },
            ],
            config: vec![field("memory_min_mib", "512", "640"), field("systems", "", "galera")],
            units: vec![Unit {
                name: "a.service".into(),
                change: Change::Changed,
                fields: vec![field("masked", "false", "true")],
            }],
            files: vec![
                file("/etc/late", Some("aaa"), Change::Changed, &[field("time", "1", "2")]),
                file("/etc/made", None, Change::Added, &[field("is", "", "file of 3 B, 0644 0:0")]),
                file(
                    "/etc/x",
                    Some("bash"),
                    Change::Changed,
                    &[field("mode", "0644", "0600"), field("line 1", "a", "b")],
                ),
            ],
            initramfs: vec![],
            layers: vec![
                blob(stored(2048), stored(4096), false),
                blob(stored(1), stored(1), true),
                blob(None, stored(9), false),
            ],
        };
        let want = "packages:
  ~ bash 5.1 -> 5.2
  + vim 9
config:
  memory_min_mib 512 -> 640
  systems: galera
units:
  ~ a.service  masked false -> true
files:
  bash
    ~ /etc/x  mode 0644 -> 0600; line 1: \"a\" -> \"b\"
  ?
    + /etc/made  file of 3 B, 0644 0:0
  aaa
    ~ /etc/late  time 1 -> 2
layers:
  ~ layer role  2.0 KiB -> 4.0 KiB (+2048 B)
  ~ layer role  1 B, other bytes, the same files: order or packing differs
  + layer role  9 B
";
        assert_eq!(text(&difference), want);
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let files = (0..SHOWN_MAX + 3).map(|i| file(&format!("/{i:04}"), None, Change::Added, &[])).collect();
        let text = text(&Difference { files, ..Difference::default() });
        assert!(text.ends_with("    + /0049\n  and 3 more\n"), "{text}");
        assert_eq!(text.lines().count(), SHOWN_MAX + 3);
    }
}
