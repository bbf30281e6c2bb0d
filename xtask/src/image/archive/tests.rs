use std::{collections::BTreeMap, io::Read as _};

use serde_json::Value;

use super::*;

fn files() -> Vec<Entry> {
    vec![
        Entry::file("usr/bin/agent", 0o755, b"program".to_vec()),
        Entry::file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec()),
    ]
}

fn archive(files: &[Entry]) -> Archive {
    let image = Image {
        name: "netpol/netpol-agent",
        tag: "1.2.3",
        arch: "arm64",
        created: SystemTime::UNIX_EPOCH,
        entrypoint: "usr/bin/agent",
        files,
    };
    Archive::new(&image).expect("packed")
}

type Unpacked = BTreeMap<String, (tar::Header, Vec<u8>)>;

fn unpack(bytes: &[u8]) -> Unpacked {
    let mut unpacked = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("UTF-8").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("complete");
        unpacked.insert(path, (entry.header().clone(), content));
    }
    unpacked
}

fn blob<'a>(all: &'a Unpacked, descriptor: &Value) -> &'a [u8] {
    let named = descriptor["digest"].as_str().expect("a digest");
    let content = &all[&format!("blobs/{}", named.replace(':', "/"))].1;
    assert_eq!(digest(content), named, "a blob is called by its digest");
    assert_eq!(descriptor["size"], content.len(), "a descriptor tells the size");
    content
}

fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn the_same_files_in_any_order_give_the_same_archive() {
    let mut turned = files();
    turned.reverse();
    let (one, other) = (archive(&files()), archive(&turned));
    assert_eq!(one.digest, other.digest);
    assert!(one.bytes == other.bytes);
    turned[0].mode = 0o700;
    assert_ne!(one.digest, archive(&turned).digest);
}

#[test]
fn nothing_tells_who_packed_it_and_when() {
    let all = unpack(&archive(&files()).bytes);
    let layer = all
        .iter()
        .map(|(_, (_, content))| content)
        .find(|content| content.windows(7).any(|part| part == b"program"))
        .expect("the layer");
    let inner = unpack(layer);
    let names: Vec<_> = inner.keys().map(String::as_str).collect();
    let expected = ["etc/", "etc/nsswitch.conf", "usr/", "usr/bin/", "usr/bin/agent"];
    assert_eq!(names, expected);
    for (name, (header, _)) in all.iter().chain(&inner) {
        assert_eq!(header.mtime().expect("a number"), 0, "{name}");
        assert_eq!(header.uid().expect("a number"), 0, "{name}");
        assert_eq!(header.gid().expect("a number"), 0, "{name}");
        assert_eq!(header.username().expect("UTF-8"), Some(""), "{name}");
    }
    assert_eq!(inner["usr/bin/agent"].0.mode().expect("a number"), 0o755);
}

#[test]
fn every_reader_finds_the_layer_and_the_name() {
    let made = archive(&files());
    let all = unpack(&made.bytes);
    assert_eq!(read(&all["oci-layout"].1)["imageLayoutVersion"], "1.0.0");

    let index = read(&all["index.json"].1);
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["digest"], made.digest.as_str());
    assert_eq!(descriptor["platform"]["architecture"], "arm64");
    let name = &descriptor["annotations"]["io.containerd.image.name"];
    assert_eq!(name, "docker.io/netpol/netpol-agent:1.2.3");
    let manifest = read(blob(&all, descriptor));
    let config = read(blob(&all, &manifest["config"]));
    let layer = blob(&all, &manifest["layers"][0]);
    assert_eq!(config["rootfs"]["diff_ids"][0], digest(layer).as_str());
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/agent");
    assert_eq!(config["config"]["Env"][0], "PATH=/usr/bin");

    let docker = &read(&all["manifest.json"].1)[0];
    assert_eq!(docker["RepoTags"][0], "netpol/netpol-agent:1.2.3");
    assert_eq!(read(&all[docker["Config"].as_str().expect("a path")].1), config);
    assert_eq!(all[docker["Layers"][0].as_str().expect("a path")].1, layer);
}

#[test]
fn a_name_without_a_registry_is_docker_hubs() {
    assert_eq!(full_name("agent", "1"), "docker.io/library/agent:1");
    assert_eq!(full_name("netpol/agent", "1"), "docker.io/netpol/agent:1");
    assert_eq!(full_name("localhost/agent", "1"), "localhost/agent:1");
    assert_eq!(full_name("my.host:5000/agent", "1"), "my.host:5000/agent:1");
}

#[test]
fn a_time_is_written_as_others_write_it() {
    let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01T00:00:00Z");
    assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
    assert_eq!(at(951_868_799), "2000-02-29T23:59:59Z");
    assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
}
