//! `kiln image ls` and `show`.

use crate::cli::output;
use crate::image::manifest::{Config, Image};
use crate::image::reference::Name;
use crate::image::store::{Entry, Store};
use anyhow::Result;
use serde_json::{Value, json};

pub fn list(entries: &[Entry], as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&json!({ "images": entries.iter().map(entry_json).collect::<Vec<_>>() }));
    }
    let mut rows = Vec::new();
    for entry in entries {
        let names = if entry.names.is_empty() { vec!["-".to_string()] } else { entry.names.clone() };
        for name in names {
            let what = format!("{}/{}", entry.release, entry.role);
            rows.push(vec![name, entry.id.short(), what, output::size(entry.size), entry.config.kernel.clone()]);
        }
    }
    output::text(&output::table(&["NAME", "ID", "ROLE", "SIZE", "KERNEL"], &rows))
}

fn entry_json(entry: &Entry) -> Value {
    json!({
        "name": entry.names.first(),
        "names": entry.names,
        "id": entry.id,
        "release": entry.release,
        "role": entry.role,
        "size": entry.size,
        "kernel": entry.config.kernel,
        "memory_min_mib": entry.config.memory_min_mib,
    })
}

pub fn one(store: &Store, image: &str, as_json: bool) -> Result<()> {
    let id = super::resolve(store, image)?;
    let (image, config, names) = (store.image(&id)?, store.config(&id)?, store.names(&id)?);
    let signers: Vec<String> = store.envelope(&id)?.signatures.into_iter().map(|s| s.keyid).collect();
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    if as_json {
        return output::json(&one_json(&image, &config, &names, &signers));
    }
    output::text(&one_text(&image, &config, &names, &signers))
}

fn one_json(image: &Image, config: &Config, names: &[String], signers: &[String]) -> Value {
    let mut value = json!(config);
    value["id"] = json!(image.id);
    value["name"] = json!(names.first());
    value["names"] = json!(names);
    value["signers"] = json!(signers);
    value["size"] = json!(image.blobs().map(|b| b.size).sum::<u64>());
    let blob =
        |b: &crate::image::manifest::Descriptor| json!({ "name": b.label(), "digest": b.digest, "size": b.size });
    value["blobs"] = image.blobs().map(blob).collect();
    value
}

fn one_text(image: &Image, config: &Config, names: &[String], signers: &[String]) -> String {
    let or_none = |list: &[String]| if list.is_empty() { "none".to_string() } else { list.join(" ") };
    let mut lines = vec![
        ("id", image.id.to_string()),
        ("names", or_none(names)),
        ("role", format!("{}/{}{}", config.release, config.role, if config.controller { " (controller)" } else { "" })),
        ("distribution", format!("{} {}", config.distribution, config.architecture)),
        ("kernel", config.kernel.clone()),
        ("arguments", or_none(&config.cmdline)),
        ("systems", or_none(&config.systems)),
        ("memory", format!("at least {} MiB a node", config.memory_min_mib)),
        ("unpacked", output::size(config.unpacked_bytes)),
        ("packages", config.packages.len().to_string()),
        ("lock", config.lock.clone()),
        ("made by", format!("kiln {}, {}", config.kiln, config.squashfs_tools)),
    ];
    // The initramfs boots only what one of these signed.
    let builder = |b: &String| format!("{b}{}", if signers.contains(b) { " (signed it)" } else { "" });
    lines.extend(config.builders.iter().map(|b| ("builder", builder(b))));
    let pinned = |r: &String| format!("{r}: trusted by a pinned digest only, no signature");
    lines.extend(config.pinned_repositories.iter().map(|r| ("repository", pinned(r))));
    lines.extend(config.warnings.iter().map(|w| ("warning", w.clone())));
    let text: String = lines.iter().map(|(name, value)| format!("{name:<13}{value}\n")).collect();
    let blobs = image.blobs().map(|b| vec![b.label(), output::size(b.size), b.digest.to_string()]);
    format!("{text}\n{}", output::table(&["BLOB", "SIZE", "DIGEST"], &blobs.collect::<Vec<_>>()))
}
