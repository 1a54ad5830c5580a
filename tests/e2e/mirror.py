#!/usr/bin/env python3
"""Registries in front of the upstream's, each with a demand of its own, and a log of who asked for what.

    mirror.py CONFIG LOG

CONFIG is JSON: a list of {name, listen} with, where wanted, `certificate` and `key` (https), `client_ca` (a client
certificate is demanded), `prefix` (the API's root, as a Harbor project's), `header` ([name, value], else 403) and
`basic` (user:password, else 401). A file CONFIG.NAME that holds a status makes that the answer to everything;
`STATUS once`, to the next request alone. That and LOG, which gets a line of JSON for each request, are for
containerd's requests: `larder watch` finds all well.
"""

import base64
import http.client
import http.server
import json
import os
import socket
import ssl
import sys
import threading
import urllib.parse

UPSTREAM = "10.0.20.1"
config, log = sys.argv[1], open(sys.argv[2], "a", buffering=1, encoding="utf-8")
CHUNK = 64 * 1024
anybody = ssl.create_default_context()
anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE


def listen(what):
    class Mirror(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            self.is_pull = self.headers.get("User-Agent", "").startswith("containerd/")
            status = self.answer(url)
            if not self.is_pull:
                return
            asked = {"name": what["name"], "method": self.command, "path": url.path, "status": status}
            asked["ns"] = urllib.parse.parse_qs(url.query).get("ns", [""])[0]
            log.write(json.dumps(asked) + "\n")

        do_HEAD = do_GET

        def answer(self, url):
            try:
                if not self.is_pull:
                    return self.end(200)
                with open(f"{config}.{what['name']}", encoding="utf-8") as mode:
                    status, *once = mode.read().split()
                if once:
                    os.unlink(mode.name)
                return self.end(int(status))
            except FileNotFoundError:
                pass
            if "header" in what and self.headers.get(what["header"][0]) != what["header"][1]:
                return self.end(403)
            if "basic" in what:
                wanted = "Basic " + base64.b64encode(what["basic"].encode()).decode()
                if self.headers.get("Authorization") != wanted:
                    return self.end(401, ("WWW-Authenticate", 'Basic realm="test"'))
            prefix = what.get("prefix", "/v2")
            if not url.path.startswith(prefix + "/"):
                return self.end(404)
            onward = http.client.HTTPSConnection(UPSTREAM, context=anybody, timeout=30)
            accept = {"Accept": self.headers["Accept"]} if "Accept" in self.headers else {}
            onward.request(self.command, "/v2" + url.path[len(prefix) :], headers=accept)
            reply = onward.getresponse()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            while self.command != "HEAD" and (data := reply.read(CHUNK)):
                self.wfile.write(data)
            return reply.status

        def end(self, status, *headers):
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()
            return status

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if "[" in what["listen"] else socket.AF_INET

    host, _, port = what["listen"].rpartition(":")
    server = Server((host.strip("[]"), int(port)), Mirror)
    if "certificate" in what:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(what["certificate"], what["key"])
        if "client_ca" in what:
            context.load_verify_locations(what["client_ca"])
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


with open(config, encoding="utf-8") as file:
    for one in json.load(file):
        listen(one)
open(f"{config}.ready", "w").close()
threading.Event().wait()
