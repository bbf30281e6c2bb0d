//! `cargo xtask deploy-check`: the plain manifest, the kustomize bases and the Helm chart say the same.

mod compare;
mod notes;
mod probes;
mod renderers;
mod valid;
mod yaml;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::{
    compare::{Objects, differences, objects, sort_variables},
    renderers::Renderers,
};
use crate::ui::{root, say};

/// `cargo xtask deploy-check`
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Helm, where a check has built it.
///
/// # Errors
/// The manifest of its modules can't be read.
pub(crate) fn helm() -> Result<Option<std::path::PathBuf>> {
    Renderers::built_helm()
}

/// A kustomization, and the values by which the chart renders the same.
const SAME: &[(Kustomization, &[&str])] = &[
    (Kustomization::At("base"), &[]),
    (Kustomization::At("cleanup"), &["cleanup.enabled=true"]),
    // Nodes that an agent is not for any more are cleaned, too.
    (
        Kustomization::At("cleanup"),
        &[
            "cleanup.enabled=true",
            r"text:nodeSelector.netpol\.io/enforce=true",
            "tolerations=null",
            "metrics.podMonitor.enabled=true",
        ],
    ),
    (
        Kustomization::At("overlays/kind"),
        &[
            "pin=/sys/fs/bpf/netpol-$(NETPOL_NODE)",
            "resources.requests.cpu=10m",
            "resources.requests.memory=64Mi",
        ],
    ),
    (
        Kustomization::At("overlays/kind/cleanup"),
        &["cleanup.enabled=true", "pin=/sys/fs/bpf/netpol-$(NETPOL_NODE)"],
    ),
    (
        Kustomization::At("overlays/k3s"),
        &["apiServer.host=127.0.0.1", "apiServer.port=6444"],
    ),
    (
        Kustomization::At("overlays/audit"),
        &[
            "unknownPods=allow",
            r"log.level=info\,netpol_agent=debug",
            r"text:nodeSelector.netpol\.io/enforce=true",
        ],
    ),
    (
        Kustomization::With(&["start-up-taint"]),
        &["startUpTaint.remove=true"],
    ),
    (Kustomization::With(&["sys-admin"]), &["readPodNamespaces=true"]),
    (
        Kustomization::With(&["memlock"]),
        &["extraCapabilities={SYS_RESOURCE}"],
    ),
    // All at once, as far as they are not of two kinds of cluster.
    (
        Kustomization::With(&["k3s", "audit", "sys-admin", "memlock"]),
        &[
            "apiServer.host=127.0.0.1",
            "apiServer.port=6444",
            "unknownPods=allow",
            r"log.level=info\,netpol_agent=debug",
            r"text:nodeSelector.netpol\.io/enforce=true",
            "readPodNamespaces=true",
            "extraCapabilities={SYS_RESOURCE}",
        ],
    ),
];

/// Values that the chart's schema must refuse, and what the refusal must name.
const REFUSED: &[(&str, &str)] = &[
    ("imagee.tag=1", "imagee"),
    ("image.tag=a b", "/image/tag"),
    ("image.digest=sha256:1", "/image/digest"),
    ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
    ("listen.port=0", "/listen/port"),
    ("listen.port=65536", "/listen/port"),
    ("listen.address=::", "/listen/address"),
    ("config.pin=/sys/fs/bpf/other", "pin"),
    ("config.state=/run/other", "state"),
    ("config.unknown-pods=allow", "unknown-pods"),
    ("config.map-size.cells=-1", "/config/map-size/cells"),
    ("extraEnv[0].name=NETPOL_PIN", "/extraEnv/0/name"),
    ("extraEnv[0].name=NETPOL_STATE", "/extraEnv/0/name"),
    ("extraEnv[0].name=NETPOL_LISTEN", "/extraEnv/0/name"),
    ("extraEnv[0].name=KUBERNETES_SERVICE_HOST", "/extraEnv/0/name"),
    ("unknownPods=maybe", "/unknownPods"),
    ("startUpTaint.remove=perhaps", "/startUpTaint/remove"),
    ("extraCapabilities={ALL}", "/extraCapabilities/0"),
    ("extraCapabilities={SYS_ADMIN}", "/extraCapabilities/0"),
    ("apiServer.host=10.0.0.1", "/apiServer/port"),
    ("apiServer.port=6443", "/apiServer/port"),
    (r"podLabels.app\.kubernetes\.io/name=other", "podLabels"),
    (r"metrics.podMonitor.labels.helm\.sh/chart=other", "labels"),
    (r"podAnnotations.prometheus\.io/port=text", "podAnnotations"),
    ("paths.cni=relative", "/paths/cni"),
    ("pin=/sys/fs/bpf/net.pol", "/pin"),
    ("maxUnavailable=0", "/maxUnavailable"),
    ("maxUnavailable=101%", "/maxUnavailable"),
    ("resources.limits.memory=much", "/resources/limits/memory"),
    ("resources.limit.memory=1Gi", "limit"),
    ("appArmor=Localhost", "/appArmor"),
    ("cleanup.enabled=1", "/cleanup/enabled"),
];

