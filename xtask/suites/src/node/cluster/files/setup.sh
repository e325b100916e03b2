#!/bin/sh
# Makes a machine a node of the cluster: setup.sh NAME NUMBER ADDRESS CGROUP-DRIVER PROXY-MODE
# The disk with this script is mounted at /mnt/kiam. What it writes outlives reboots.
set -eu
name=$1 number=$2 address=$3 driver=$4 mode=$5
files=/mnt/kiam/files
printf 'overlay\nbr_netfilter\n' > /etc/modules-load.d/kiam-node.conf
printf 'net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1\nnet.bridge.bridge-nf-call-iptables=1\n' \
    > /etc/sysctl.d/kiam-node.conf
modprobe -a overlay br_netfilter
sysctl -q -p /etc/sysctl.d/kiam-node.conf
printf 'NODE=%s\nADDRESS=%s\nPROXY_MODE=%s\nKUBELET_MORE=%s\n' "$name" "$address" "$mode" "${KUBELET_MORE-}" \
    > /etc/kiam-node.env
mkdir -p /etc/cni/net.d /opt/cni /etc/kubernetes/manifests /etc/containerd
ln -sfn /usr/lib/cni /opt/cni/bin
sed "s/NUMBER/$number/" $files/bridge.conflist > /etc/cni/net.d/10-bridge.conflist
sed "s/CGROUP_DRIVER/$driver/" $files/kubelet.yaml > /etc/kubernetes/kubelet.yaml
case $driver in systemd) systemd=true ;; *) systemd=false ;; esac
sed "s/SYSTEMD_CGROUP/$systemd/" $files/containerd.toml > /etc/containerd/config.toml
cp $files/kubelet.service $files/kube-proxy.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable -q containerd kubelet kube-proxy
systemctl restart containerd
for image in /mnt/kiam/images/*.tar; do
    name=${image%.tar}.name
    if [ -e "$name" ]; then
        # An OCI archive, which has one image of whatever name.
        ctr -n k8s.io images import --base-name kiam-node.invalid/imported "$image"
        imported=$(ctr -n k8s.io images list -q | grep ^kiam-node.invalid/imported: | head -n 1)
        ctr -n k8s.io images tag "$imported" "$(cat "$name")"
        ctr -n k8s.io images remove "$imported"
    else
        ctr -n k8s.io images import "$image"
    fi
done
systemctl restart --no-block kubelet kube-proxy
