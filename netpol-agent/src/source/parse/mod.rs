//! One untyped object → the model and what is wrong with it.
//!
//! What is not understood never allows: a rule with anything bad in it is left out as a whole and its policy
//! goes on isolating; a `podSelector` or `policyTypes` that is not understood isolates more, not less.

mod at;
mod cidr;
mod names;
mod node;
mod pod;
mod policy;
mod report;
mod rule;
mod selector;

use netpol_policy::model::{Labels, Namespace, Node as NodeObject, ObjectName, Pod, Policy, Str};

use at::At;
pub(crate) use at::closest;
pub use node::{Entry, Node, Quoted, Value};
pub(crate) use pod::MIRROR;
use report::Bad;
pub use report::Report;

/// One object that decides something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1` Namespace
    Namespace(Namespace),
    /// `v1` Node
    Node(NodeObject),
    /// `v1` Pod
    Pod(Pod),
    /// `networking.k8s.io/v1` NetworkPolicy
    Policy(Policy),
}

/// What an untyped object turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An object of the model.
    Object(Object),
    /// A kind that decides nothing here: `apiVersion` and `kind`.
    Ignored(Str, Str),
    /// Reported, and of no use.
    Unusable,
}

/// The kinds that decide something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Namespace,
    Node,
    Pod,
    Policy,
}

const KINDS: [(&str, &str, Kind); 4] = [
    ("v1", "Namespace", Kind::Namespace),
    ("v1", "Node", Kind::Node),
    ("v1", "Pod", Kind::Pod),
    ("networking.k8s.io/v1", "NetworkPolicy", Kind::Policy),
];

const IGNORED: &str = "the object is ignored";
/// The fields of `metadata` that decide something.
const META: [&str; 5] = ["name", "namespace", "labels", "uid", "deletionTimestamp"];

/// Parses one object. Lists (`List`, `PodList`, …) are opened by [`list_items`] before.
pub fn object(node: &Node, report: &mut Report) -> Parsed {
    typed(node, None, report)
}

/// Parses one item of a list whose kind says the items' (`PodList`), where they may leave out their own.
pub fn typed(node: &Node, list: Option<&ListOf>, report: &mut Report) -> Parsed {
    let at = At::root(node);
    report.set_object(None);
    if at.expect_map(report).is_err() {
        return Parsed::Unusable;
    }
    let Some((version, kind)) = type_of(&at, list, report) else {
        return Parsed::Unusable;
    };
    match KINDS
        .iter()
        .find(|known| (known.0, known.1) == (&*version, &*kind))
    {
        Some((_, name, kind)) => known(&at, name, *kind, report).map_or(Parsed::Unusable, Parsed::Object),
        None => unknown(&at, version, kind, report),
    }
}

fn type_of(at: &At<'_>, list: Option<&ListOf>, report: &mut Report) -> Option<(Str, Str)> {
    let of_list = list.and_then(|list| list.items.clone());
    let mut part = |field: &str, default: Option<Str>| match at.get(field) {
        Some(at) => at.string(report).ok().cloned(),
        None if default.is_some() => default,
        None => {
            report.error(
                at,
                format!("not a Kubernetes object: it has no {field}"),
                "add apiVersion and kind, or move the file out of the directory",
            );
            None
        }
    };
    let (version, kind) = of_list.unzip();
    Some((part("apiVersion", version)?, part("kind", kind)?))
}

/// Nothing is ignored that looks like a policy or a kind of ours.
fn unknown(at: &At<'_>, version: Str, kind: Str, report: &mut Report) -> Parsed {
    if &*kind == "NetworkPolicy"
        && matches!(
            &*version,
            "extensions/v1beta1" | "networking.k8s.io/v1beta1" | "v1"
        )
    {
        report.error(
            at,
            format!(
                "NetworkPolicy of apiVersion {version} is not served by any cluster: it isolates nothing"
            ),
            "write `apiVersion: networking.k8s.io/v1`",
        );
        return Parsed::Unusable;
    }
    let names: Vec<&str> = KINDS
        .iter()
        .filter(|known| known.0 == &*version)
        .map(|known| known.1)
        .collect();
    // `PodList` and the like come here only inside a list.
    if let Some(name) = at::closest(&kind, &names)
        && !is_other_kind(&kind)
    {
        report.error(
            at,
            format!("{version} has no kind {}: ignored", Quoted(&kind)),
            format!("did you mean {name}?"),
        );
        return Parsed::Unusable;
    }
    Parsed::Ignored(version, kind)
}

