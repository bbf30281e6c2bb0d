//! Every directory of `deploy/examples`, with Deployments for its pods: after each file of policies, who reaches whom is
//! what `expect.txt` says.
//!
//! Namespaces get other names (`shop` becomes `e2e-three-tier-shop`), also where a selector means them by name, so that
//! an example never touches what the cluster has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{ANY, Case, case};
use crate::{
    asks::{Asks, Expect, From, tcp_to, udp_to},
    cluster::{Cluster, Space},
    objects::Pod,
};

/// A name and a directory each.
pub(super) fn cases() -> Vec<Case> {
    const NAMES: &[(&str, &str)] = &[
        ("example-allow-all", "deploy/examples/allow-all"),
        ("example-cidr-except", "deploy/examples/cidr-except"),
        ("example-db-backup", "deploy/examples/db-backup"),
        ("example-db-policy", "deploy/examples/db-policy"),
        ("example-default-deny-all", "deploy/examples/default-deny-all"),
        (
            "example-deny-other-namespaces",
            "deploy/examples/deny-other-namespaces",
        ),
        ("example-egress-cidr", "deploy/examples/egress-cidr"),
        ("example-end-port", "deploy/examples/end-port"),
        ("example-internal-policy", "deploy/examples/internal-policy"),
        ("example-named-ports", "deploy/examples/named-ports"),
        ("example-three-tier", "deploy/examples/three-tier"),
        (
            "examples-complete",
            "every directory of deploy/examples is one of the cases above",
        ),
    ];
    let run = |name: &str| -> fn(&Cluster, &str) -> Result<String> {
        if name == "examples-complete" {
            complete
        } else {
            play
        }
    };
    NAMES
        .iter()
        .map(|(name, says)| case(name, says, ANY, run(name)))
        .collect()
}

fn complete(cluster: &Cluster, _: &str) -> Result<String> {
    let dir = cluster.deploy.join("examples");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let found = entries.flatten().filter(|entry| entry.path().is_dir());
    let found: BTreeSet<String> = found
        .map(|entry| format!("example-{}", entry.file_name().to_string_lossy()))
        .collect();
    let known = cases().into_iter().map(|case| case.name.to_owned());
    let known: BTreeSet<String> = known.filter(|name| name.starts_with("example-")).collect();
    ensure!(found == known, "directories {found:?}, cases {known:?}");
    Ok(String::new())
}

/// A line of `expect.txt`: `allow FROM TO PROTOCOL/PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    allow: bool,
    from: String,
    to: String,
    tcp: bool,
    port: u16,
}

fn parse(text: &str) -> Result<Vec<(String, Vec<Line>)>> {
    let mut sections: Vec<(String, Vec<Line>)> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            sections.push((name.to_owned(), Vec::new()));
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [verdict @ ("allow" | "deny"), from, to, port] = words[..] else {
            bail!("expect.txt: not a line: {line}");
        };
        let (protocol, port) = port
            .split_once('/')
            .with_context(|| format!("expect.txt: no port: {line}"))?;
        let parsed = Line {
            allow: verdict == "allow",
            from: from.to_owned(),
            to: to.to_owned(),
            tcp: match protocol {
                "TCP" => true,
                "UDP" => false,
                _ => bail!("expect.txt: {protocol} is not asked here: {line}"),
            },
            port: port.parse().with_context(|| format!("expect.txt: {line}"))?,
        };
        let section = sections
            .last_mut()
            .with_context(|| format!("expect.txt: before any section: {line}"))?;
        section.1.push(parsed);
    }
    Ok(sections)
}

/// An example in the cluster.
struct Scene<'c> {
    cluster: &'c Cluster,
    prefix: String,
    spaces: Vec<Space<'c>>,
    /// By `NAMESPACE/NAME` of the example.
    pods: BTreeMap<String, Vec<IpAddr>>,
    services: Vec<Value>,
    skipped: BTreeSet<String>,
}

fn play(cluster: &Cluster, name: &str) -> Result<String> {
    let dir = cluster
        .deploy
        .join("examples")
        .join(name.trim_start_matches("example-"));
    let sections = parse(&fs::read_to_string(dir.join("expect.txt")).context("reading expect.txt")?)?;
    let mut files: Vec<_> = fs::read_dir(&dir)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    files.sort();
    let mut scene = Scene {
        cluster,
        prefix: format!("e2e-{}", name.trim_start_matches("example-")),
        spaces: Vec::new(),
        pods: BTreeMap::new(),
        services: Vec::new(),
        skipped: BTreeSet::new(),
    };
    let lines: Vec<Line> = sections.iter().flat_map(|(_, lines)| lines.clone()).collect();
    let mut objects = Vec::new();
    for file in &files {
        for object in cluster.kubectl.read(&file.display().to_string())? {
            objects.push((file.as_path(), object));
        }
    }
    scene.build(&objects, &lines)?;
    let mut asked = scene.expect("none", &sections)?;
    let is_policy = |object: &Value| object["kind"] == "NetworkPolicy";
    for file in &files {
        let own = objects
            .iter()
            .filter(|(path, object)| path == file && is_policy(object));
        let own: Vec<Value> = own.map(|(_, object)| scene.renamed(object.clone())).collect();
        if own.is_empty() {
            continue;
        }
        cluster.kubectl.apply(&own)?;
        asked += scene.expect(&file.file_name().unwrap_or_default().to_string_lossy(), &sections)?;
    }
    let skipped: Vec<&str> = scene.skipped.iter().map(String::as_str).collect();
    Ok(match skipped.len() {
        0 => format!("{asked} questions"),
        n => format!(
            "{asked} questions; {n} addresses outside are not to be had: {}",
            skipped.join(", ")
        ),
    })
}

