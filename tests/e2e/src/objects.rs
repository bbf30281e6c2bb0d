//! Kubernetes objects, as JSON.

use serde_json::{Value, json};

/// Everything that the tests make has this label, with the value `true`.
pub(crate) const LABEL: &str = "netpol.io/e2e";

/// Labels, or a selector of them.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Value {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect()
}

/// A namespace with labels beside the tests' own.
pub(crate) fn namespace(name: &str, pairs: &[(&str, &str)]) -> Value {
    let mut all = labels(pairs);
    all[LABEL] = json!("true");
    all["pod-security.kubernetes.io/enforce"] = json!("privileged");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": all}})
}

/// A pod with one container that runs the probe.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    labels: Value,
    args: Vec<String>,
    node: Option<String>,
    spec: Value,
    ports: Vec<Value>,
    container: Value,
}

impl Pod {
    /// One that runs `netpol-probe ARGS`.
    pub(crate) fn new(namespace: &str, name: &str, pairs: &[(&str, &str)], args: &[&str]) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels(pairs),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            node: None,
            spec: json!({}),
            ports: Vec::new(),
            container: json!({}),
        }
    }

    /// One that listens, and answers with its own name.
    pub(crate) fn server(
        namespace: &str,
        name: &str,
        pairs: &[(&str, &str)],
        tcp: &[u16],
        udp: &[u16],
    ) -> Self {
        let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let (tcp, udp) = (list(tcp), list(udp));
        Self::new(
            namespace,
            name,
            pairs,
            &["serve", "--name", name, "--tcp", &tcp, "--udp", &udp],
        )
    }

    /// Without the scheduler.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// A field of `spec`.
    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    /// A field of the container.
    pub(crate) fn container(mut self, field: &str, value: Value) -> Self {
        self.container[field] = value;
        self
    }

    /// An entry of the container's `ports`.
    pub(crate) fn port(mut self, port: Value) -> Self {
        self.ports.push(port);
        self
    }

    /// In the node's network.
    pub(crate) fn of_the_node(self) -> Self {
        self.with("hostNetwork", json!(true))
    }

    /// `spec`, for a pod or a template.
    fn spec(&self, image: &str) -> Value {
        let mut container = self.container.clone();
        container["name"] = json!("probe");
        container["image"] = json!(image);
        container["imagePullPolicy"] = json!("IfNotPresent");
        container["args"] = json!(self.args);
        container["ports"] = json!(self.ports);
        let mut spec = self.spec.clone();
        spec["containers"] = json!([container]);
        spec["terminationGracePeriodSeconds"] = json!(0);
        spec["automountServiceAccountToken"] = json!(false);
        spec["enableServiceLinks"] = json!(false);
        if let Some(node) = &self.node {
            spec["nodeName"] = json!(node);
        }
        spec
    }

    /// The pod.
    pub(crate) fn object(&self, image: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": self.spec(image),
        })
    }

    /// A Deployment, StatefulSet or DaemonSet of it; its pods have the labels, and `e2e-of` with the name.
    pub(crate) fn workload(&self, kind: &str, replicas: u32, image: &str) -> Value {
        let mut all = self.labels.clone();
        all["e2e-of"] = json!(self.name);
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": {"e2e-of": self.name}},
                "template": {"metadata": {"labels": all}, "spec": self.spec(image)},
            },
        });
        if kind != "DaemonSet" {
            object["spec"]["replicas"] = json!(replicas);
        }
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = json!(self.name);
        }
        object
    }
}

/// A Service of both families where the cluster has them; `spec` has the rest.
pub(crate) fn service(namespace: &str, name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["ipFamilyPolicy"] = json!("PreferDualStack");
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Endpoints by hand.
pub(crate) fn slice(namespace: &str, service: &str, addresses: &[std::net::IpAddr], port: u16) -> Vec<Value> {
    let of = |v4: bool| {
        let own: Vec<_> = addresses
            .iter()
            .filter(|address| address.is_ipv4() == v4)
            .collect();
        let family = if v4 { "IPv4" } else { "IPv6" };
        let endpoints: Vec<Value> = own
            .iter()
            .map(|address| json!({"addresses": [address]}))
            .collect();
        (!own.is_empty()).then(|| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{service}-{}", family.to_lowercase()), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": family, "endpoints": endpoints,
                "ports": [{"name": "", "port": port, "protocol": "TCP"}],
            })
        })
    };
    [true, false].into_iter().filter_map(of).collect()
}

/// A policy for the pods with these labels; `spec` has types and rules.
pub(crate) fn policy(namespace: &str, name: &str, pods: &[(&str, &str)], spec: Value) -> Value {
    let mut spec = spec;
    spec["podSelector"] = json!({"matchLabels": labels(pods)});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// A peer: pods of the policy's namespace.
pub(crate) fn pods(pairs: &[(&str, &str)]) -> Value {
    json!({"podSelector": {"matchLabels": labels(pairs)}})
}

/// A peer: one address.
pub(crate) fn block(address: std::net::IpAddr) -> Value {
    let length = if address.is_ipv4() { 32 } else { 128 };
    json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
}

/// A TCP port of a rule.
pub(crate) fn tcp(port: u16) -> Value {
    json!({"protocol": "TCP", "port": port})
}

/// A UDP port of a rule.
pub(crate) fn udp(port: u16) -> Value {
    json!({"protocol": "UDP", "port": port})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_selects_its_own_pods_and_no_other() {
        let pod = Pod::server("shop", "web", &[("app", "web")], &[80, 443], &[]).on("n1");
        let deployment = pod.workload("Deployment", 1, "probe:1");
        let template = &deployment["spec"]["template"];
        assert_eq!(deployment["spec"]["selector"]["matchLabels"]["e2e-of"], "web");
        assert_eq!(
            template["metadata"]["labels"],
            json!({"app": "web", "e2e-of": "web"})
        );
        assert_eq!(template["spec"]["containers"][0]["args"][4], "80,443");
        assert_eq!(template["spec"]["nodeName"], "n1");
    }

    #[test]
    fn slices_are_of_one_family() {
        let both = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let slices = slice("shop", "db", &both, 1);
        let families: Vec<_> = slices
            .iter()
            .map(|slice| slice["addressType"].as_str().unwrap())
            .collect();
        assert_eq!(families, ["IPv4", "IPv6"]);
        assert_eq!(slices[1]["endpoints"][0]["addresses"][0], "fd00::1");
    }
}
