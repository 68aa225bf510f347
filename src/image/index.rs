//! The store's `index.json`, an OCI image index: which manifests are visible and what they are
//! called. Entries and fields of other tools are kept as they are.
//!
//! A manifest stands there once for each of its names (annotation `org.opencontainers.image.ref.name`),
//! or once without a name. <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use super::id::{Digest, ImageId};
use super::manifest::{MEDIA_IMAGE, MEDIA_MANIFEST};
use super::reference::{Name, Reference, signature_tag};
use super::signature::MEDIA_SIGNATURE;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

pub const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Annotation that names a manifest within a layout.
pub const ANNOTATION_REF: &str = "org.opencontainers.image.ref.name";
/// Candidates that an error lists.
const CANDIDATES_MAX: usize = 12;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Row>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One descriptor of the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub media_type: String,
    /// Kept as text: another tool's may be of another algorithm.
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Row {
    /// Its digest, when it is a sha256.
    pub fn id(&self) -> Option<Digest> {
        self.digest.strip_prefix("sha256:")?.parse().ok()
    }

    fn name(&self) -> Option<&str> {
        self.annotations.get(ANNOTATION_REF).map(String::as_str)
    }

    fn is(&self, artifact_type: &str) -> bool {
        self.artifact_type.as_deref() == Some(artifact_type)
    }
}

impl Default for Index {
    fn default() -> Self {
        Index { schema_version: 2, media_type: Some(MEDIA_INDEX.into()), manifests: Vec::new(), rest: Map::new() }
    }
}

