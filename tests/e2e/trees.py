"""What an operator may have left below /etc: containerd configurations and certs.d trees, good and bad.

The scenario `explain` writes each on every containerd, asks `larder explain`, pulls, and compares. A tree is a
name, the registry host that is pulled from, and files. Nothing here says what comes out: containerd does.

    127.0.0.1:18001…18004   answer plain HTTP        t.test:18443   TLS, and the machine trusts it
    r.test, docker.io       TLS on 443, trusted      u.test:18444   TLS that only PEM below trusts
"""

CERTS = "/etc/containerd/certs.d"
MAIN = "/etc/containerd/config.toml"
V1, V2, V3 = "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
UNTRUSTED = "@untrusted.pem"  # stands for the certificate of u.test


def config(body, version=2, section=None, top=""):
    """A config.toml; REGISTRY in the body is its registry table."""
    section = section or {None: V1, 1: V1, 2: V2}.get(version, V3)
    header = f"version = {version}\n" if version else ""
    table = f'plugins."{section}".registry'
    return f"{header}{top}[{table}]\n" + body.replace("REGISTRY", table) + "\n"


PATH = f'config_path = "{CERTS}"'
PLAIN = config(PATH)
MIRROR = '[host."http://127.0.0.1:18001"]\n'
SECOND = '[host."http://127.0.0.1:18002"]\n'
SERVER = 'server = "http://127.0.0.1:18003"\n'


def hosts(name, text, host="r.test", **more):
    """A certs.d in the one directory that all read, with a hosts.toml for the host."""
    return tree(name, {f"{CERTS}/{more.pop('directory', host)}/hosts.toml": text, **more.pop("files", {})}, host)


def tree(name, files, host="r.test", main=PLAIN):
    if main is not None:
        files = {MAIN: main, **files}
    return {"name": name, "host": host, "files": files}


def configured(name, main, host="r.test", **files):
    """A configuration, with one mirror below certs.d that it finds or not."""
    files = {path: text for path, text in files.items()}
    return tree(name, {f"{CERTS}/_default/hosts.toml": MIRROR, **{f"/etc/containerd/{p}": x for p, x in files.items()}}, host, main)


def drop_in(name, main, text, path="conf.d/10.toml", imports="/etc/containerd/conf.d/*.toml", **more):
    main = f'imports = ["{imports}"]\n' + main
    return configured(name, main, **{path: text, **more})


def with_option(option, url="http://127.0.0.1:18001"):
    return f'[host."{url}"]\n{option}\n{SECOND}'


