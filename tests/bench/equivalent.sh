#!/bin/bash
# What a careful administrator would paste to get from `larder apply --root ROOT` the same files for the same
# five upstreams: `equivalent.sh ROOT`. It writes in place, syncs nothing, keeps and checks nothing.
set -euo pipefail
root=$1
here=${BASH_SOURCE[0]%/*}
units=$root/etc/systemd/system
umask 022

systemd-sysusers --root="$root" --inline "u larder - \"Larder's registries\" /var/lib/larder"
owner=$(awk -F: '$1 == "larder" { print $3 ":" $4 }' "$root/etc/passwd")

mkdir -p "$root"/etc/{larder/registry,containerd/certs.d,systemd/network,cloud/cloud.cfg.d} \
    "$units"/{multi-user,timers,sysinit}.target.wants "$root/var/lib/larder/gc"

cat >"$root/etc/systemd/network/05-larder-eth0.network" <<'END'
[Match]
Name=eth0

[Network]
DHCP=no
Address=10.0.20.10/24
DNS=10.0.20.1

[Route]
Gateway=10.0.20.1
END
cat >"$root/etc/cloud/cloud.cfg.d/99-larder-network.cfg" <<'END'
network: { config: disabled }
END

if ! grep -q config_path "$root/etc/containerd/config.toml"; then
    cat >>"$root/etc/containerd/config.toml" <<'END'
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
END
fi

for unit in "$here"/../../units/*; do
    # What https, an allow-list, Prometheus and Distribution 3 would take.
    case ${unit##*/} in larder-access.* | larder-metrics.* | larder-tls.* | *.socket) continue ;; esac
    install -m 0644 "$unit" "$units"
done
ln -sfn /etc/systemd/system/larder.service "$units/multi-user.target.wants/larder.service"
ln -sfn /etc/systemd/system/larder-watch.timer "$units/timers.target.wants/larder-watch.timer"
ln -sfn /etc/systemd/system/larder-tend.timer "$units/timers.target.wants/larder-tend.timer"
ln -sfn /etc/systemd/system/larder-network.service "$units/sysinit.target.wants/larder-network.service"
ln -sfn /dev/null "$units/docker-registry.service"

while read -r host port remote minute night; do
    cat >"$root/etc/larder/registry/$host.yml" <<END
version: 0.1
log:
  level: info
  fields:
    upstream: "$host"
storage:
  filesystem:
    rootdirectory: "/var/lib/larder/$host"
  delete:
    enabled: true
  maintenance:
    readonly:
      enabled: true
    uploadpurging:
      enabled: true
      age: 24h
      interval: 6h
      dryrun: false
http:
  addr: "10.0.20.10:$port"
  draintimeout: 300s
proxy:
  remoteurl: "$remote"
END
    mkdir -p "$root/var/lib/larder/$host" "$root/etc/containerd/certs.d/$host" \
        "$units"/larder-{gc,scrub,restart}@"$host".timer.d
    cat >"$root/etc/containerd/certs.d/$host/hosts.toml" <<END
server = "$remote"

[host."http://10.0.20.10:$port"]
capabilities = ["pull", "resolve"]
END
    cat >"$units/larder-gc@$host.timer.d/50-larder.conf" <<END
[Timer]
OnCalendar=
OnCalendar=Sun *-*-* $night
RandomizedDelaySec=600
END
    cat >"$units/larder-scrub@$host.timer.d/50-larder.conf" <<END
[Timer]
OnCalendar=
OnCalendar=*-*-01 $night
RandomizedDelaySec=600
END
    cat >"$units/larder-restart@$host.timer.d/50-larder.conf" <<END
[Timer]
OnCalendar=
OnCalendar=*-*-* *:$minute:00
RandomizedDelaySec=30
END
    ln -sfn /etc/systemd/system/larder-registry@.service \
        "$units/multi-user.target.wants/larder-registry@$host.service"
    ln -sfn /etc/systemd/system/larder-gc@.timer "$units/timers.target.wants/larder-gc@$host.timer"
    ln -sfn /etc/systemd/system/larder-scrub@.timer "$units/timers.target.wants/larder-scrub@$host.timer"
    ln -sfn /etc/systemd/system/larder-restart@.timer "$units/timers.target.wants/larder-restart@$host.timer"
done <<'END'
docker.io 5000 https://registry-1.docker.io 05 01:00:00
ghcr.io 5010 https://ghcr.io 15 01:45:00
quay.io 5020 https://quay.io 25 02:30:00
registry.k8s.io 5030 https://registry.k8s.io 35 03:15:00
reg.kyverno.io 5040 https://reg.kyverno.io 45 04:00:00
END

chmod 0750 "$root/var/lib/larder/gc" "$root"/var/lib/larder/*.io
chown "$owner" "$root/var/lib/larder/gc" "$root"/var/lib/larder/*.io
