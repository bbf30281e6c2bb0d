//! Pods, namespaces, nodes, and what belongs to all objects.

use netpol_policy::{
    build::{container_port, ip, labels, namespace, node, pod},
    model::{Pod, Protocol},
};

use super::read;
use crate::source::parse::Object;

/// The pod `prod/web` with these lines behind its metadata; the first of them is line 4.
fn with(rest: &str) -> (Pod, Vec<String>) {
    let (objects, problems) = read(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: prod}}\n{rest}"
    ));
    match objects.into_iter().next() {
        Some(Object::Pod(pod)) => (pod, problems),
        other => panic!("{other:?} {problems:?}"),
    }
}

/// `prod/web`, with nothing known of it.
fn web() -> Pod {
    Pod {
        uid: "".into(),
        node: None,
        ..pod("prod/web", "", &[])
    }
}

#[test]
fn a_pod_as_the_api_server_shows_it() {
    let (objects, problems) = read(
        "apiVersion: v1
kind: Pod
metadata:
  name: web-0.x
  uid: 1234-5678
  labels: {app: web, empty: '', none: null}
  creationTimestamp: null
  ownerReferences: [{kind: ReplicaSet}]
spec:
  nodeName: node-1
  containers:
  - name: a
    ports:
    - {name: http, containerPort: 8080}
    - {containerPort: 9090}
    - {name: dns, containerPort: 53, protocol: UDP}
  - name: b
    ports: [{name: http, containerPort: 8081}]
  initContainers:
  - name: setup
    ports: [{name: setup, containerPort: 1}]
  - name: sidecar
    restartPolicy: Always
    ports: [{name: admin, containerPort: 15000}]
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
",
    );
    let ports = vec![
        container_port("admin", Protocol::Tcp, 15000),
        container_port("dns", Protocol::Udp, 53),
        container_port("http", Protocol::Tcp, 8080),
        container_port("http", Protocol::Tcp, 8081),
    ];
    let web = pod(
        "default/web-0.x",
        "app=web,empty=,none=",
        &["10.0.0.1", "fd00::1"],
    );
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        objects,
        [Object::Pod(Pod {
            uid: "1234-5678".into(),
            ports,
            ..web
        })]
    );
}

#[test]
fn states_of_a_pod() {
    let clean = Vec::<String>::new();
    assert_eq!(with(""), (web(), clean.clone()));
    assert_eq!(with("status: {phase: Pending}"), (web(), clean.clone()));
    assert_eq!(
        with("status: {podIP: 10.0.0.1}"),
        (
            Pod {
                addresses: vec![ip("10.0.0.1")],
                ..web()
            },
            clean.clone()
        )
    );
    assert_eq!(
        with("status: {podIPs: [], podIP: 10.0.0.1}"),
        (
            Pod {
                addresses: vec![ip("10.0.0.1")],
                ..web()
            },
            clean.clone()
        )
    );
    for phase in ["Succeeded", "Failed"] {
        let status = format!("status: {{phase: {phase}}}");
        assert_eq!(
            with(&status),
            (
                Pod {
                    completed: true,
                    ..web()
                },
                clean.clone()
            )
        );
    }
    assert_eq!(
        with("spec: {hostNetwork: true}"),
        (
            Pod {
                host_network: true,
                ..web()
            },
            clean.clone()
        )
    );
    let (objects, _) = read(
        "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: prod, deletionTimestamp: 2026-01-01T00:00:00Z}}",
    );
    assert_eq!(
        objects,
        [Object::Pod(Pod {
            terminating: true,
            ..web()
        })]
    );
}

/// What is said of a pod with this line, and which addresses it has.
#[track_caller]
fn bad(line: &str, said: &str, addresses: &[&str]) {
    let (pod, problems) = with(line);
    assert_eq!(problems, [format!("error: f.yaml:4: Pod prod/web: {said}")]);
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    assert_eq!(pod, Pod { addresses, ..web() });
}

#[test]
fn addresses() {
    let useless = |text: &str, why: &str, help: &str| {
        bad(
            &format!("status: {{podIP: \"{text}\"}}"),
            &format!("status.podIP: \"{text}\" {why}: it is not used; help: {help}"),
            &[],
        );
    };
    let help = "correct the address, without a prefix length or port";
    useless("10.0.0.256", "is not an IP address", help);
    useless("10.0.0.1/24", "is not an IP address", help);
    useless("", "is not an IP address", help);
    useless(
        "::ffff:10.0.0.1",
        "is an IPv4-mapped IPv6 address",
        "write it as an IPv4 address",
    );
    for text in ["127.0.0.1", "0.0.0.0", "::", "224.0.0.1"] {
        useless(
            text,
            "can not be the address of a pod or node",
            "correct the address",
        );
    }
    bad(
        "status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}",
        "status.podIPs[1].ip: 10.0.0.2 is the pod's second address of this IP family: 10.0.0.1 stays; help: a pod has \
         at most one IPv4 and one IPv6 address",
        &["10.0.0.1"],
    );
    bad(
        "status: {podIPs: [{}, {ip: 10.0.0.2}]}",
        "status.podIPs[0]: has no ip; help: write `- ip: ADDRESS`",
        &["10.0.0.2"],
    );
}

#[test]
fn container_ports() {
    let port = |port: &str, said: &str| {
        bad(
            &format!("spec: {{containers: [{{ports: [{port}]}}]}}"),
            &format!("spec.containers[0].ports[0]{said}"),
            &[],
        );
    };
    let effect = "rules that name this port do not match it";
    port(
        "{name: x, containerPort: 65536}",
        &format!(
            ".containerPort: the number 65536 is not a port: {effect}; help: use a whole number from 1 to 65535"
        ),
    );
    port(
        "{name: x}",
        &format!(": has no containerPort: {effect}; help: add `containerPort: NUMBER`"),
    );
    port(
        "{name: X, containerPort: 1}",
        &format!(
            ".name: \"X\" is not a port name: only lower-case letters, digits and '-' are allowed: {effect}; help: \
             rename the port"
        ),
    );
}

