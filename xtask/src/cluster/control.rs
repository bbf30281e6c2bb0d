//! The control plane: etcd, API server, controllers and scheduler, in init's own network and mount namespaces.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{
    addresses::{API_PORT, API_SERVICE, Network, PODS, PODS6, SERVICES, SERVICES6, batch},
    daemon::{Daemon, program},
    pki::{ADMIN, Pki},
    record::Record,
};

/// How long the API server may take to be ready.
const LIMIT: Duration = Duration::from_secs(90);

/// The control plane's own network: a bridge that carries all nodes and the link to this machine.
///
/// # Errors
/// `ip` fails.
pub(super) fn network(network: &Network) -> Result<()> {
    let mut lines = "link set lo up\nlink add br0 type bridge\nlink set host master br0 up\n".to_owned();
    lines += &network.configure("br0", Network::CONTROL);
    batch("network of the control plane", &lines)
}

/// Certificates of the control plane's components, and their kubeconfigs.
///
/// # Errors
/// openssl fails, or a file can't be written.
pub(super) fn certificates(dir: &Path, record: &Record) -> Result<Pki> {
    let pki = Pki::create(&dir.join("pki"))?;
    let (network, server) = (&record.network, server(&record.network));
    let mut names = vec![
        "IP:127.0.0.1".to_owned(),
        format!("IP:{API_SERVICE}"),
        format!("IP:{}", network.v4(Network::CONTROL)),
        "DNS:localhost".to_owned(),
    ];
    names.extend(
        ["", ".default", ".default.svc", ".default.svc.cluster.local"]
            .map(|end| format!("DNS:kubernetes{end}")),
    );
    names.extend(
        network
            .v6(Network::CONTROL)
            .map(|address| format!("IP:{address}")),
    );
    pki.issue("api", "kube-apiserver", "netpol", &names)?;
    for (file, user, group) in [
        (ADMIN, ADMIN, "system:masters"),
        ("controllers", "system:kube-controller-manager", "netpol"),
        ("scheduler", "system:kube-scheduler", "netpol"),
        ("proxy", "system:kube-proxy", "netpol"),
    ] {
        pki.issue(file, user, group, &[])?;
        pki.kubeconfig(&server, file, &pki.dir.join(format!("{file}.kubeconfig")))?;
    }
    pki.kubeconfig(&server, ADMIN, &record.kubeconfig)?;
    Ok(pki)
}

/// Where the API server is, from nodes and from this machine.
pub(super) fn server(network: &Network) -> String {
    format!("https://{}:{API_PORT}", network.v4(Network::CONTROL))
}

/// Starts etcd and the API server.
///
/// # Errors
/// One can't be started.
pub(super) fn api_server(dir: &Path, record: &Record, pki: &Pki) -> Result<Vec<Daemon>> {
    let (logs, components) = (dir.join("logs"), &record.components);
    let mut etcd = program(components, "etcd");
    // What it holds need not outlive the machine.
    etcd.args(["--unsafe-no-fsync", "--log-level=warn", "--data-dir"])
        .arg(dir.join("etcd"))
        .args([
            "--listen-client-urls",
            "http://127.0.0.1:2379",
            "--advertise-client-urls",
            "http://127.0.0.1:2379",
        ])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
    let etcd = Daemon::start(&logs, None, "etcd", &mut etcd)?;
    let mut api = program(components, "kube-apiserver");
    api.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
    ])
    .args([
        "--enable-admission-plugins=NodeRestriction",
        "--max-requests-inflight=800",
    ])
    // Nobody resolves nodes' names.
    .arg("--kubelet-preferred-address-types=InternalIP")
    .arg("--service-account-issuer=https://kubernetes.default.svc")
    .arg(format!("--service-account-key-file={}", pki.path("sa.pub")))
    .arg(format!(
        "--service-account-signing-key-file={}",
        pki.path("sa.key")
    ))
    .arg(format!(
        "--service-cluster-ip-range={}",
        ranges(record, SERVICES, SERVICES6)
    ))
    .arg(format!("--tls-cert-file={}", pki.path("api.crt")))
    .arg(format!("--tls-private-key-file={}", pki.path("api.key")))
    .arg(format!("--client-ca-file={}", pki.path("ca.crt")))
    .arg(format!("--kubelet-client-certificate={}", pki.path("admin.crt")))
    .arg(format!("--kubelet-client-key={}", pki.path("admin.key")))
    .arg(format!("--secure-port={API_PORT}"))
    .arg(format!(
        "--advertise-address={}",
        record.network.v4(Network::CONTROL)
    ));
    if record.options.nodes == 0 {
        // No controller makes the accounts that pods would have to have; and there are many objects to take.
        api.args(["--disable-admission-plugins=ServiceAccount,LimitRanger,Priority,TaintNodesByCondition"])
            .args([
                "--max-mutating-requests-inflight=800",
                "--enable-priority-and-fairness=false",
            ]);
    }
    let api = Daemon::start(&logs, None, "kube-apiserver", &mut api)?;
    Ok(vec![etcd, api])
}

