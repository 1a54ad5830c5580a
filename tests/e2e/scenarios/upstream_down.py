"""The upstreams are away when the machine boots, and come back later."""

from machine import profile
from report import exits, has
from scenarios.common import UPSTREAMS, has_its_address, pulled, pulls_through_the_cache, push, reference, units_run


def run(t):
    lab = t.lab()
    push(lab, "1")
    lab.upstream.stop()
    node = lab.machine("node")
    node.apply_at_boot(profile())
    node.boot()
    # The registries run: somebody stands in for each. That the upstreams are down is reported.
    t.check("exit code of `larder apply` with all upstreams down", node.out("cat /root/apply.code"), "0")
    t.check("its report names them", node.out("cat /root/apply.out"), has(*(f"WARN {host}" for host in UPSTREAMS)))
    t.check("cloud-init status", node.out("cloud-init status"), has("status: done"))
    has_its_address(t, node, "with all upstreams down")
    t.check("files are in place", node.out("ls /etc/containerd/certs.d"), "\n".join(sorted(UPSTREAMS)))

    # At a boot without them, containerd starts as soon as the files are right; the proof goes on beside it.
    node.reboot()
    t.check("CRI at a boot with all upstreams down", node.wait("ctr plugins ls id==cri | grep -q ok", 20), exits(0))
    seen = node.show("larder.service", "ActiveEnterTimestampMonotonic", "ExecMainExitTimestampMonotonic")
    ready, ended = int(seen["ActiveEnterTimestampMonotonic"]), int(seen["ExecMainExitTimestampMonotonic"])
    t.check("larder.service was ready before the proof was through", ready > 0 and (ended == 0 or ready < ended))

    lab.upstream.start()
    t.check("stand-ins once the upstreams are back", node.wait("! pgrep -u larder -f 'larder unit run'", 60), exits(0))
    t.check("larder.service once the upstreams are back", node.wait("systemctl is-active larder.service", 60), exits(0))
    t.check("verify once the upstreams are back", node.larder("verify"), exits(0))
    units_run(t, node, "once the upstreams are back")
    pulls_through_the_cache(t, lab, node, ["docker.io", "ghcr.io"])

    # An upstream that answers, but with errors: the caches run and serve what they have. Whether that is a
    # failure is the profile's to say.
    lab.upstream.start_behind("status", "503")
    told = node.larder("verify")
    t.check("verify while the upstreams answer 503", told, exits(0))
    t.check("its report warns", str(told), has("WARN", *UPSTREAMS))
    node.write("/root/strict.yaml", profile() + "verify: { upstreams: require }\n")
    t.check("the same where the profile requires them", node.larder("verify", "--profile", "/root/strict.yaml"), exits(4))
    node.forget()
    t.check("pull of a cached image then", node.pull(reference("docker.io")), pulled)

    # An upstream that takes connections and never answers: a registry that starts then listens to nobody.
    lab.upstream.start_behind("hang")
    node.sh("systemctl restart --no-block larder-registry@ghcr.io")
    node.write("/root/short.yaml", profile(extra="verify: { timeout: 15s }\n"))
    silent = node.larder("verify", "--profile", "/root/short.yaml")
    t.check("verify while the upstreams are silent", silent, exits(0))
    t.check("its report warns", str(silent), has("WARN", *UPSTREAMS))
    t.took("verify, of 15 s that it had", silent.seconds, 18)
    lab.upstream.start()
    t.check("verify after that", node.wait("larder verify", 100), exits(0))