/// Where a kustomization is.
#[derive(Clone, Copy, Debug)]
enum Kustomization {
    /// A directory below `deploy/kustomize`.
    At(&'static str),
    /// The base with components.
    With(&'static [&'static str]),
}

/// The verb.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let renderers = Renderers::ensure()?;
    let mut faults = plain(&renderers)?;
    for (kustomization, values) in SAME {
        faults.extend(same(&renderers, *kustomization, values)?);
    }
    faults.extend(everything(&renderers)?);
    faults.extend(listening(&renderers)?);
    faults.extend(notes::faults(&renderers)?);
    renderers.lint()?;
    faults.extend(refusals(&renderers));
    faults.extend(versions()?);
    if !faults.is_empty() {
        bail!("deploy/ does not agree with itself:\n  {}", faults.join("\n  "));
    }
    say(
        "deploy",
        &format!(
            "the plain files, {} kustomizations and the chart render the same; {} wrong values are refused",
            SAME.len(),
            REFUSED.len()
        ),
    );
    Ok(ExitCode::SUCCESS)
}

/// The plain files against the kustomizations that have them in parts.
fn plain(renderers: &Renderers) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (file, dir) in [("netpol.yaml", "base"), ("cleanup.yaml", "cleanup")] {
        let path = root().join("deploy").join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let plain = rendered(&text).with_context(|| format!("reading deploy/{file}"))?;
        ensure!(!plain.is_empty(), "deploy/{file} has no objects");
        let built = kustomize(renderers, Kustomization::At(dir))?;
        faults.extend(valid::faults(file, &plain));
        faults.extend(differences((file, &plain), (dir, &built)));
    }
    Ok(faults)
}

/// A kustomization against the chart.
fn same(renderers: &Renderers, kustomization: Kustomization, values: &[&str]) -> Result<Vec<String>> {
    let mut built = kustomize(renderers, kustomization)?;
    let mut chart = rendered(&renderers.helm(values)?)?;
    let name = format!("{kustomization:?}");
    let shown = format!("the chart with {values:?}");
    let mut faults = valid::faults(&name, &built);
    faults.extend(valid::faults(&shown, &chart));
    if values.contains(&"cleanup.enabled=true") {
        // An upgrade keeps the account and its role; the uninstall takes them.
        let before = chart.len();
        chart.retain(|id, _| id.starts_with("DaemonSet "));
        ensure!(before == 4, "{shown} has {before} objects, not 4");
    } else {
        // Helm makes the namespace by --create-namespace, and the chart only where it is asked to.
        let namespace = "Namespace /netpol-system";
        let Some(object) = built.remove(namespace) else {
            bail!("{name} has no namespace");
        };
        let asked = rendered(&renderers.helm(&["namespace.create=true"])?)?;
        let ours = Objects::from([(namespace.to_owned(), object)]);
        let theirs: Objects = asked.into_iter().filter(|(id, _)| id == namespace).collect();
        faults.extend(differences(
            (&name, &ours),
            ("the chart with namespace.create", &theirs),
        ));
    }
    sort_variables(&mut built);
    sort_variables(&mut chart);
    faults.extend(differences((&name, &built), (&shown, &chart)));
    Ok(faults)
}