/// Waits until the API server is ready, then starts who works with it; where there are no nodes nobody does, as the
/// controllers would remove the pods of nodes that say nothing.
///
/// # Errors
/// Something ends or takes too long.
pub(super) fn controllers(dir: &Path, record: &Record, pki: &Pki, daemons: &mut Vec<Daemon>) -> Result<()> {
    let ready = || {
        let mut get = kubectl(record);
        get.args(["get", "--raw", "/readyz"]);
        get.output().is_ok_and(|done| done.status.success())
    };
    if let [etcd, api] = &mut daemons[..] {
        api.until("the API server", LIMIT, ready)
            .and_then(|()| etcd.check())
            .or_else(|error| {
                // Without etcd the API server ends as well, and etcd knows why.
                etcd.check().and(Err(error))
            })?;
    }
    if record.options.nodes == 0 {
        return Ok(());
    }
    let logs = dir.join("logs");
    let mut controllers = program(&record.components, "kube-controller-manager");
    controllers
        .args([
            "--allocate-node-cidrs",
            "--use-service-account-credentials",
            "--leader-elect=false",
        ])
        // At the usual pace the accounts of all controllers alone take five seconds.
        .args(["--kube-api-qps=200", "--kube-api-burst=400"])
        .arg(format!("--kubeconfig={}", pki.path("controllers.kubeconfig")))
        .arg(format!(
            "--service-account-private-key-file={}",
            pki.path("sa.key")
        ))
        .arg(format!("--root-ca-file={}", pki.path("ca.crt")))
        .arg(format!("--cluster-cidr={}", ranges(record, PODS, PODS6)))
        .arg(format!(
            "--service-cluster-ip-range={}",
            ranges(record, SERVICES, SERVICES6)
        ));
    daemons.push(Daemon::start(
        &logs,
        None,
        "kube-controller-manager",
        &mut controllers,
    )?);
    let mut scheduler = program(&record.components, "kube-scheduler");
    scheduler
        .arg("--leader-elect=false")
        .arg(format!("--kubeconfig={}", pki.path("scheduler.kubeconfig")));
    daemons.push(Daemon::start(&logs, None, "kube-scheduler", &mut scheduler)?);
    Ok(())
}

/// One range a family.
pub(super) fn ranges(record: &Record, four: &str, six: &str) -> String {
    if record.options.dual_stack {
        format!("{four},{six}")
    } else {
        four.to_owned()
    }
}

/// kubectl, as who may do everything.
pub(super) fn kubectl(record: &Record) -> std::process::Command {
    let mut kubectl = program(&record.components, "kubectl");
    kubectl.env("KUBECONFIG", &record.kubeconfig);
    kubectl
}