TREES = [
    # ---- hosts.toml
    tree("nothing for the host", {}),
    hosts("a mirror", MIRROR),
    hosts("two mirrors, in the order of the file", SECOND + MIRROR),
    hosts("mirror and server", SERVER + MIRROR),
    hosts("a server alone", SERVER),
    hosts("the server is the mirror", 'server = "http://127.0.0.1:18001"\n' + MIRROR),
    hosts("no TOML", "server = \n" + MIRROR),
    hosts("an unknown capability", with_option('capabilities = ["pull", "reslove"]')),
    hosts("capabilities in upper case", with_option('capabilities = ["PULL", "Resolve"]')),
    hosts("referrers", with_option('capabilities = ["pull", "resolve", "referrers"]')),
    hosts("a mirror for blobs only", with_option('capabilities = ["pull"]')),
    hosts("no capability at all", with_option("capabilities = []")),
    hosts("a server that is only pushed to", SERVER + 'capabilities = ["push"]\n' + MIRROR),
    hosts("capabilities of a server that is missing", 'capabilities = ["push"]\n' + MIRROR),
    hosts("a path", with_option("", "http://127.0.0.1:18001/proxy/")),
    hosts("a path that ends in v2", with_option("", "http://127.0.0.1:18001/proxy/v2")),
    hosts("a whole path", with_option("override_path = true", "http://127.0.0.1:18001/v2/proxy")),
    hosts("a whole path without saying so", with_option("", "http://127.0.0.1:18001/v2/proxy")),
    hosts("override_path without a path", with_option("override_path = true")),
    hosts("a slash", with_option("", "http://127.0.0.1:18001/")),
    hosts("no scheme", with_option("", "t.test:18443")),
    hosts("a scheme in upper case", with_option("", "HTTP://127.0.0.1:18001")),
    hosts("a server with a scheme in upper case", 'server = "HTTPS://t.test:18443"\n' + MIRROR),
    hosts("a name that begins like a scheme", with_option("", "http.test:18443")),
    hosts("user and query", with_option("", "http://u:p@127.0.0.1:18001/?x=1")),
    hosts("a bad port", with_option("", "http://127.0.0.1:x")),
    hosts("an IPv6 address", with_option("", "http://[::1]:18001")),
    hosts("an IPv6 server", 'server = "http://[::1]:18001"\n' + SECOND),
    hosts("an inline host", 'host = { "http://127.0.0.1:18001" = {} }\n'),
    hosts("dotted keys", 'host."http://127.0.0.1:18001".override_path = false\n'),
    hosts("an inline table below [host]", '[host]\n"http://127.0.0.1:18001" = {}\n'),
    hosts("an inline host beside a table", '[host]\n"http://127.0.0.1:18001" = {}\n' + SECOND),
    hosts("dotted keys below [host]", '[host]\n"http://127.0.0.1:18001".override_path = false\n' + SECOND),
    hosts("a header after another host", MIRROR + SECOND + '[host."http://127.0.0.1:18001".header]\nX = "y"\n'),
    hosts("a header before its host", '[host."http://127.0.0.1:18001".header]\nX = "y"\n' + SECOND + MIRROR),
    hosts("a host that is a text", 'host = "http://127.0.0.1:18001"\n'),
    hosts("an array of hosts", '[[host]]\nurl = "http://127.0.0.1:18001"\n'),
    hosts("one host that is no table", '[host]\n"http://127.0.0.1:18001" = 1\n'),
    hosts("two hosts that are no tables", '[host]\n"http://127.0.0.1:18001" = 1\n"http://127.0.0.1:18002" = 2\n'),
    hosts("the server below a table", MIRROR + SERVER),
    hosts("keys that nobody knows", with_option('username = "u"\nauth = { credHelper = "x" }\ntimeout = "1s"')),
    hosts("a mark of byte order", "\ufeff" + MIRROR),
    hosts("an escape of TOML 1.1", with_option('x = "\\e"')),
    hosts("an inline table on two lines", with_option("header = { X = \"y\",\n Y = \"z\" }")),
    hosts("server in upper case", SERVER.upper().replace("HTTP", "http") + MIRROR),
    hosts("Server with one", SERVER.replace("server", "Server") + MIRROR),
    hosts("skip_verify on http", with_option("skip_verify = true")),
    hosts("skip_verify = false on http", with_option("skip_verify = false")),
    hosts("skip_verify on http and port 80", with_option("skip_verify = true", "http://t.test")),
    hosts("skip_verify as a text", with_option('skip_verify = "true"')),
    hosts("skip_verify on https", with_option("skip_verify = true", "https://u.test:18444")),
    hosts("https that nobody trusts", with_option("", "https://u.test:18444")),
    hosts("http to a port of https", with_option("", "http://t.test:18443")),
    hosts("http with skip_verify to a port of https", with_option("skip_verify = true", "http://u.test:18444")),
    hosts("https to a port of http", with_option("", "https://127.0.0.1:18001")),
    hosts("a CA", with_option('ca = "u.pem"', "https://u.test:18444"), files={f"{CERTS}/r.test/u.pem": UNTRUSTED}),
    hosts("a list of CAs", with_option('ca = ["/etc/containerd/u.pem"]', "https://u.test:18444"), files={"/etc/containerd/u.pem": UNTRUSTED}),
    hosts("a CA that is missing", with_option('ca = "/none.pem"', "https://u.test:18444")),
    hosts("a CA that is none", with_option('ca = "hosts.toml"', "https://u.test:18444")),
    hosts("no CA in a list", with_option("ca = []")),
    hosts("a CA that is a number", with_option("ca = 5")),
    hosts("a client certificate that is missing", with_option('client = [["/none.cert", "/none.key"]]', "https://t.test:18443")),
    hosts("three files for a client", with_option('client = [["a", "b", "c"]]', "https://t.test:18443")),
    hosts("a dial_timeout", with_option('dial_timeout = "1s"')),
    hosts("a dial_timeout that is none", with_option('dial_timeout = "1"')),
    hosts("a dial_timeout that is a number", with_option("dial_timeout = 5")),
    hosts("capabilities as a text", with_option('capabilities = "pull"')),
    hosts("override_path as a text", with_option('override_path = "yes"')),
    hosts("a header that is a number", with_option('header = { X = 1 }')),
    hosts("a header that is a text", with_option('header = { X = "1", Y = ["2"] }')),
    # ---- directories
    tree("an empty hosts.toml masks _default", {f"{CERTS}/r.test/hosts.toml": "", f"{CERTS}/_default/hosts.toml": MIRROR}),
    tree("an empty directory masks _default", {f"{CERTS}/r.test/": None, f"{CERTS}/_default/hosts.toml": MIRROR}),
    hosts("comments only", "# nothing\n", files={f"{CERTS}/_default/hosts.toml": MIRROR}),
    hosts("_default", MIRROR, directory="_default"),
    hosts("_default with a server", SERVER + MIRROR, directory="_default"),
    hosts("the port with underscores", MIRROR, "t.test:18443", directory="t.test_18443_", files={f"{CERTS}/t.test:18443/hosts.toml": SECOND}),
    hosts("the port with a colon", MIRROR, "t.test:18443"),
    hosts("the host without its port", MIRROR, "t.test:18443", directory="t.test"),
    tree("a file in place of the directory", {f"{CERTS}/r.test": MIRROR}),
    tree("a directory in place of the file", {f"{CERTS}/r.test/hosts.toml/": None}),
    tree("a CA as Docker has it", {f"{CERTS}/u.test:18444/ca.crt": UNTRUSTED}, "u.test:18444"),
    tree("a CA as Docker has it, which is none", {f"{CERTS}/u.test:18444/ca.crt": "x"}, "u.test:18444"),
    tree("a client without key", {f"{CERTS}/r.test/a.cert": UNTRUSTED, f"{CERTS}/r.test/b.key": "x"}),
    hosts("a rejected file beside Docker's CA", "x", "u.test:18444", files={f"{CERTS}/u.test:18444/ca.crt": UNTRUSTED}),
    hosts("a good file beside Docker's CA", MIRROR, "u.test:18444", files={f"{CERTS}/u.test:18444/ca.crt": UNTRUSTED}),
    hosts("a CA for the server that is not named", 'ca = "u.pem"\n' + MIRROR, "u.test:18444", files={f"{CERTS}/u.test:18444/u.pem": UNTRUSTED}),
    tree("loopback", {}, "127.0.0.1:18003"),
    tree("localhost", {}, "localhost:18003"),
    tree("loopback, port 80", {}, "127.0.0.1:80"),
    tree("loopback, TLS", {}, "127.0.0.1:18444"),
    hosts("loopback with a mirror", MIRROR, "127.0.0.1:18003"),
    hosts("Docker Hub", MIRROR, "docker.io"),
    hosts("Docker Hub with its server", 'server = "https://registry-1.docker.io"\n' + MIRROR, "docker.io"),
    hosts("Docker Hub by another name", MIRROR, "docker.io", directory="registry-1.docker.io"),
    # ---- config.toml: versions and sections
    configured("no config.toml", None),
    configured("an empty config.toml", ""),
    configured("no version, section of version 1", config(PATH, None)),
    configured("no version, section of version 2", config(PATH, None, V2)),
    configured("no version, section of version 3", config(PATH, None, V3)),
    configured("version 1", config(PATH, 1)),
    configured("version 2 with the section of 1", config(PATH, 2, V1)),
    configured("version 2 with the section of 3", config(PATH, 2, V3)),
    configured("version 3", config(PATH, 3)),
    configured("version 3 with the section of 2", config(PATH, 3, V2)),
    configured("version 4", config(PATH, 4)),
    configured("version 9", config(PATH, 9)),
    # ---- config_path
    configured("two directories", config(f'config_path = "{CERTS}:/etc/docker/certs.d"')),
    configured("two directories and auth", config(f'config_path = "{CERTS}:/etc/docker/certs.d"\n[REGISTRY.configs."x".auth]\nusername = "u"')),
    configured("two directories, the second", config(f'config_path = "/none:{CERTS}"\n[REGISTRY.configs."x".auth]\nusername = "u"')),
    configured("a slash at the end", config(f'config_path = "{CERTS}/"')),
    configured("a relative directory", config('config_path = "etc/containerd/certs.d"')),
    configured("a directory that is missing", config('config_path = "/none"')),
    configured("a directory that is a file", config('config_path = "/etc/hostname"')),
    configured("an empty config_path", config('config_path = ""')),
    configured("a list of directories", config(f'config_path = ["{CERTS}"]')),
    configured("a table twice", PLAIN + PLAIN.replace("version = 2\n", "")),
    # ---- beside config_path
    configured("mirrors beside it", config(PATH + '\n[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:18002"]')),
    configured("no mirror beside it", config(PATH + "\n[REGISTRY.mirrors]")),
    configured("tls beside it", config(PATH + '\n[REGISTRY.configs."r.test".tls]\ninsecure_skip_verify = true')),
    configured("auth beside it", config(PATH + '\n[REGISTRY.configs."r.test".auth]\nusername = "u"\npassword = "p"')),
    configured("auths beside it", config(PATH + '\n[REGISTRY.auths."https://r.test"]\nusername = "u"\npassword = "p"')),
    configured("headers beside it", config(PATH + '\n[REGISTRY.headers]\nX = ["y"]')),
    configured("an unknown key beside it", config(PATH + '\nmax = 1\n[REGISTRY.configs."r.test"]\nmax_concurrent_downloads = 1')),
    configured("a header that is no list", config(PATH + '\n[REGISTRY.headers]\nX = "y"')),
    # ---- legacy mirrors
    configured("a legacy mirror", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:18002"]')),
    configured("a legacy mirror of version 3", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:18002"]', 3)),
    configured("a legacy mirror for all", config('[REGISTRY.mirrors."*"]\nendpoint = ["http://127.0.0.1:18002", "http://127.0.0.1:18001"]')),
    configured("one for all, and none for this", config('[REGISTRY.mirrors."*"]\nendpoint = ["http://127.0.0.1:18002"]\n[REGISTRY.mirrors."r.test"]\nendpoint = []')),
    configured("legacy paths", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:18002/v2/p", "http://127.0.0.1:18001/p/", "http://127.0.0.1:18003/"]')),
    configured("the host among its mirrors", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["https://r.test", "http://127.0.0.1:18001"]')),
    configured("no scheme in mirrors", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["127.0.0.1:18001", "t.test:18443"]')),
    configured("Docker Hub's mirrors", config('[REGISTRY.mirrors."docker.io"]\nendpoint = ["http://127.0.0.1:18001", "https://registry-1.docker.io"]'), "docker.io"),
    configured("a mirror that is no URL", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:x"]')),
    configured("an endpoint that is a text", config('[REGISTRY.mirrors."r.test"]\nendpoint = "http://127.0.0.1:18002"')),
    configured("legacy tls", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["https://u.test:18444"]\n[REGISTRY.configs."u.test:18444".tls]\ninsecure_skip_verify = true')),
    configured("a legacy CA", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["https://u.test:18444"]\n[REGISTRY.configs."u.test:18444".tls]\nca_file = "/etc/containerd/u.pem"'), **{"u.pem": UNTRUSTED}),
    configured("a legacy CA that is missing", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["https://u.test:18444"]\n[REGISTRY.configs."u.test:18444".tls]\nca_file = "/none"')),
    configured("half a legacy pair", config('[REGISTRY.configs."r.test".tls]\ncert_file = "/none"')),
    configured("loopback without anything", config(""), "127.0.0.1:18003"),
    configured("an IPv6 mirror's table", config('[REGISTRY.mirrors."[::1]:5"]\nendpoint = []')),
    # ---- plugins
    configured("cri disabled, no version", 'disabled_plugins = ["cri"]\n'),
    configured("cri disabled by its short name in version 2", 'version = 2\ndisabled_plugins = ["cri"]\n'),
    configured("cri disabled", f'version = 2\ndisabled_plugins = ["{V2}"]\n'),
    configured("images disabled", f'version = 2\ndisabled_plugins = ["{V3}"]\n'),
    configured("a bad progress timeout", f'version = 2\n[plugins."{V2}"]\nimage_pull_progress_timeout = "5"\n'),
    configured("more downloads and two directories", f'version = 2\n[plugins."{V2}"]\nmax_concurrent_downloads = 5\n[plugins."{V2}".registry]\nconfig_path = "{CERTS}:/x"\n'),
    # ---- imports
    drop_in("a drop-in of config_path", "version = 2\n", PLAIN),
    drop_in("a drop-in of another CRI setting", PLAIN, f'version = 2\n[plugins."{V2}"]\nenable_selinux = false\n'),
    drop_in("a drop-in without CRI", PLAIN, 'version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\nstartup_delay = "100ms"\n'),
    drop_in("a drop-in that takes it back", PLAIN, config('config_path = ""')),
    drop_in("a drop-in of the newest version", PLAIN, config('config_path = "/none"', 3)),
    drop_in("a drop-in of version 3 without CRI", PLAIN, "version = 3\n"),
    drop_in("version 3, and a drop-in of version 2", config(PATH, 3), config('config_path = "/none"')),
    drop_in("a drop-in without a version", PLAIN, config('config_path = "/none"', None, V2)),
    drop_in("a drop-in of version 1", PLAIN, config('config_path = "/none"', 1)),
    drop_in("mirrors, and a drop-in of config_path", config('[REGISTRY.mirrors."r.test"]\nendpoint = ["http://127.0.0.1:18002"]'), PLAIN),
    drop_in("no TOML", PLAIN, "version = = 2\n"),
    drop_in("a relative pattern", "version = 2\n", PLAIN, imports="conf.d/*.toml"),
    drop_in("a relative path", "version = 2\n", PLAIN, imports="conf.d/10.toml"),
    drop_in("a path that is missing", PLAIN, "version = 2\n", imports="/none.toml"),
    drop_in("a pattern that fits nothing", PLAIN, "version = 2\n", imports="/none/*.toml"),
    drop_in("a question mark", PLAIN, "version = 2\n", imports="/etc/containerd/conf.d/1?.toml"),
    drop_in("a range beside a star", "version = 2\n", PLAIN, imports="/etc/containerd/conf.d/[0-9]*.toml"),
    drop_in("a folder", PLAIN, "version = 2\n", imports="/etc/containerd/conf.d"),
    drop_in("imports in a circle", "version = 2\n", 'imports = ["/etc/containerd/config.toml", "20.other"]\nversion = 2\n', **{"conf.d/20.other": PLAIN}),
    drop_in("the last of two", "version = 2\n", config('config_path = "/none"'), **{"conf.d/20.toml": PLAIN}),
]
