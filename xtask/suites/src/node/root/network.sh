#!/bin/sh
# Sets the address that the kernel's command line names (kiam.address=ADDRESS/BITS,GATEWAY), and mounts the disk that was carried in.
modprobe virtio_net
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ "$tries" -lt 300 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
for word in $(cat /proc/cmdline); do
    case "$word" in
    kiam.address=*)
        word=${word#kiam.address=}
        ip link set eth0 up
        ip address replace "${word%,*}" dev eth0
        ip route replace default via "${word#*,}"
        ;;
    kiam.name=*) hostname "${word#kiam.name=}" ;;
    esac
done
if [ -b /dev/vdc ]; then
    mount -o ro /dev/vdc /mnt/kiam
fi
