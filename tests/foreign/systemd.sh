#!/usr/bin/env bash
# Boots a Debian with its own systemd in a container, installs a .deb of throng there, and sees the service do what docs/operations.md says:
# start, reload, refuse a wrong file, restart under load, come back from a crash and from a shard that hangs, listen by its socket unit, and
# run as two instances on one port. As root, by hand: it takes two minutes, and needs debootstrap and systemd-container (systemd-nspawn).
#
#   tests/foreign/systemd.sh DEB [DIRECTORY]
#
# DIRECTORY is where the Debian is, or is put if it is not there yet; without it, it goes in the end.
set -euo pipefail

deb=$(realpath "$1")
root=${2:-}
if [[ -z $root ]]; then
  root=$(mktemp --directory)
  chmod 755 "$root" # it is the container's /, where others than root go, too
  kept=
else
  kept=yes
fi
[[ -e $root/bin/systemctl ]] ||
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,curl,procps bookworm "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
cp "$deb" "$root/root/throng.deb"
chroot "$root" dpkg --purge throng >/dev/null 2>&1 || true
chroot "$root" dpkg --install /root/throng.deb >/dev/null

log=$(mktemp)
timeout 300 systemd-nspawn --directory "$root" --register=no --keep-unit --private-network --boot >"$log" 2>&1 &
container=$!
end() {
  kill "$container" 2>/dev/null || true
  wait "$container" 2>/dev/null || true
  rm -f "$log"
  [[ $kept ]] || rm -rf "$root"
}
trap end EXIT

# The first process in there: the child of the container's, which is that of timeout.
manager() {
  local child=$container
  for _ in 1 2 3; do
    child=$(cat "/proc/$child/task/$child/children" 2>/dev/null | cut -d ' ' -f 1)
    [[ $child ]] || return 1
    [[ $(readlink "/proc/$child/exe") == */systemd ]] && echo "$child" && return
  done
  return 1
}
inside() { nsenter --target "$pid" --mount --pid --net --uts --ipc --cgroup --root --wd -- "$@"; }
fail() {
  echo "systemd.sh: $*" >&2
  inside journalctl --unit 'throng*' --no-pager --output cat --lines 20 >&2 || true
  exit 1
}
# A command succeeds within so many seconds.
within() {
  local seconds=$1
  shift
  for ((i = 0; i < seconds * 5; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  fail "not within $seconds s: $*"
}
is() { [[ $(inside systemctl show "$1" --property "$2" --value) == "$3" ]]; }
ready() { inside curl --silent --fail --max-time 2 "localhost:${1:-7071}/ready"; }
restarts() { inside systemctl show throng --property NRestarts --value; }
# Clients that are there while a command runs, and what became of them: all told to go with 1001, nobody refused, all back.
through() {
  local out=/root/storm.json
  rm -f "$root/$out" "$root/root/storm.log"
  inside bash -c "throng-load storm --restart ws://127.0.0.1:7070 --connections 5000 --seconds 60 --json >$out 2>/root/storm.log" &
  within 30 inside grep --quiet "all are open" /root/storm.log
  "$@"
  wait $! || fail "clients: $(cat "$root/$out")"
}

for ((i = 0; i < 100; i++)); do
  pid=$(manager) && break
  sleep 0.2
done
[[ ${pid:-} ]] || { cat "$log" >&2; exit 1; }

echo "== start"
within 30 ready
is throng NFileDescriptorStore "$(nproc)" || fail "the manager keeps no listener for each shard"
inside systemctl show throng --property StatusText | grep connections

echo "== reload"
config=$root/etc/throng/throng.toml
cp "$config" "$root/root/throng.toml"
sed --in-place 's/^\[drain\]$/[drain]\nspread_ms = 700/' "$config"
inside systemctl reload throng
within 5 inside bash -c "journalctl --unit throng --output cat | grep --quiet 'a setting has changed key=\"drain.spread_ms\"'"
echo "[nonsense]" >>"$config"
! inside systemctl reload throng 2>/dev/null || fail "a wrong file is taken"
ready >/dev/null || fail "a wrong file stops it"
cp "$root/root/throng.toml" "$config"

echo "== restart under load"
through inside systemctl restart throng

echo "== crash"
inside bash -c 'kill -KILL "$(systemctl show throng --property MainPID --value)"'
within 10 is throng NRestarts 1
within 10 ready

echo "== a process that hangs"
inside systemctl kill --signal STOP --kill-who=main throng
within 60 is throng NRestarts 2
within 10 ready
inside journalctl --unit throng --output cat | grep --quiet "Failed with result 'watchdog'" || fail "it was not the watchdog"

echo "== socket unit"
inside systemctl stop throng
inside systemctl start throng.socket
inside curl --silent --fail --max-time 5 localhost:7070/ready >/dev/null || fail "nobody is started by a connection"
inside systemctl stop throng.socket throng

echo "== instances"
inside systemctl start throng@1 throng@2
within 10 ready 7071
within 10 ready 7072
through inside bash -c "systemctl restart throng@1 && systemctl restart throng@2"
inside systemctl stop throng@1 throng@2

echo "== all well"
