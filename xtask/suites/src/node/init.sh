#!/bin/busybox sh
# First program of a machine: mounts the root and the kernel's modules, and starts init= of the kernel's command line.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
case " $(cat /proc/cmdline) " in *" kiam.probe "*)
    echo kiam-machine-probed > /dev/console
    poweroff -f
    ;;
esac
# Twice: one that came before what it needs.
for module in /mod/* /mod/*; do
    insmod "$module" 2> /dev/null
done
tries=0
while { [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; } && [ "$tries" -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
mount -t ext4 -o rw /dev/vda /mnt && mount -t ext4 -o ro /dev/vdb /mnt/lib/modules || {
    echo "kiam: no root file system: $(ls /dev)" > /dev/console
    poweroff -f
}
init=/lib/systemd/systemd
for word in $(cat /proc/cmdline); do
    case "$word" in init=*) init=${word#init=} ;; esac
done
umount /proc /sys
mount --move /dev /mnt/dev
exec switch_root /mnt "$init"
