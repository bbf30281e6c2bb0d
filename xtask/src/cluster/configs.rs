//! The configuration files of the components, and why each odd line is in them.

use std::path::Path;

use super::{
    Backend, Cni, Options,
    addresses::{PODS, PODS6},
    image::PAUSE,
};

/// Manifests of pods that kubelet runs by itself. Not the usual place: nodes have a copy of this machine's `/etc`.
pub(super) const STATIC_PODS: &str = "/etc/netpol-static-pods";

/// kubelet's. Block YAML: what begins with a brace it reads as JSON.
pub(super) fn kubelet(pki: &Path, node: &str, cgroup: &str) -> String {
    let pki = pki.display();
    // failCgroupV1, cgroupRoot, enforceNodeAllocatable: this machine may have cgroups of version 1, and the nodes share them.
    // evictionHard: the machine's disk may be fuller than kubelet likes; it is not the nodes' to clean.
    // crashLoopBackOff: a test that kills agents every second would kill nobody for five minutes.
    // localStorageCapacityIsolation: needs the root file system's figures, which a namespace can't give.
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
enforceNodeAllocatable: []
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: {pki}/ca.crt
authorization:
  mode: Webhook
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard:
  memory.available: 1Mi
  nodefs.available: 1Mi
localStorageCapacityIsolation: false
tlsCertFile: {pki}/{node}.crt
tlsPrivateKeyFile: {pki}/{node}.key
maxPods: 250
registryPullQPS: 0
serializeImagePulls: false
podLogsDir: /var/log/pods
staticPodPath: {STATIC_PODS}
crashLoopBackOff:
  maxContainerRestartPeriod: 1s
nodeStatusUpdateFrequency: 2s
"
    )
}

/// containerd's.
pub(super) fn containerd(components: &Path, snapshotter: &str) -> String {
    let components = components.display();
    // restrict_oom_score_adj: where root lacks CAP_SYS_RESOURCE, runc dies when it lowers oom_score_adj.
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins."io.containerd.cri.v1.runtime"]
  enable_cdi = false
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{components}/bin/cni", "{components}/debian/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
"#
    )
}

/// What Flannel reads of the whole cluster.
pub(super) fn flannel(options: &Options) -> String {
    let backend = match options.flannel {
        Backend::Vxlan => "vxlan",
        Backend::HostGw => "host-gw",
    };
    let six = if options.dual_stack {
        format!(r#""EnableIPv6":true,"IPv6Network":"{PODS6}","#)
    } else {
        String::new()
    };
    format!(r#"{{"Network":"{PODS}","EnableNFTables":false,{six}"Backend":{{"Type":"{backend}"}}}}"#)
}

/// The file in `/etc/cni/net.d` and its text; `cidrs` are the node's ranges for pods.
pub(super) fn conflist(cni: Cni, cidrs: &[String]) -> (&'static str, String) {
    let ports = r#"{"type":"portmap","capabilities":{"portMappings":true}}"#;
    match cni {
        Cni::Flannel => (
            "10-flannel.conflist",
            format!(
                r#"{{"name":"cbr0","cniVersion":"0.3.1","plugins":[{{"type":"flannel","delegate":{{"hairpinMode":true,"isDefaultGateway":true}}}},{ports}]}}"#
            ),
        ),
        Cni::Ptp => {
            let ranges: Vec<_> = cidrs
                .iter()
                .map(|cidr| format!(r#"[{{"subnet":"{cidr}"}}]"#))
                .collect();
            let routes: Vec<_> = cidrs
                .iter()
                .map(|cidr| {
                    if cidr.contains(':') {
                        r#"{"dst":"::/0"}"#
                    } else {
                        r#"{"dst":"0.0.0.0/0"}"#
                    }
                })
                .collect();
            (
                "10-ptp.conflist",
                format!(
                    r#"{{"name":"ptp","cniVersion":"0.3.1","plugins":[{{"type":"ptp","ipMasq":false,"ipam":{{"type":"host-local","dataDir":"/run/cni-ipam-state","routes":[{}],"ranges":[{}]}}}},{ports}]}}"#,
                    routes.join(","),
                    ranges.join(",")
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{super::Proxy, *};

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn flannel_has_what_the_options_say() {
        let mut options = Options {
            nodes: 2,
            proxy: Proxy::Iptables,
            cni: Cni::Flannel,
            flannel: Backend::HostGw,
            dual_stack: false,
        };
        let one = json(&flannel(&options));
        assert_eq!(
            (&one["Backend"]["Type"], &one["EnableIPv6"]),
            (&"host-gw".into(), &Value::Null)
        );
        options.dual_stack = true;
        assert_eq!(json(&flannel(&options))["IPv6Network"], PODS6);
    }

    #[test]
    fn ptp_has_a_range_and_a_way_out_a_family() {
        let (name, text) = conflist(Cni::Ptp, &["10.244.1.0/24".into(), "fd00:10:244:1::/64".into()]);
        assert_eq!(name, "10-ptp.conflist");
        let ipam = &json(&text)["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"][1][0]["subnet"], "fd00:10:244:1::/64");
        assert_eq!(ipam["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(ipam["routes"][1]["dst"], "::/0");
        json(&conflist(Cni::Flannel, &[]).1);
    }

    #[test]
    fn kubelet_is_not_read_as_json() {
        let text = kubelet(Path::new("/pki"), "n1", "/netpol-cluster-x/n1");
        assert!(text.starts_with("apiVersion"));
        assert!(text.contains("cgroupRoot: /netpol-cluster-x/n1\n"));
        assert!(text.contains("tlsCertFile: /pki/n1.crt\n"));
    }
}