impl Index {
    pub fn parse(bytes: &[u8]) -> Result<Index, String> {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| format!("index is not valid: {e}"))?;
        if index.schema_version != 2 {
            return Err(format!("index has schemaVersion {}, not 2", index.schema_version));
        }
        Ok(index)
    }

    /// The bytes of `index.json`.
    pub fn encode(&self) -> Vec<u8> {
        // Only maps with string keys and finite numbers: there is nothing to refuse.
        serde_json::to_vec(self).expect("an index is plain JSON")
    }

    pub fn rows(&self) -> &[Row] {
        &self.manifests
    }

    /// Every image of ours with its names, by id.
    pub fn images(&self) -> BTreeMap<ImageId, Vec<Name>> {
        let mut images: BTreeMap<ImageId, Vec<Name>> = BTreeMap::new();
        for row in self.manifests.iter().filter(|r| r.is(MEDIA_IMAGE)) {
            let Some(id) = row.id() else { continue };
            images.entry(id).or_default().extend(row.name().and_then(|n| n.parse().ok()));
        }
        images.values_mut().for_each(|names| names.sort());
        images
    }

    /// The manifest that carries the signature of `id`.
    pub fn signature(&self, id: &ImageId) -> Option<Digest> {
        let tag = signature_tag(id);
        self.manifests.iter().find(|r| r.name() == Some(&tag)).and_then(Row::id)
    }

    /// Makes an image visible with its signature. Both may be there already.
    pub fn add(&mut self, id: &ImageId, size: u64, signature: &Digest, signature_size: u64) {
        if !self.images().contains_key(id) {
            self.manifests.push(row(id, size, MEDIA_IMAGE, None));
        }
        let tag = signature_tag(id);
        self.manifests.retain(|r| r.name() != Some(&tag));
        self.manifests.push(row(signature, signature_size, MEDIA_SIGNATURE, Some(tag)));
        self.sort();
    }

    /// Gives `name` to the image `id`, taking it from another one. False: `id` is not there.
    pub fn tag(&mut self, id: &ImageId, name: &Name) -> bool {
        let Some(size) = self.manifests.iter().find(|r| r.id() == Some(*id) && r.is(MEDIA_IMAGE)).map(|r| r.size)
        else {
            return false;
        };
        self.untag(name);
        self.manifests.retain(|r| !(r.id() == Some(*id) && r.name().is_none()));
        self.manifests.push(row(id, size, MEDIA_IMAGE, Some(name.to_string())));
        self.sort();
        true
    }

    /// Takes `name` from the image that has it, which stays visible by its id.
    pub fn untag(&mut self, name: &Name) -> Option<ImageId> {
        let text = name.to_string();
        let at = self.manifests.iter().position(|r| r.name() == Some(&text))?;
        let mut taken = self.manifests.remove(at);
        let id = taken.id()?;
        if !self.manifests.iter().any(|r| r.id() == Some(id)) {
            taken.annotations.remove(ANNOTATION_REF);
            self.manifests.insert(at, taken);
        }
        Some(id)
    }

    /// Takes images and their signatures out.
    pub fn remove(&mut self, ids: &BTreeSet<ImageId>) {
        let signatures: BTreeSet<String> = ids.iter().map(signature_tag).collect();
        self.manifests.retain(|r| {
            !r.id().is_some_and(|id| ids.contains(&id)) && !r.name().is_some_and(|n| signatures.contains(n))
        });
    }

    /// Takes signatures out whose image is not there.
    pub fn remove_orphaned_signatures(&mut self) {
        let wanted: BTreeSet<String> = self.images().keys().map(signature_tag).collect();
        self.manifests.retain(|r| !r.is(MEDIA_SIGNATURE) || r.name().is_some_and(|n| wanted.contains(n)));
    }

    /// Asks `look` for the artifact type of every row that states none.
    pub fn fill_artifact_types(&mut self, look: impl Fn(&Row) -> Option<String>) {
        for row in self.manifests.iter_mut().filter(|r| r.artifact_type.is_none()) {
            row.artifact_type = look(row);
        }
    }

    /// The one image that a reference means. Errors say what there is instead.
    pub fn resolve(&self, reference: &Reference) -> Result<ImageId, String> {
        let images = self.images();
        let known = |mut names: Vec<String>| {
            names.truncate(CANDIDATES_MAX);
            if names.is_empty() { "the store is empty".into() } else { format!("there are: {}", names.join(", ")) }
        };
        let all = || {
            images
                .iter()
                .flat_map(|(id, names)| match names.is_empty() {
                    true => vec![id.short()],
                    false => names.iter().map(Name::to_string).collect(),
                })
                .collect()
        };
        let found: Vec<ImageId> = match reference {
            Reference::Id(id) => images.keys().filter(|i| *i == id).copied().collect(),
            Reference::Prefix(prefix) => images.keys().filter(|i| i.hex().starts_with(prefix)).copied().collect(),
            Reference::Name(name) => images.iter().filter(|(_, n)| n.contains(name)).map(|(id, _)| *id).collect(),
        };
        match found.as_slice() {
            [id] => Ok(*id),
            [] => Err(format!("no image {reference} in the store; {}", known(all()))),
            several => Err(format!(
                "{reference} means more than one image: {}",
                known(several.iter().map(label(&images)).collect())
            )),
        }
    }

    /// The order is the content's, so that the same images give the same bytes.
    fn sort(&mut self) {
        self.manifests.sort_by(|a, b| (&a.digest, a.name()).cmp(&(&b.digest, b.name())));
    }
}

fn label(images: &BTreeMap<ImageId, Vec<Name>>) -> impl Fn(&ImageId) -> String + '_ {
    |id| {
        let names: Vec<String> = images.get(id).into_iter().flatten().map(Name::to_string).collect();
        if names.is_empty() { id.short() } else { format!("{} ({})", id.short(), names.join(", ")) }
    }
}

fn row(digest: &Digest, size: u64, artifact_type: &str, name: Option<String>) -> Row {
    Row {
        media_type: MEDIA_MANIFEST.into(),
        digest: digest.to_string(),
        size,
        artifact_type: Some(artifact_type.into()),
        annotations: name.map(|n| (ANNOTATION_REF.to_string(), n)).into_iter().collect(),
        rest: Map::new(),
    }
}
