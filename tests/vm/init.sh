#!/bin/busybox sh
# The guest's first process: make a small Linux of the initramfs, run guest.sh, power off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
exec >/dev/console 2>&1 </dev/null

stty -F /dev/ttyS1 raw
for module in /modules/*.ko; do
	insmod "$module" || echo "init: $module was not loaded"
done
ifconfig lo 127.0.0.1 up

sh /guest.sh 3>/dev/ttyS1
echo "VM done" >/dev/ttyS1 # closing it waits until everything is out
poweroff -f