fn kustomize(renderers: &Renderers, kustomization: Kustomization) -> Result<Objects> {
    let all = root().join("deploy/kustomize");
    let text = match kustomization {
        Kustomization::At(dir) => renderers.kustomize(&all.join(dir))?,
        Kustomization::With(components) => {
            // Beside the sources, as a kustomization names its parts by relative paths.
            let dir = root().join("target/deploy-check").join(components.join("-"));
            fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
            let up = "../../../deploy/kustomize";
            let components: Vec<_> = components
                .iter()
                .map(|component| format!("{up}/components/{component}"))
                .collect();
            let file = format!(
                "resources: [{up}/base]\ncomponents: [{}]\n",
                components.join(", ")
            );
            fs::write(dir.join("kustomization.yaml"), file).context("writing a kustomization")?;
            renderers.kustomize(&dir)?
        }
    };
    rendered(&text)
}

fn rendered(text: &str) -> Result<Objects> {
    objects(yaml::documents(text)?)
}

/// The chart with all its values set, with the agents and with what cleans up after them.
fn everything(renderers: &Renderers) -> Result<Vec<String>> {
    let file = root().join("xtask/src/deploy/everything.yaml");
    let mut faults = Vec::new();
    let (all, defaults) = (
        values(&file)?,
        values(&root().join("deploy/helm/netpol/values.yaml"))?,
    );
    unset(&defaults, &all, "", &mut faults);
    for (values, daemon_set) in [
        ("cleanup.enabled=false", "netpol-agent"),
        ("cleanup.enabled=true", "netpol-cleanup"),
    ] {
        let objects = rendered(&renderers.helm_with(&file, &[values])?)?;
        let shown = format!("the chart with everything set and {values}");
        let id = format!("DaemonSet netpol-system/{daemon_set}");
        ensure!(objects.contains_key(&id), "{shown} has no {id}");
        faults.extend(valid::faults(&shown, &objects));
    }
    Ok(faults)
}

/// The chart for each way to listen, whose probes follow.
fn listening(renderers: &Renderers) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for address in [
        "127.0.0.1",
        "127.1.2.3",
        "[::1]",
        "[::]",
        "$(HOST_IP)",
        "[$(HOST_IP)]",
    ] {
        let value = format!("listen.address={address}");
        let chart = rendered(&renderers.helm(&[&value, "listen.port=9999"])?)?;
        faults.extend(valid::faults(&format!("the chart with {value}"), &chart));
    }
    Ok(faults)
}

fn values(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let documents = yaml::documents(&text).with_context(|| format!("reading {}", file.display()))?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

/// The values that have a default, and that `all` says nothing of.
fn unset(defaults: &Value, all: &Value, at: &str, faults: &mut Vec<String>) {
    for (key, value) in defaults.as_object().into_iter().flatten() {
        let path = format!("{at}.{key}");
        match all.get(key) {
            None => faults.push(format!("everything.yaml does not set {path}")),
            Some(ours) => unset(value, ours, &path, faults),
        }
    }
}

/// The wrong values that the chart takes, or refuses without a name.
fn refusals(renderers: &Renderers) -> Vec<String> {
    let mut faults = Vec::new();
    for (value, name) in REFUSED {
        match renderers.helm(&[value]) {
            Ok(_) => faults.push(format!("the chart takes the value {value}")),
            Err(error) if !said(&error.to_string(), name) => {
                faults.push(format!(
                    "what the chart says of {value} does not name {name}: {error:#}"
                ));
            }
            Err(_) => {}
        }
    }
    faults
}

/// Whether a refusal speaks of the value, in the words of one Helm or another: `/a/b`, `a.b`.
fn said(text: &str, name: &str) -> bool {
    // Not in the command, which repeats what was set.
    let text = text.split_once('\n').map_or("", |(_, rest)| rest);
    text.contains(name) || text.contains(&name.trim_start_matches('/').replace('/', "."))
}

/// The plain files name the image of this version.
fn versions() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let wanted = format!("netpol/netpol-agent:{}", env!("CARGO_PKG_VERSION"));
    for file in ["netpol.yaml", "cleanup.yaml"] {
        let text = fs::read_to_string(root().join("deploy").join(file))
            .with_context(|| format!("reading deploy/{file}"))?;
        let images = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "));
        faults.extend(
            images
                .filter(|image| *image != wanted)
                .map(|image| format!("deploy/{file} names {image}, this is {wanted}")),
        );
    }
    Ok(faults)
}
