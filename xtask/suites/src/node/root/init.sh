#!/bin/sh
# First program of a machine without systemd: file systems, network, ssh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /run/sshd /run/lock
mount -t devpts devpts /dev/pts
case " $(cat /proc/cmdline) " in
*" kiam.cgroup=v1 "*)
    mount -t tmpfs cgroup /sys/fs/cgroup
    for controller in cpu memory pids; do
        mkdir "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" "$controller" "/sys/fs/cgroup/$controller"
    done
    ;;
*) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
esac
ip link set lo up
kiam-network
/usr/sbin/sshd
# It listens once it has written its process id.
until [ -s /run/sshd.pid ]; do
    sleep 0.05
done
echo kiam-machine-ready > /dev/console
# Orphans are its children: it has to see them end.
while :; do
    sleep 3600 &
    wait "$!"
done
