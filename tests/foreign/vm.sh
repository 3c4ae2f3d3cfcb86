#!/usr/bin/env bash
# Boots a Debian of its own in a virtual machine, installs a .deb of throng there, applies the density profile and fills it with connections: what
# no container shows, since the limits on open files and the memory of the control group are the machine's. As root, by hand: without KVM it takes
# some ten minutes for 250,000 connections. Needs qemu-system-x86, debootstrap and e2fsprogs.
#
#   tests/foreign/vm.sh DEB CONNECTIONS MEMORY_MIB ['SETTING=VALUE of the unit' …]
#   ACCEL=kvm tests/foreign/vm.sh DEB 1000000 16000
#   tests/foreign/vm.sh DEB 30000 3000 MemoryHigh=40M MemoryMax=45M    # memory is short at some 20,000, and all goes on
#
# Prints every ten seconds what throng says of itself, what its control group has taken, and how much of the time its threads waited for memory.
set -euo pipefail

deb=$(realpath "$1") connections=$2 memory=$3
shift 3
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

echo "== a Debian"
root=$work/root
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,udev,procps,linux-image-cloud-amd64 bookworm "$root" \
  "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
cp "$deb" "$root/root/throng.deb"
chroot "$root" dpkg --install /root/throng.deb >/dev/null
echo "/dev/vda / ext4 rw,noatime 0 1" >"$root/etc/fstab"
# Its console is ours.
ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
mkdir -p "$root/etc/systemd/system/throng.service.d"
printf '[Service]\n' >"$root/etc/systemd/system/throng.service.d/settings.conf"
printf '%s\n' "$@" >>"$root/etc/systemd/system/throng.service.d/settings.conf"
# A machine that is emulated has no time for pings.
printf 'THRONG_HEARTBEAT_PING_INTERVAL_MS=900000\nTHRONG_HEARTBEAT_PING_TIMEOUT_MS=300000\n' >"$root/etc/throng/environment"

cat >"$root/root/fill" <<FILL
#!/bin/bash
exec >/dev/ttyS0 2>&1
throng tune --profile density --apply
systemctl restart throng || systemctl --no-pager status throng
pid=\$(systemctl show -p MainPID --value throng)
throng doctor --pid "\$pid" | head -14
group=/sys/fs/cgroup/system.slice/throng.service
systemd-run --quiet --wait --pipe -p LimitNOFILE=1100000 \\
  throng-load idle --connections $connections --seconds 30 --timeout 60 --pid "\$pid" &
while kill -0 \$! 2>/dev/null; do
  sleep 10
  echo "\$(systemctl show -p StatusText --value throng); group \$(cat \$group/memory.current)," \\
    "\$(sed -n '/^MemAvailable/s/  */ /gp' /proc/meminfo), waits \$(sed -n 's/some avg10=\([^ ]*\).*/\1 %/p' \$group/memory.pressure)"
done
journalctl --unit throng --no-pager --output cat
poweroff --force
FILL
cat >"$root/etc/systemd/system/fill.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash /root/fill
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl --quiet enable fill
cp "$root"/boot/vmlinuz-* "$work/kernel"
cp "$root"/boot/initrd.img-* "$work/initrd"
mke2fs -q -t ext4 -d "$root" "$work/disk" 2G

echo "== boot"
timeout 3600 qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m "$memory" -display none -serial stdio -monitor none \
  -no-reboot -kernel "$work/kernel" -initrd "$work/initrd" -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" \
  -append "console=ttyS0 root=/dev/vda rw quiet panic=-1 systemd.show_status=0" </dev/null
