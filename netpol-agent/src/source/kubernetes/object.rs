//! One object of the API as it comes over the wire, cut down while it is read to what decides something.
//!
//! A pod is some kilobytes of JSON, of which labels, addresses and named ports count. Whatever an object holds, it
//! decodes here; what can not be understood in it is [`crate::source::parse`]'s to say, by name.

use std::{borrow::Cow, cell::RefCell, fmt, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::source::{
    intern::Interner,
    parse::{Entry, MIRROR, Node, Value},
};

/// Which part of a value is kept.
#[derive(Debug)]
pub(super) enum Keep {
    /// All of it.
    All,
    /// All of it, which no other object has: its strings are not looked for among those of others.
    Own,
    /// Of a mapping, these fields; anything else is kept as it is.
    Fields(&'static [(&'static str, Keep)]),
    /// Of a list, this part of every item.
    Each(&'static Keep),
}

const META: (&str, Keep) = (
    "metadata",
    Keep::Fields(&[
        ("name", Keep::Own),
        ("namespace", Keep::All),
        ("uid", Keep::Own),
        ("resourceVersion", Keep::Own),
        ("labels", Keep::All),
        ("annotations", Keep::Fields(&[(MIRROR, Keep::Own)])),
        ("deletionTimestamp", Keep::All),
    ]),
);
const CONTAINERS: Keep = Keep::Each(&Keep::Fields(&[
    ("restartPolicy", Keep::All),
    (
        "ports",
        Keep::Each(&Keep::Fields(&[
            ("name", Keep::All),
            ("protocol", Keep::All),
            ("containerPort", Keep::All),
        ])),
    ),
]));

/// One of the four kinds that decide something.
pub(super) trait Kind: fmt::Debug + Send + Sync + Copy + 'static {
    const GROUP: &'static str;
    const VERSION: &'static str;
    const API_VERSION: &'static str;
    const KIND: &'static str;
    const PLURAL: &'static str;
    const KEEP: Keep;
}

macro_rules! kinds {
    ($($name:ident, $group:literal, $version:literal, $api:literal, $kind:literal, $plural:literal, $keep:expr;)+) => {
        $(
            #[derive(Clone, Copy, Debug)]
            pub(super) struct $name;

            impl Kind for $name {
                const GROUP: &'static str = $group;
                const VERSION: &'static str = $version;
                const API_VERSION: &'static str = $api;
                const KIND: &'static str = $kind;
                const PLURAL: &'static str = $plural;
                const KEEP: Keep = $keep;
            }
        )+
    };
}

kinds! {
    Namespaces, "", "v1", "v1", "Namespace", "namespaces", Keep::Fields(&[META]);
    Nodes, "", "v1", "v1", "Node", "nodes", Keep::Fields(&[
        META,
        ("status", Keep::Fields(&[("addresses", Keep::All)])),
    ]);
    Pods, "", "v1", "v1", "Pod", "pods", Keep::Fields(&[
        META,
        ("spec", Keep::Fields(&[
            ("nodeName", Keep::All),
            ("hostNetwork", Keep::All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ])),
        ("status", Keep::Fields(&[("phase", Keep::All), ("podIP", Keep::Own), ("podIPs", Keep::Own)])),
    ]);
    Policies, "networking.k8s.io", "v1", "networking.k8s.io/v1", "NetworkPolicy", "networkpolicies",
        Keep::Fields(&[META, ("spec", Keep::All)]);
}

/// An object of kind `K`.
#[derive(Clone, Debug)]
pub(super) struct Raw<K> {
    /// What kube asks for: name, namespace, resource version.
    meta: ObjectMeta,
    /// What is kept of it.
    pub(super) node: Node,
    kind: PhantomData<K>,
}

impl<K: Kind> kube::Resource for Raw<K> {
    type DynamicType = ();
    type Scope = k8s_openapi::ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn api_version(_: &()) -> Cow<'_, str> {
        K::API_VERSION.into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl<'de, K: Kind> Deserialize<'de> for Raw<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Trim(&K::KEEP).deserialize(deserializer)?;
        let text = |field: &str| {
            let meta = node.field("metadata")?;
            meta.field(field)?.value.text().map(|text| text.to_string())
        };
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self {
            meta,
            node,
            kind: PhantomData,
        })
    }
}

thread_local! {
    /// The source's own thread decodes everything.
    static STRINGS: RefCell<Interner> = RefCell::default();
}

