#!/usr/bin/env bash
# Installs a .deb of throng in a copy of this machine that is gone afterwards, and sees it start, be upgraded, removed and purged. As root.
#
#   tests/it/packages.sh DEB
#   ROOT=DIR tests/it/packages.sh DEB    # of what debootstrap --variant=minbase --include=systemd,procps has made there, instead
#
# The copy is an overlay in memory, in namespaces of its own for mounts, processes and the network: port 7070 is free there.
set -euo pipefail

if [[ ${2:-} != inside ]]; then
  exec unshare --mount --pid --net --fork --kill-child "$0" "$(realpath "$1")" inside
fi

copy=$(mktemp --directory)
mount -t tmpfs -o size=512m tmpfs "$copy"
mkdir "$copy"/{upper,work,root}
cp "$1" "$copy/throng.deb"
mount -t overlay -o "lowerdir=${ROOT:-/},upperdir=$copy/upper,workdir=$copy/work" overlay "$copy/root"
cp "$copy/throng.deb" "$copy/root/root/throng.deb"
cd "$copy/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs run # no service manager is running there
mount -t tmpfs tmpfs tmp
ip link set lo up

run() { chroot "$copy/root" "$@"; }
fail() {
  echo "packages.sh: $*" >&2
  exit 1
}
# What a command says is this.
says() {
  local want=$1 said
  shift
  said=$("$@" 2>&1) || true
  [[ $said == "$want" ]] || fail "$* says '$said', not '$want'"
}
is_enabled() { run systemctl --root=/ is-enabled "$1"; }

echo "== install"
run dpkg --install /root/throng.deb
says "root:throng 640" run stat --format '%U:%G %a' /etc/throng/throng.toml
says "enabled" is_enabled throng.service
says "disabled" is_enabled throng.socket
run throng --version
run throng-load --version
# Nothing in the file that comes with it is away from the default.
run throng check /etc/throng/throng.toml | grep --quiet "Every setting is at its default" || fail "the configuration sets something"
[[ ! -e etc/sysctl.d/90-throng.conf ]] || fail "a sysctl profile was applied"

echo "== units"
units=/usr/lib/systemd/system
says "" run systemd-analyze verify --man=no $units/throng.service $units/throng@.service $units/throng.socket
for unit in throng.service throng@.service; do
  run systemd-analyze security --offline=yes --threshold=20 --no-pager $units/$unit | tail --lines 1
done
# What an instance's unit sets are settings.
# shellcheck disable=SC2046 # words: variables
says "" run env $(sed -n 's/^Environment=//p' usr/lib/systemd/system/throng@.service | sed 's/%i/1/g') \
  throng check --quiet --environment /etc/throng/throng.toml

echo "== start and end, as the unit says"
command=$(sed -n 's/^ExecStart=//p' usr/lib/systemd/system/throng.service)
# shellcheck disable=SC2086 # the words of a command
(exec chroot "$copy/root" setpriv --reuid=throng --regid=throng --clear-groups --no-new-privs $command 2>run/log) &
server=$!
for _ in $(seq 200); do
  health=$(curl --silent --max-time 5 http://127.0.0.1:7070/health) && break
  kill -0 "$server" || fail "it ended: $(cat run/log)"
  sleep 0.1
done
[[ -n ${health:-} ]] || fail "it did not start: $(cat run/log)"
says "throng" run stat --format %U "/proc/$server"
kill -TERM "$server"
wait "$server" || fail "it did not end well: $(cat run/log)"

echo "== upgrade, over the same version"
echo '# changed' >>etc/throng/throng.toml
run systemctl --root=/ disable throng.service
# As if systemd ran, a newer one, which takes pauses that grow, with two instances, of which the new program refuses the second.
mkdir --parents run/systemd/system
cat >usr/local/sbin/systemctl <<'EOF'
#!/bin/sh
case "$*" in
--version) echo "systemd 254 (254)" ;;
list-units*) printf 'throng@%s.service loaded active running throng\n' 1 2 ;;
"reload throng@2.service") exit 1 ;;
reload* | --quiet\ is-active*) ;;
*daemon-reload) ;;
*) exec /usr/bin/systemctl "$@" ;;
esac
EOF
printf '#!/bin/sh\necho "$@" >>/run/asked\n' >usr/local/sbin/deb-systemd-invoke
chmod 755 usr/local/sbin/*
run dpkg --install /root/throng.deb
says "restart throng.service
restart throng@1.service" cat run/asked
rm -r run/systemd usr/local/sbin/deb-systemd-invoke
says "# changed" tail --lines 1 etc/throng/throng.toml
says "root:throng 640" run stat --format '%U:%G %a' /etc/throng/throng.toml
says "disabled" is_enabled throng.service
for unit in throng.service throng@.service; do
  cmp "usr/lib/systemd/system/$unit.d/backoff.conf" usr/share/throng/tuning/systemd/backoff.conf
done

echo "== remove"
run dpkg --remove throng
[[ ! -e usr/bin/throng && ! -e usr/lib/systemd/system/throng.service.d ]] || fail "something is left"
says "# changed" tail --lines 1 etc/throng/throng.toml

echo "== install again, purge"
run dpkg --install /root/throng.deb
echo 'THRONG_AUTH_SECRET=x' >etc/throng/environment
run dpkg --purge throng
[[ ! -e etc/throng && ! -e usr/share/throng && ! -e usr/share/doc/throng ]] || fail "something is left"
run id throng
