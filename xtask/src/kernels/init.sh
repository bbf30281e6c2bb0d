#!/bin/busybox sh
# First process of the guest. Kernel messages go to the first serial line, results to the second, where a line
# that begins with "::netpol::" is for the verb that started us and everything else is a job's own output.
busybox=/bin/busybox
$busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root /var/tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount --make-rshared /
ln -s /proc/self/fd /dev/fd
ip link set lo up
# What systemd gives a service; 5.10 counts maps against it.
ulimit -l unlimited
ulimit -n 65536

exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo
echo "::netpol:: kernel $(uname -r)"
for module in $(cat /modules); do
    modprobe "$module" || echo "::netpol:: lacks $module"
done
echo 1 >/proc/sys/kernel/panic_on_oops

cd /root
wanted=,$(sed -n 's/.*netpol\.jobs=\([^ ]*\).*/\1/p' /proc/cmdline),
for job in /jobs/*; do
    name=${job#/jobs/*-}
    case $wanted in
    *",$name,"*) ;;
    *) continue ;;
    esac
    echo "::netpol:: begin $name"
    began=$(date +%s)
    sh "$job"
    status=$?
    # The job's last line may lack its end.
    echo
    echo "::netpol:: end $name $status $(($(date +%s) - began))"
done
echo "::netpol:: done"
sync
poweroff -f
