//! An image as one file: an OCI layout that also has docker's `manifest.json`, so that `docker load`, `podman load`,
//! `ctr images import`, `kind load image-archive` and k3s's image directory all take it.
//!
//! Nothing in it depends on when, where or by whom it is made.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: docker's manifest names the same blob, and how a compressor packs depends on its version.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A file of an archive; its directories are made.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Without a slash at its front.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) content: Vec<u8>,
}

impl Entry {
    /// One.
    pub(super) fn file(path: &str, mode: u32, content: Vec<u8>) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content,
        }
    }
}

/// What an image is made of.
#[derive(Debug)]
pub(super) struct Image<'a> {
    /// `netpol/netpol-agent`
    pub(super) name: &'a str,
    pub(super) tag: &'a str,
    /// `amd64`, `arm64`
    pub(super) arch: &'a str,
    pub(super) created: SystemTime,
    /// The path of the file that is started.
    pub(super) entrypoint: &'a str,
    pub(super) files: &'a [Entry],
}

/// An image in one file.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) bytes: Vec<u8>,
    /// By which a registry and `IMAGE@sha256:…` know it.
    pub(super) digest: String,
    /// `docker.io/netpol/netpol-agent:0.1.0`: the full form of the name.
    pub(super) reference: String,
}

impl Archive {
    /// Packs `image`.
    ///
    /// # Errors
    /// A path is too long for an archive.
    pub(super) fn new(image: &Image) -> Result<Self> {
        let mut blobs = Blobs::default();
        let layer = pack(image.files)?;
        let layer_digest = digest(&layer);
        let layer = blobs.add(LAYER, layer);
        let config = blobs.add(CONFIG, json_bytes(&config(image, &layer_digest)));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor,
            "layers": [layer.descriptor],
        });
        let mut manifest = blobs.add(MANIFEST, json_bytes(&manifest));
        let reference = full_name(image.name, image.tag);
        manifest.descriptor["platform"] = json!({ "architecture": image.arch, "os": "linux" });
        manifest.descriptor["annotations"] = json!({
            // containerd's, and everybody else's.
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": image.tag,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest.descriptor] });
        let docker = json!([{
            "Config": config.path,
            "RepoTags": [format!("{}:{}", image.name, image.tag)],
            "Layers": [layer.path],
        }]);
        let mut files = blobs.0;
        files.push(Entry::file("index.json", 0o644, json_bytes(&index)));
        files.push(Entry::file("manifest.json", 0o644, json_bytes(&docker)));
        files.push(Entry::file(
            "oci-layout",
            0o644,
            json_bytes(&json!({ "imageLayoutVersion": "1.0.0" })),
        ));
        Ok(Self {
            bytes: pack(&files)?,
            digest: manifest.digest,
            reference,
        })
    }
}

/// What a container gets unless it asks for something else.
fn config(image: &Image, layer: &str) -> serde_json::Value {
    let program = Path::new("/").join(image.entrypoint);
    let created = rfc3339(image.created);
    json!({
        "architecture": image.arch,
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": [program],
            "Env": [format!("PATH={}", program.parent().unwrap_or(Path::new("/")).display())],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "netpol-agent",
                "org.opencontainers.image.description": "Enforces Kubernetes NetworkPolicy with eBPF beside any veth CNI",
                "org.opencontainers.image.version": image.tag,
                "org.opencontainers.image.licenses": "Apache-2.0",
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
        "history": [{ "created": created, "created_by": "cargo xtask image" }],
    })
}

/// The name with the registry that a name without one means.
fn full_name(name: &str, tag: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    let registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match (registry, name.contains('/')) {
        (true, _) => format!("{name}:{tag}"),
        (false, true) => format!("docker.io/{name}:{tag}"),
        (false, false) => format!("docker.io/library/{name}:{tag}"),
    }
}

#[derive(Debug, Default)]
struct Blobs(Vec<Entry>);

struct Blob {
    path: String,
    digest: String,
    descriptor: serde_json::Value,
}

impl Blobs {
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Blob {
        let digest = digest(&content);
        let path = format!("blobs/{}", digest.replace(':', "/"));
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
        self.0.push(Entry::file(&path, 0o644, content));
        Blob {
            path,
            digest,
            descriptor,
        }
    }
}

/// A tar of `files` and their directories, sorted; owned by root, of the epoch.
fn pack(files: &[Entry]) -> Result<Vec<u8>> {
    let mut sorted: Vec<&Entry> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut directories = BTreeSet::new();
    let mut tar = tar::Builder::new(Vec::new());
    for file in sorted {
        let mut parents: Vec<&Path> = Path::new(&file.path).ancestors().skip(1).collect();
        parents.pop();
        for parent in parents.into_iter().rev() {
            if directories.insert(parent.to_owned()) {
                let name = format!("{}/", parent.display());
                append(&mut tar, &name, 0o755, tar::EntryType::Directory, &[])?;
            }
        }
        append(
            &mut tar,
            &file.path,
            file.mode,
            tar::EntryType::Regular,
            &file.content,
        )?;
    }
    tar.into_inner().context("ending an archive")
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    kind: tar::EntryType,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).with_context(|| format!("packing {path}"))?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content)
        .with_context(|| format!("packing {path}"))
}

/// serde_json's objects are sorted by key.
fn json_bytes(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// `sha256:…`
fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// `1970-01-01T00:00:00Z`
fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    // Years that begin in March end with the leap day; 719 468 days before the epoch begins an era of 400 of them.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests;