/// Kinds of the same groups whose names are near to ours.
fn is_other_kind(kind: &str) -> bool {
    matches!(
        kind,
        "IPAddress" | "Ingress" | "IngressClass" | "ServiceCIDR" | "Service" | "Secret"
    )
}

fn known(at: &At<'_>, kind_name: &str, kind: Kind, report: &mut Report) -> Option<Object> {
    let namespaced = matches!(kind, Kind::Pod | Kind::Policy);
    report.set_object(Some(described(at, kind_name, kind, report)));
    let meta = at.get("metadata");
    if let Some(meta) = &meta {
        meta.misspelt(&META, report);
    }
    let name = match kind {
        Kind::Namespace => object_name(at, names::dns_label, IGNORED, report),
        Kind::Policy => object_name(at, names::dns_subdomain, "it isolates all the same", report),
        Kind::Pod | Kind::Node => object_name(at, names::dns_subdomain, IGNORED, report),
    };
    let namespace = if namespaced {
        namespace(at, report)?
    } else {
        "".into()
    };
    let name = match (name, kind) {
        (Some(name), _) => name,
        // A policy isolates also where its name is missing.
        (None, Kind::Policy) => unnamed(at, report),
        (None, _) => return None,
    };
    let labels = meta
        .and_then(|meta| meta.get("labels").map(|at| labels(&at, report)))
        .unwrap_or_default();
    Some(match kind {
        Kind::Namespace => Object::Namespace(Namespace::new(name, labels)),
        Kind::Node => Object::Node(NodeObject {
            name,
            addresses: node_addresses(at, report),
        }),
        Kind::Pod => {
            let labels: Labels = labels.into_iter().collect();
            Object::Pod(pod::pod(ObjectName { namespace, name }, labels, at, report))
        }
        Kind::Policy => Object::Policy(policy::policy(ObjectName { namespace, name }, at, report)),
    })
}

/// `NetworkPolicy prod/db`, as far as it can be told before anything is checked.
fn described(at: &At<'_>, kind_name: &str, kind: Kind, report: &Report) -> String {
    let meta = at.get("metadata");
    let text = |field: &str| {
        let text = meta.as_ref()?.get(field)?.node.value.text()?;
        Some(text).filter(|text| !text.is_empty())
    };
    let name = match (text("name"), kind) {
        (None, Kind::Policy) => unnamed(at, report),
        (None, _) => return kind_name.to_owned(),
        (Some(name), _) => name,
    };
    match kind {
        Kind::Pod | Kind::Policy => {
            let namespace = text("namespace").unwrap_or_else(|| "default".into());
            format!("{kind_name} {namespace}/{name}")
        }
        Kind::Namespace | Kind::Node => format!("{kind_name} {name}"),
    }
}

/// `metadata.name`; `effect` says what follows where there is none.
fn object_name(
    at: &At<'_>,
    rule: fn(&str) -> Result<(), &'static str>,
    effect: &'static str,
    report: &mut Report,
) -> Option<Str> {
    let meta = at.get("metadata");
    let field = meta.as_ref().and_then(|meta| meta.get("name"));
    let Some(field) = field else {
        let at = meta.as_ref().unwrap_or(at);
        report.with_effect(effect, |report| {
            report.missing(at, "metadata.name", "add `name:` under `metadata:`")
        });
        return None;
    };
    let name = text_or(&field, effect, report)?;
    if let Err(rule) = rule(&name) {
        let help = "rename the object: no cluster accepts it";
        report.error(&field, format!("{} {rule}", Quoted(&name)), help);
    }
    Some(name).filter(|name| !name.is_empty())
}

