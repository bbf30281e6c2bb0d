#!/usr/bin/env bash
# The end-to-end tests on a cluster that kind makes: kind.sh AGENT.tar PROBE.tar -- NETPOL-E2E OPTIONS..
# `cargo xtask e2e --kind` calls it. Needs kind, kubectl, and docker or podman; Flannel's images are pulled.
set -euo pipefail

if [ $# -lt 4 ] || [ "$3" != -- ]; then
    echo "usage: kind.sh AGENT.tar PROBE.tar -- NETPOL-E2E OPTIONS.." >&2
    exit 2
fi
agent=$1 probe=$2
shift 3
for program in kind kubectl curl; do
    if ! command -v "$program" >/dev/null; then
        echo "no $program: it is needed for a kind cluster" >&2
        exit 2
    fi
done

name=${NETPOL_KIND_NAME:-netpol-e2e}
flannel=${NETPOL_FLANNEL_MANIFEST:-https://github.com/flannel-io/flannel/releases/download/v0.28.10/kube-flannel.yml}
plugins=${NETPOL_CNI_PLUGINS:-https://github.com/containernetworking/plugins/releases/download/v1.8.0/cni-plugins-linux-amd64-v1.8.0.tgz}
dir=$(mktemp -d)
remove() {
    kind delete cluster --name "$name" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap remove EXIT
trap 'exit 130' INT TERM

kind delete cluster --name "$name" >/dev/null 2>&1 || true
cat >"$dir/kind.yaml" <<X
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  disableDefaultCNI: true
  podSubnet: 10.244.0.0/16
  kubeProxyMode: ${NETPOL_PROXY:-iptables}
nodes:
  - role: control-plane
  - role: worker
  - role: worker
X
kind create cluster --name "$name" --config "$dir/kind.yaml" --kubeconfig "$dir/kubeconfig"
export KUBECONFIG=$dir/kubeconfig

# kind's nodes have only the plugins that its own network needs; Flannel's calls `bridge` and `portmap`.
curl --fail --silent --show-error --location --output "$dir/plugins.tgz" "$plugins"
nodes=$(kind get nodes --name "$name")
engine=docker
command -v docker >/dev/null || engine=podman
for node in $nodes; do
    # A node is a container, in which nobody mounts one; netpol refuses to pin anywhere else.
    "$engine" exec "$node" mount -t bpf bpf /sys/fs/bpf
    "$engine" exec --interactive "$node" tar -xz -C /opt/cni/bin <"$dir/plugins.tgz"
    "$engine" exec "$node" sysctl --quiet --write net.bridge.bridge-nf-call-iptables=1 || true
done
kubectl apply --filename "$flannel"
kubectl wait --for=condition=Ready nodes --all --timeout=180s
for archive in "$agent" "$probe"; do
    kind load image-archive "$archive" --name "$name"
done

"$1" --kubeconfig "$KUBECONFIG" "${@:2}"
