#!/usr/bin/env python3
"""Stands in front of a registry and fails on demand; it answers nothing of its own when all is well.

    front.py DIRECTORY LISTEN TARGET hang            accept, and never answer
    front.py DIRECTORY LISTEN TARGET status CODE     that code to every request
    front.py DIRECTORY LISTEN TARGET slow BYTES      pass on, at most BYTES a second for each reply

DIRECTORY has the certificate. TARGET is spoken to in plain HTTP, with the Host that the client named.
"""

import http.client
import http.server
import os
import ssl
import sys
import threading
import time

directory, listen, target, behaviour, *argument = sys.argv[1:]
CHUNK = 64 * 1024


class Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if behaviour == "hang":
            threading.Event().wait()
        if behaviour == "status":
            self.send_response(int(argument[0]))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        onward = http.client.HTTPConnection(target, timeout=60)
        onward.request(self.command, self.path, headers=dict(self.headers))
        reply = onward.getresponse()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        while self.command != "HEAD" and (data := reply.read(CHUNK)):
            self.wfile.write(data)
            time.sleep(len(data) / int(argument[0]))

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


host, _, port = listen.rpartition(":")
server = http.server.ThreadingHTTPServer((host, int(port)), Front)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(directory, "upstream.crt"), os.path.join(directory, "upstream.key"))
# The handshake is the connection's own thread's: a silent client holds up nobody.
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