impl<'c> Scene<'c> {
    /// The name of a namespace of the example in the cluster.
    fn space(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    /// An object in the namespaces of this case.
    fn renamed(&self, mut object: Value) -> Value {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_owned();
        object["metadata"]["namespace"] = json!(self.space(&namespace));
        self.rename_selectors(&mut object["spec"]);
        object
    }

    /// `kubernetes.io/metadata.name` means a namespace by its name.
    fn rename_selectors(&self, value: &mut Value) {
        const NAME: &str = "kubernetes.io/metadata.name";
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.rename_selectors(item)),
            Value::Object(fields) => {
                if let Some(name) = fields.get(NAME).and_then(Value::as_str) {
                    let name = self.space(name);
                    fields.insert(NAME.to_owned(), json!(name));
                }
                if fields.get("key").is_some_and(|key| key == NAME) {
                    for name in fields
                        .get_mut("values")
                        .and_then(Value::as_array_mut)
                        .into_iter()
                        .flatten()
                    {
                        *name = json!(self.space(name.as_str().unwrap_or_default()));
                    }
                }
                fields.values_mut().for_each(|field| self.rename_selectors(field));
            }
            _ => {}
        }
    }

    /// Everything but the policies.
    fn build(&mut self, objects: &[(&Path, Value)], lines: &[Line]) -> Result<()> {
        let of = |kind: &'static str| {
            objects
                .iter()
                .map(|(_, object)| object)
                .filter(move |object| object["kind"] == kind)
        };
        for namespace in of("Namespace") {
            let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
            let labels = namespace["metadata"]["labels"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            let labels: Vec<(&str, &str)> = labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
                .filter(|(key, _)| *key != "kubernetes.io/metadata.name")
                .collect();
            let space = self.cluster.space(&self.space(name), &labels)?;
            self.spaces.push(space);
        }
        let mut all: Vec<Value> = of("Service")
            .map(|service| {
                let mut service = self.renamed(service.clone());
                // Examples are asked by both families; a Service has one unless it says so.
                if service["spec"]["ipFamilyPolicy"].is_null() {
                    service["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
                }
                service
            })
            .collect();
        self.services = all.clone();
        for (at, pod) in of("Pod").enumerate() {
            all.push(self.deployment(pod, at, lines));
        }
        self.cluster.kubectl.apply(&all)?;
        for space in &self.spaces {
            if all.iter().any(|object| {
                object["kind"] == "Deployment" && object["metadata"]["namespace"] == space.name.as_str()
            }) {
                self.cluster.kubectl.wait_for_pods(&space.name)?;
            }
        }
        for pod in of("Pod") {
            let (namespace, name) = names(pod);
            let placed = self.cluster.placed(&self.space(&namespace))?;
            let own = placed
                .into_iter()
                .find(|own| own.name.starts_with(&format!("{name}-")));
            let own = own.with_context(|| format!("no pod of Deployment {name}"))?;
            self.pods.insert(format!("{namespace}/{name}"), own.addresses);
        }
        self.listen_outside(lines)
    }

    /// A pod of the example as a Deployment that answers on its ports, and on what is asked of it.
    fn deployment(&self, pod: &Value, at: usize, lines: &[Line]) -> Value {
        let (namespace, name) = names(pod);
        let full = format!("{namespace}/{name}");
        let (mut tcp, mut udp, mut ports) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            for port in container["ports"].as_array().into_iter().flatten() {
                let list = if port["protocol"] == "UDP" {
                    &mut udp
                } else {
                    &mut tcp
                };
                list.extend(
                    port["containerPort"]
                        .as_u64()
                        .and_then(|port| u16::try_from(port).ok()),
                );
                ports.push(port.clone());
            }
        }
        for line in lines.iter().filter(|line| line.to == full) {
            if line.tcp { &mut tcp } else { &mut udp }.insert(line.port);
        }
        let labels = pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let labels: Vec<(&str, &str)> = labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
            .collect();
        let (tcp, udp): (Vec<u16>, Vec<u16>) = (tcp.into_iter().collect(), udp.into_iter().collect());
        let mut own = Pod::server(&self.space(&namespace), &name, &labels, &tcp, &udp);
        for port in ports {
            own = own.port(port);
        }
        let node = &self.cluster.nodes[at % self.cluster.nodes.len()];
        own.on(&node.name).workload("Deployment", 1, &self.cluster.image)
    }

    /// The addresses outside that are asked, or ask.
    fn listen_outside(&mut self, lines: &[Line]) -> Result<()> {
        let ends = lines.iter().flat_map(|line| [&line.from, &line.to]);
        let addresses: BTreeSet<IpAddr> = ends.filter_map(|end| end.parse().ok()).collect();
        for address in addresses {
            let taken = self
                .cluster
                .nodes
                .iter()
                .flat_map(|node| &node.addresses)
                .any(|node| neighbours(*node, address));
            let alone = self.cluster.local.is_none() || self.cluster.probe.is_none();
            if alone || taken || (address.is_ipv6() && self.cluster.outside()?.v6.is_none()) {
                self.skipped.insert(address.to_string());
            } else {
                self.cluster.outside()?.add(address)?;
            }
        }
        Ok(())
    }

    /// Asks what a section says; how much that was.
    fn expect(&self, step: &str, sections: &[(String, Vec<Line>)]) -> Result<usize> {
        let mut asks = Asks::default();
        for line in sections
            .iter()
            .filter(|(name, _)| name == step)
            .flat_map(|(_, lines)| lines)
        {
            if !self.skipped.contains(&line.from) && !self.skipped.contains(&line.to) {
                self.ask(line, &mut asks)?;
            }
        }
        asks.settle(self.cluster)
            .with_context(|| format!("after {step}"))?;
        Ok(asks.0.len())
    }

    fn ask(&self, line: &Line, asks: &mut Asks) -> Result<()> {
        let from = match (line.from.parse(), line.from.split_once('/')) {
            (Ok(address), _) => From::Outside(address),
            (_, Some((namespace, name))) => From::Pod(self.space(namespace), format!("deploy/{name}")),
            _ => bail!("expect.txt: nobody is {}", line.from),
        };
        let (targets, port, by) = self.targets(line, &from)?;
        for address in targets {
            if matches!(from, From::Outside(own) if own.is_ipv4() != address.is_ipv4()) {
                continue;
            }
            let to = if line.tcp {
                tcp_to(address, port)
            } else {
                udp_to(address, port)
            };
            let expect = match (line.allow, &by) {
                (false, _) => Expect::Denied,
                (true, Some(name)) => Expect::By(name.clone()),
                (true, None) => Expect::Any,
            };
            asks.add(from.clone(), to, expect, format!("{} -> {}", line.from, line.to));
        }
        Ok(())
    }

    /// Where a line leads, and who should answer there, if that is known.
    fn targets(&self, line: &Line, from: &From) -> Result<(Vec<IpAddr>, u16, Option<String>)> {
        if let Ok(address) = line.to.parse::<IpAddr>() {
            return Ok((vec![address], line.port, Some("outside".into())));
        }
        if let Some(addresses) = self.pods.get(&line.to) {
            let name = line.to.split_once('/').map(|(_, name)| name.to_owned());
            return Ok((addresses.clone(), line.port, name));
        }
        let service = line
            .to
            .strip_prefix("service/")
            .and_then(|rest| rest.rsplit_once(':'));
        let (service, port) = service.with_context(|| format!("expect.txt: nobody is {}", line.to))?;
        let (namespace, name) = service
            .split_once('/')
            .context("expect.txt: service/NAMESPACE/NAME:PORT")?;
        let namespace = self.space(namespace);
        if matches!(from, From::Outside(_)) {
            let (node, _) = self.cluster.two();
            return Ok((
                node.addresses.clone(),
                self.cluster.node_port(&namespace, name)?,
                None,
            ));
        }
        Ok((self.cluster.cluster_ips(&namespace, name)?, port.parse()?, None))
    }
}

fn names(object: &Value) -> (String, String) {
    let text = |field: &Value, default: &str| field.as_str().unwrap_or(default).to_owned();
    let meta = &object["metadata"];
    (text(&meta["namespace"], "default"), text(&meta["name"], ""))
}

/// Of one /24, which the nodes' own network is.
fn neighbours(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expectation_of_the_examples_is_read() {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples"));
        for entry in fs::read_dir(dir).expect("the examples are there").flatten() {
            let text = fs::read_to_string(entry.path().join("expect.txt")).expect("each says what to expect");
            let sections = parse(&text).expect("each line is understood");
            assert!(!sections.is_empty());
        }
        assert!(parse("[none]\nmaybe a b TCP/1").is_err());
        assert!(parse("allow a b TCP/1").is_err());
    }
}
