//! What the sandbox needs of the manifests beyond the model: every container port, and Services.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use netpol_agent::source::{
    manifests::objects,
    parse::{Node, Value},
};
use netpol_policy::model::{ObjectName, Protocol};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

/// A container port, named or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    /// `protocol`
    pub protocol: Protocol,
    /// `containerPort`
    pub number: u16,
    /// `name`
    pub name: Option<String>,
}

/// A Service, or what of it concerns packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.clusterIPs`, where the manifest gives any.
    pub cluster_ips: Vec<IpAddr>,
    /// Ports of every node lead to it (`NodePort`, `LoadBalancer`).
    pub on_nodes: bool,
    /// `externalTrafficPolicy: Local`
    pub local_only: bool,
    /// `spec.selector`; `None` where its endpoints are made by hand.
    pub selector: Option<BTreeMap<String, String>>,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`, empty where there is none.
    pub name: String,
    /// `protocol`
    pub protocol: Protocol,
    /// `port`
    pub number: u16,
    /// `targetPort`
    pub target: Target,
    /// `nodePort`, where the manifest gives it.
    pub node_port: Option<u16>,
}

/// `targetPort`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A number.
    Number(u16),
    /// A container port's name, looked up in each pod.
    Name(String),
}

/// An address behind a Service without selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Namespace and name of the Service.
    pub service: ObjectName,
    /// The name of the Service's port; empty where it has one port without name.
    pub port: String,
    /// Where it leads.
    pub address: IpAddr,
    /// And to which port.
    pub number: u16,
}

/// The manifests as they are written.
#[derive(Debug, Default)]
pub struct Raw {
    /// Every object with its file.
    pub objects: Vec<(PathBuf, Json)>,
    /// Pods by name: their ports, sorted.
    pub ports: BTreeMap<ObjectName, Vec<ContainerPort>>,
    /// In order.
    pub services: Vec<Service>,
    /// Of `Endpoints` and `EndpointSlice` objects.
    pub endpoints: Vec<Endpoint>,
}

impl Raw {
    /// Reads `dir`.
    ///
    /// # Errors
    /// The directory can not be read, or a Service is not understood.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut raw = Self::default();
        for (path, node) in objects(dir)? {
            let object = json(&node);
            match object["kind"].as_str() {
                Some("Pod") => {
                    raw.ports
                        .insert(name_of(&object), container_ports(&object["spec"]));
                }
                Some("Service") => {
                    let name = name_of(&object);
                    let service = service(name.clone(), &object["spec"]);
                    let service = service.with_context(|| format!("{}: Service {name}", path.display()))?;
                    raw.services.extend(service);
                }
                Some("Endpoints") => raw.endpoints.extend(endpoints(&object)),
                Some("EndpointSlice") => raw.endpoints.extend(slice(&object)),
                _ => {}
            }
            raw.objects.push((path, object));
        }
        Ok(raw)
    }
}

/// `metadata.namespace` and `metadata.name`.
pub(super) fn name_of(object: &Json) -> ObjectName {
    let text = |key: &str| object["metadata"][key].as_str().filter(|text| !text.is_empty());
    ObjectName::new(
        text("namespace").unwrap_or("default"),
        text("name").unwrap_or_default(),
    )
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null | Value::Twice => Json::Null,
        Value::Bool(value, _) => Json::from(*value),
        Value::Int(value, _) => Json::from(*value),
        Value::Float(text) => text
            .parse::<f64>()
            .map_or_else(|_| Json::from(&**text), Json::from),
        Value::String(value) => Json::from(&**value),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .map(|entry| (entry.key.to_string(), json(&entry.value)))
                .collect::<Map<_, _>>(),
        ),
    }
}

/// As the source reads them, but with the ports that have no name.
fn container_ports(spec: &Json) -> Vec<ContainerPort> {
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let sidecars = list(&spec["initContainers"])
        .into_iter()
        .filter(|one| one["restartPolicy"] == "Always");
    let containers = list(&spec["containers"]).into_iter().chain(sidecars);
    let mut ports: Vec<_> = containers
        .flat_map(|one| list(&one["ports"]))
        .filter_map(|port| container_port(&port))
        .collect();
    ports.sort();
    ports.dedup_by(|a, b| (a.protocol, a.number) == (b.protocol, b.number));
    ports
}

fn container_port(port: &Json) -> Option<ContainerPort> {
    Some(ContainerPort {
        protocol: protocol(&port["protocol"])?,
        number: u16::try_from(port["containerPort"].as_u64()?)
            .ok()
            .filter(|number| *number != 0)?,
        name: port["name"].as_str().map(str::to_owned),
    })
}

fn protocol(value: &Json) -> Option<Protocol> {
    match value.as_str() {
        None if value.is_null() => Some(Protocol::Tcp),
        Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        _ => None,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default, rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(default)]
    selector: Option<BTreeMap<String, String>>,
    #[serde(default)]
    external_traffic_policy: Option<String>,
    #[serde(default)]
    ports: Option<Vec<Json>>,
}

/// `None` for a Service without address of its own: packets to it are packets to its pods.
fn service(name: ObjectName, spec: &Json) -> Result<Option<Service>> {
    let spec = Spec::deserialize(spec).context("spec")?;
    let kind = spec.r#type.as_deref().unwrap_or("ClusterIP");
    let mut ips = spec.cluster_ips.unwrap_or_default();
    ips.extend(spec.cluster_ip.filter(|ip| ips.is_empty() && !ip.is_empty()));
    if kind == "ExternalName" || ips.iter().any(|ip| ip == "None") {
        return Ok(None);
    }
    let address = |ip: &String| {
        ip.parse()
            .with_context(|| format!("clusterIP {ip:?} is no IP address"))
    };
    Ok(Some(Service {
        name,
        cluster_ips: ips.iter().map(address).collect::<Result<_>>()?,
        on_nodes: matches!(kind, "NodePort" | "LoadBalancer"),
        local_only: spec.external_traffic_policy.as_deref() == Some("Local"),
        selector: spec.selector.filter(|selector| !selector.is_empty()),
        ports: spec
            .ports
            .unwrap_or_default()
            .iter()
            .map(service_port)
            .collect::<Result<_>>()?,
    }))
}

fn service_port(port: &Json) -> Result<ServicePort> {
    let number = |value: &Json| {
        value
            .as_u64()
            .and_then(|n| u16::try_from(n).ok())
            .filter(|n| *n != 0)
    };
    let own = number(&port["port"])
        .with_context(|| format!("port {} is no number from 1 to 65535", port["port"]))?;
    let target = match &port["targetPort"] {
        Json::Null => Target::Number(own),
        Json::String(name) => name
            .parse()
            .map_or_else(|_| Target::Name(name.clone()), Target::Number),
        value => match number(value) {
            Some(number) => Target::Number(number),
            None => bail!("targetPort {value} is neither a port number nor a name"),
        },
    };
    Ok(ServicePort {
        name: port["name"].as_str().unwrap_or_default().to_owned(),
        protocol: protocol(&port["protocol"]).with_context(|| format!("protocol {}", port["protocol"]))?,
        number: own,
        target,
        node_port: number(&port["nodePort"]),
    })
}

fn endpoints(object: &Json) -> Vec<Endpoint> {
    let service = name_of(object);
    let subsets = object["subsets"].as_array().into_iter().flatten();
    subsets
        .flat_map(|subset| {
            pairs(&service, &subset["addresses"], &subset["ports"], &|address| {
                vec![address["ip"].clone()]
            })
        })
        .collect()
}

fn slice(object: &Json) -> Vec<Endpoint> {
    let Some(service) = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str() else {
        return Vec::new();
    };
    let service = ObjectName::new(name_of(object).namespace, service);
    let ready = |endpoint: &Json| endpoint["conditions"]["ready"] != false;
    let addresses = |endpoint: &Json| {
        let list = if ready(endpoint) {
            endpoint["addresses"].as_array()
        } else {
            None
        };
        list.cloned().unwrap_or_default()
    };
    pairs(&service, &object["endpoints"], &object["ports"], &addresses)
}

/// Every address with every port.
fn pairs(
    service: &ObjectName,
    addresses: &Json,
    ports: &Json,
    ips: &dyn Fn(&Json) -> Vec<Json>,
) -> Vec<Endpoint> {
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let addresses: Vec<IpAddr> = list(addresses)
        .iter()
        .flat_map(ips)
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect();
    let mut found = Vec::new();
    for port in list(ports) {
        let Some(number) = port["port"].as_u64().and_then(|n| u16::try_from(n).ok()) else {
            continue;
        };
        let name = port["name"].as_str().unwrap_or_default();
        found.extend(addresses.iter().map(|address| Endpoint {
            service: service.clone(),
            port: name.to_owned(),
            address: *address,
            number,
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_of_containers_and_sidecars() {
        let spec = json!({
            "containers": [{"ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 0}]}],
            "initContainers": [{"ports": [{"containerPort": 1}]}, {"restartPolicy": "Always", "ports": [{"containerPort": 9}]}],
        });
        let port = |protocol, number, name: Option<&str>| ContainerPort {
            protocol,
            number,
            name: name.map(Into::into),
        };
        assert_eq!(
            container_ports(&spec),
            [
                port(Protocol::Tcp, 9, None),
                port(Protocol::Tcp, 80, Some("http")),
                port(Protocol::Udp, 53, None)
            ]
        );
    }

    #[test]
    fn headless_services_have_no_packets_of_their_own() {
        let name = || ObjectName::new("default", "db");
        assert_eq!(
            service(name(), &json!({"clusterIP": "None", "ports": []})).unwrap(),
            None
        );
        let got = service(
            name(),
            &json!({"type": "NodePort", "selector": {"app": "db"}, "ports": [{"port": 80, "targetPort": "http"}]}),
        );
        let port = ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            number: 80,
            target: Target::Name("http".into()),
            node_port: None,
        };
        let expected = Service {
            name: name(),
            cluster_ips: Vec::new(),
            on_nodes: true,
            local_only: false,
            selector: Some([("app".to_owned(), "db".to_owned())].into()),
            ports: vec![port],
        };
        assert_eq!(got.unwrap(), Some(expected));
    }

    #[test]
    fn items_of_a_list_are_what_the_list_says() {
        let dir = std::env::temp_dir().join(format!("netpol-raw-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let list = r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a"}}]}"#;
        std::fs::write(dir.join("a.json"), list).unwrap();
        std::fs::write(
            dir.join("b.yaml"),
            "kind: List\nitems: [{kind: Pod, metadata: {name: b}}]",
        )
        .unwrap();
        let names: Vec<String> = Raw::read(&dir)
            .unwrap()
            .ports
            .keys()
            .map(ToString::to_string)
            .collect();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(names, ["default/a", "default/b"]);
    }

    #[test]
    fn endpoints_made_by_hand() {
        let object = json!({"metadata": {"name": "db"}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]});
        let expected = Endpoint {
            service: ObjectName::new("default", "db"),
            port: String::new(),
            address: "192.0.2.1".parse().unwrap(),
            number: 5432,
        };
        assert_eq!(endpoints(&object), [expected]);
    }
}