/// The text of a scalar; where it is none, that leads to `effect`.
fn text_or(field: &At<'_>, effect: &'static str, report: &mut Report) -> Option<Str> {
    match field.node.value.text() {
        Some(_) => field.text(report),
        None => report.with_effect(effect, |report| field.text(report)),
    }
}

/// A name that no object can have, the same as long as the object stays where it is.
fn unnamed(at: &At<'_>, report: &Report) -> Str {
    let file = report
        .file()
        .map(|file| file.display().to_string())
        .unwrap_or_default();
    let line = at.line().map(|line| line.to_string()).unwrap_or_default();
    format!("(unnamed {file}:{line})").into()
}

/// `metadata.namespace`, `default` where absent. `None`: it can not be known.
fn namespace(at: &At<'_>, report: &mut Report) -> Option<Str> {
    let meta = at.get("metadata");
    let field = meta.as_ref().and_then(|meta| meta.get("namespace"));
    let Some(field) = field else {
        return Some("default".into());
    };
    let name = text_or(&field, IGNORED, report)?;
    if name.is_empty() {
        return Some("default".into());
    }
    if let Err(rule) = names::dns_label(&name) {
        report.error(
            &field,
            format!("{} {rule}", Quoted(&name)),
            "name the object's namespace",
        );
    }
    Some(name)
}

/// `metadata.labels`. A bad label is reported and kept as it is written: without it a policy might not select
/// the object.
fn labels(at: &At<'_>, report: &mut Report) -> Vec<(Str, Str)> {
    if at.expect_map(report).is_err() {
        return Vec::new();
    }
    let mut labels = Vec::new();
    for field in at.fields() {
        let key = field.name();
        if let Err(rule) = names::label_key(key) {
            report.error(
                &field,
                format!("{} {rule}", Quoted(key)),
                "correct the key: no cluster accepts it",
            );
        }
        let value = match field.node.value {
            Value::Null => "".into(),
            _ => field.text(report).unwrap_or_else(|| "".into()),
        };
        if let (Err(rule), Value::String(_)) = (names::label_value(&value), &field.node.value) {
            report.error(
                &field,
                format!("{} {rule}", Quoted(&value)),
                "correct the value: no cluster accepts it",
            );
        }
        labels.push((key.into(), value));
    }
    labels
}

/// `status.addresses` of the types that are IP addresses.
fn node_addresses(at: &At<'_>, report: &mut Report) -> Vec<std::net::IpAddr> {
    let status = at.get("status");
    let Some(list) = status.as_ref().and_then(|status| status.get("addresses")) else {
        return Vec::new();
    };
    let Ok(items) = list.items(report) else {
        return Vec::new();
    };
    let mut addresses = Vec::new();
    for item in items {
        let kind = item.get("type");
        let is_ip = kind.is_some_and(
            |at| matches!(&at.node.value, Value::String(t) if matches!(&**t, "InternalIP" | "ExternalIP")),
        );
        if let Some(field) = item.get("address").filter(|_| is_ip)
            && let Ok(address) = pod::address(&field, report)
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

/// A list of objects, and the type of its items where its own kind says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOf {
    /// `apiVersion` and `kind` of items that do not say their own.
    pub items: Option<(Str, Str)>,
}

/// The items of a `List`, a `PodList` or another list of objects; `None` where `node` is no list.
pub fn list_items<'n>(node: &'n Node, report: &mut Report) -> Option<(ListOf, &'n [Node])> {
    let (version, kind) = (&node.field("apiVersion")?.value, &node.field("kind")?.value);
    let (Value::String(version), Value::String(kind)) = (version, kind) else {
        return None;
    };
    let item = kind.strip_suffix("List")?;
    let list = ListOf {
        items: (!item.is_empty()).then(|| (version.clone(), item.into())),
    };
    // A custom kind may end so, too: a list has items.
    match &node.field("items")?.value {
        Value::List(nodes) => return Some((list, nodes)),
        Value::Null => {}
        _ => {
            report.set_object(Some(kind.to_string()));
            let at = At::root(node);
            let _reported = at.get("items").map(|items| items.items(report).map(drop));
        }
    }
    Some((list, &[]))
}