#[test]
fn a_bad_label_is_said_and_kept() {
    let (objects, problems) = read(
        "apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: prod
  labels:
    on: yes
    version: 1.0
    a: b/c
    d: [e]
",
    );
    let with = labels("true=yes,version=1.0,a=b/c,d=");
    assert_eq!(
        objects,
        [Object::Pod(Pod {
            labels: with,
            ..web()
        })]
    );
    let at = |line, label: &str, said: &str| {
        format!("error: f.yaml:{line}: Pod prod/web: metadata.labels.{label}: {said}")
    };
    assert_eq!(
        problems,
        [
            at(
                7,
                "true",
                "the boolean yes where a string belongs; help: put it in quotes: \"yes\""
            ),
            at(
                8,
                "version",
                "the number 1.0 where a string belongs; help: put it in quotes: \"1.0\""
            ),
            at(
                9,
                "a",
                "\"b/c\" is not a label value (at most 63 letters, digits, '-', '_' and '.', a letter or digit at \
                 both ends); help: correct the value: no cluster accepts it"
            ),
            at(10, "d", "a list where a string belongs; help: write a string"),
        ]
    );
}

#[test]
fn namespaces_and_nodes() {
    let (objects, problems) = read(
        "{apiVersion: v1, kind: Namespace, metadata: {name: prod, labels: {env: prod, kubernetes.io/metadata.name: x}}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
status:
  addresses:
  - {type: InternalIP, address: 192.168.0.1}
  - {type: InternalIP, address: 'fd00::1'}
  - {type: ExternalIP, address: 192.168.0.1}
  - {type: Hostname, address: node-1}
  - {type: ExternalIP, address: node-1}
",
    );
    let node = node("node-1", &["192.168.0.1", "fd00::1"]);
    assert_eq!(
        objects,
        [
            Object::Namespace(namespace("prod", "env=prod")),
            Object::Node(node)
        ]
    );
    assert_eq!(
        problems,
        [
            "error: f.yaml:12: Node node-1: status.addresses[4].address: \"node-1\" is not an IP address: it is not used; \
          help: correct the address, without a prefix length or port"
        ]
    );
}

#[test]
fn names() {
    let (objects, problems) = read(
        "{apiVersion: v1, kind: Pod, metadata: {}}
---
{apiVersion: v1, kind: Pod, metadata: {name: Web, namespace: 7}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: [x]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}
",
    );
    let odd = Pod {
        uid: "".into(),
        node: None,
        ..pod("7/Web", "", &[])
    };
    assert_eq!(
        objects,
        [Object::Pod(odd), Object::Namespace(namespace("a.b", ""))]
    );
    assert_eq!(
        problems,
        [
            "error: f.yaml:1: Pod: metadata.name: is missing: the object is ignored; help: add `name:` under `metadata:`",
            "error: f.yaml:3: Pod 7/Web: metadata.name: \"Web\" is not a DNS name (lower-case letters, digits, '-' and '.', \
             a letter or digit at both ends of each part); help: rename the object: no cluster accepts it",
            "error: f.yaml:3: Pod 7/Web: metadata.namespace: the number 7 where a string belongs; help: put it in quotes: \"7\"",
            "error: f.yaml:5: Pod default/web: metadata.namespace: a list where a string belongs: the object is ignored; help: write a string",
            "error: f.yaml:7: Namespace a.b: metadata.name: \"a.b\" is not a DNS label (lower-case letters, digits and \
             '-', a letter or digit at both ends); help: rename the object: no cluster accepts it",
        ]
    );
}

#[test]
fn a_phase_that_is_not_known_counts_as_running() {
    let (objects, problems) =
        read("{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {phase: succeeded, podIP: 10.0.0.1}}");
    let running = Pod {
        uid: "".into(),
        node: None,
        ..pod("default/a", "", &["10.0.0.1"])
    };
    assert_eq!(objects, [Object::Pod(running)]);
    assert_eq!(
        problems,
        [
            "warning: f.yaml:1: Pod default/a: status.phase: \"succeeded\" is not a phase: the pod counts as running; help: \
             did you mean Succeeded?"
        ]
    );
}

#[test]
fn pod_ip_that_is_not_among_pod_ips() {
    let (_, problems) = read(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: b}, status: {podIP: 10.0.0.3, podIPs: [{ip: fd00::3}, {ip: 10.0.0.3}]}}\n",
    );
    assert_eq!(
        problems,
        [
            "warning: f.yaml:1: Pod default/a: status.podIP: 10.0.0.1 is not among status.podIPs: it is not used; help: make it \
             the first entry of podIPs, as the API does, or remove one of the two"
        ]
    );
}

#[test]
fn fields_in_the_wrong_case() {
    let (_, problems) = read(
        "{apiVersion: v1, kind: Pod, metadata: {name: a, Labels: {a: b}}, spec: {hostnetwork: true}, status: {podIp: 10.0.0.1}}",
    );
    let said = |field: &str, meant: &str| {
        format!(
            "error: f.yaml:1: Pod default/a: {field}: the API has no such field; help: did you mean `{meant}`?"
        )
    };
    assert_eq!(
        problems,
        [
            said("metadata.Labels", "labels"),
            said("spec.hostnetwork", "hostNetwork"),
            said("status.podIp", "podIP")
        ]
    );
}