/// Forgets strings that no object has any more.
pub(super) fn purge_strings() {
    STRINGS.with_borrow_mut(Interner::purge);
}

fn intern(text: &str) -> netpol_policy::model::Str {
    STRINGS.with_borrow_mut(|strings| strings.get(text))
}

/// Reads a value and keeps what is to be kept of it.
struct Trim(&'static Keep);

impl<'de> DeserializeSeed<'de> for Trim {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let value = deserializer.deserialize_any(self)?;
        Ok(Node { value, line: None })
    }
}

impl<'de> Visitor<'de> for Trim {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value, intern(if value { "true" } else { "false" })))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value, intern(&value.to_string())))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        let text = intern(&value.to_string());
        Ok(i64::try_from(value).map_or_else(
            |_| Value::Float(text.clone()),
            |value| Value::Int(value, text.clone()),
        ))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(intern(&value.to_string())))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(match self.0 {
            Keep::Own => value.into(),
            Keep::All | Keep::Fields(_) | Keep::Each(_) => intern(value),
        }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let each = match self.0 {
            Keep::Each(each) => each,
            Keep::Own => &Keep::Own,
            Keep::All | Keep::Fields(_) => &Keep::All,
        };
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Trim(each))? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = fields.next_key::<Cow<'_, str>>()? {
            let keep = match self.0 {
                Keep::Fields(known) => known.iter().find(|(name, _)| *name == key).map(|(_, keep)| keep),
                Keep::Own => Some(&Keep::Own),
                Keep::All | Keep::Each(_) => Some(&Keep::All),
            };
            let Some(keep) = keep else {
                fields.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = fields.next_value_seed(Trim(keep))?;
            match entries.iter_mut().find(|entry| *entry.key == *key) {
                // No server writes such; nobody would know which was meant.
                Some(twice) => twice.value.value = Value::Twice,
                None => entries.push(Entry {
                    key: intern(&key),
                    line: None,
                    value,
                }),
            }
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Node {
        let value = Value::String(text.into());
        Node { value, line: None }
    }

    fn map(fields: &[(&str, Node)]) -> Node {
        let entry = |(key, value): &(&str, Node)| Entry {
            key: (*key).into(),
            line: None,
            value: value.clone(),
        };
        let value = Value::Map(fields.iter().map(entry).collect());
        Node { value, line: None }
    }

    #[test]
    fn only_what_decides_is_kept() {
        let pod = r#"{"kind":"Pod","metadata":{"name":"db","namespace":"prod","resourceVersion":"7",
            "managedFields":[{"manager":"kubelet"}],"annotations":{"a":"b","kubernetes.io/config.mirror":"5f"},"labels":{"app":"db"}},
            "spec":{"nodeName":"n1","volumes":[{"name":"x"}],"containers":[{"name":"db","image":"pg",
            "ports":[{"name":"sql","containerPort":5432,"hostIP":"::"}]}]},"status":{"phase":"Running","conditions":[{}]}}"#;
        let raw: Raw<Pods> = serde_json::from_str(pod).unwrap();
        let port = map(&[
            ("name", string("sql")),
            (
                "containerPort",
                Node {
                    value: Value::Int(5432, "5432".into()),
                    line: None,
                },
            ),
        ]);
        let list = |item: Node| Node {
            value: Value::List(vec![item]),
            line: None,
        };
        let expected = map(&[
            (
                "metadata",
                map(&[
                    ("name", string("db")),
                    ("namespace", string("prod")),
                    ("resourceVersion", string("7")),
                    ("annotations", map(&[(MIRROR, string("5f"))])),
                    ("labels", map(&[("app", string("db"))])),
                ]),
            ),
            (
                "spec",
                map(&[
                    ("nodeName", string("n1")),
                    ("containers", list(map(&[("ports", list(port))]))),
                ]),
            ),
            ("status", map(&[("phase", string("Running"))])),
        ]);
        assert_eq!(raw.node, expected);
        assert_eq!(raw.meta.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn an_object_of_a_strange_shape_decodes_all_the_same() {
        let strange = r#"{"metadata":{"name":"x","labels":7},"spec":[{"ingress":1.5}],"status":null}"#;
        let raw: Raw<Policies> = serde_json::from_str(strange).unwrap();
        let spec = raw.node.field("spec").unwrap();
        assert_eq!(
            spec.value,
            Value::List(vec![map(&[(
                "ingress",
                Node {
                    value: Value::Float("1.5".into()),
                    line: None,
                }
            )])])
        );
    }
}
