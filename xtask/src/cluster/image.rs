//! The images of the cluster: agnhost, and pause made of the same binary, as one docker archive.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The image that tests run.
pub(super) const AGNHOST: &str = "netpol.local/agnhost:1";
/// The image that holds a pod's namespaces.
pub(super) const PAUSE: &str = "netpol.local/pause:1";

/// Writes the archive of both images: one layer, two configurations.
///
/// # Errors
/// A file can't be read or written.
pub(super) fn write(agnhost: &Path, to: &Path) -> Result<()> {
    let mut binary = Vec::new();
    File::open(agnhost)
        .and_then(|mut file| file.read_to_end(&mut binary))
        .with_context(|| format!("reading {}", agnhost.display()))?;
    let layer = layer(&binary).context("packing the layer")?;
    let digest = hex(&layer);
    let configs = [
        (AGNHOST, json!(["/agnhost"]), json!(["pause"])),
        (PAUSE, json!(["/agnhost", "pause"]), Value::Null),
    ];
    let file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let mut archive = Builder::new(file);
    let mut manifest = Vec::new();
    add(&mut archive, "layer.tar", &layer)?;
    for (tag, entrypoint, command) in configs {
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": entrypoint, "Cmd": command, "Env": ["PATH=/"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        });
        let text = config.to_string();
        let name = format!("{}.json", hex(text.as_bytes()));
        add(&mut archive, &name, text.as_bytes())?;
        manifest.push(json!({"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}));
    }
    add(
        &mut archive,
        "manifest.json",
        Value::from(manifest).to_string().as_bytes(),
    )?;
    archive
        .finish()
        .with_context(|| format!("writing {}", to.display()))
}

/// The one layer: the binary, and the directories that runtimes mount on.
fn layer(binary: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for (name, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
    ] {
        let mut header = header(0, mode);
        header.set_entry_type(EntryType::Directory);
        layer.append_data(&mut header, name, std::io::empty())?;
    }
    layer.append_data(&mut header(binary.len(), 0o755), "agnhost", binary)?;
    layer.into_inner()
}

fn add(archive: &mut Builder<File>, name: &str, bytes: &[u8]) -> Result<()> {
    archive
        .append_data(&mut header(bytes.len(), 0o644), name, bytes)
        .with_context(|| format!("packing {name}"))
}

/// Nothing of the machine or the hour: equal files make equal archives.
fn header(size: usize, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// As the OCI spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// SHA-256, in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_what_it_holds() {
        let dir = std::env::temp_dir().join(format!("netpol-image-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is there");
        let (binary, archive) = (dir.join("agnhost"), dir.join("images.tar"));
        std::fs::write(&binary, "binary").expect("written");
        write(&binary, &archive).expect("packed");
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(&archive).expect("there"))
            .entries()
            .expect("a tar")
        {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read");
            files.insert(entry.path().expect("a path").display().to_string(), bytes);
        }
        std::fs::remove_dir_all(&dir).expect("removed");
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"][0], AGNHOST);
        assert_eq!(manifest[1]["RepoTags"][0], PAUSE);
        for image in [&manifest[0], &manifest[1]] {
            let config = &files[image["Config"].as_str().expect("a name")];
            let config: Value = serde_json::from_slice(config).expect("JSON");
            let digest = format!("sha256:{}", hex(&files["layer.tar"]));
            assert_eq!(config["rootfs"]["diff_ids"][0], digest);
        }
    }
}
