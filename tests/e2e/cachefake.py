#!/usr/bin/env python3
"""A cache that misbehaves on demand: listeners ("doors") that pass requests on, fail, and keep a log.

    cachefake.py serve DIR         serve until killed; DIR gets `control` (a socket) and `log`
    cachefake.py tell DIR JSON     one command to the one that serves there; prints its answer

Commands are objects; `door` is ADDRESS:PORT.

    {"open": DOOR, "target": URL or null, "tls": {"certificate", "key", "client_ca"}, "basic": "USER:PASSWORD",
     "bearer": "USER:PASSWORD", "header": ["NAME", "VALUE"]}      only "open" is needed; port 0 takes a free one
    {"set": DOOR, "behaviour": [WORD, ...], "only": REGEX}         for requests whose path has REGEX; others pass

    pass                  on to the target, or 404 where there is none (and 200 for /v2/)
    refuse                nothing listens, and open connections are reset
    status CODE [NAME VALUE]...    that, to every request, with these headers
    hang                  take the request, never answer
    mute                  accept, and do nothing: no TLS handshake, no request is read
    stall                 pass, but fall silent after half of a blob's body
    slow BYTES            pass, at most BYTES a second
    flap SECONDS [WORD]   pass and refuse (or WORD...) in turn, SECONDS each

`basic` answers 401 and a challenge to a request without these credentials, `bearer` sends it to /token for them,
and `header` answers 403 without that header; all after the behaviour had its say. The log has a JSON object a line,
when the status is known (0: none): n, time, door, method, path (with its query), host, agent, auth, status. `n` is
the order in which requests came in.
"""

import base64
import http.client
import http.server
import itertools
import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse

CHUNK = 16 * 1024
HOP = ("connection", "keep-alive", "transfer-encoding", "host", "te", "upgrade")
TOKEN = "e2e-token"
WORDS = {"pass": 0, "refuse": 0, "status": 1, "hang": 0, "mute": 0, "stall": 0, "slow": 1, "flap": 1}


class Log:
    def __init__(self, path):
        self.file, self.lock, self.count = open(path, "a", encoding="utf-8"), threading.Lock(), itertools.count(1)

    def write(self, **entry):
        with self.lock:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()


class Door:
    """One listener. `behaviour` is read for each request, so that a change holds for the next one."""

    def __init__(self, log, address, port, target=None, tls=None, basic=None, bearer=None, header=None):
        self.log, self.target, self.header = log, target and urllib.parse.urlsplit(target), header
        self.basic = basic and "Basic " + base64.b64encode(basic.encode()).decode()
        self.bearer = bearer and "Basic " + base64.b64encode(bearer.encode()).decode()
        self.lock, self.connections, self.listener, self.change = threading.RLock(), set(), None, 0
        self.behaviour, self.only, self.context = ("pass",), None, None
        if tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(tls["certificate"], tls["key"])
            if tls.get("client_ca"):
                self.context.verify_mode = ssl.CERT_REQUIRED
                self.context.load_verify_locations(tls["client_ca"])
        self.address, self.port = address, port
        self.listen()
        self.port = self.listener.getsockname()[1]
        self.name = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    def set(self, behaviour, only=None):
        words = [str(word) for word in behaviour]
        if not words or words[0] not in WORDS or len(words) <= WORDS[words[0]]:
            raise ValueError(f"set {self.name}: no behaviour {' '.join(words)!r}")
        with self.lock:
            self.change += 1
            change = self.change
            if words[0] != "flap":
                return self.become(words, only)
        # The first half period is over before this returns, or flapping would begin at a moment nobody knows.
        period, other = float(words[1]), words[2:] or ["refuse"]
        self.become(["pass"], only)
        threading.Thread(target=self.flap, args=(change, period, other, only), daemon=True).start()

    def flap(self, change, period, other, only):
        for words in itertools.cycle((other, ["pass"])):
            time.sleep(period)
            with self.lock:
                if self.change != change:
                    return
                self.become(words, only)

    def become(self, words, only):
        with self.lock:
            self.behaviour, self.only = tuple(words), only and re.compile(only)
            self.close() if words[0] == "refuse" else self.listen()

    def listen(self):
        with self.lock:
            if self.listener is None:
                family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
                self.listener = socket.create_server((self.address, self.port), family=family, backlog=128)
                self.accepting = threading.Thread(target=self.accept, args=(self.listener,), daemon=True)
                self.accepting.start()

    def close(self):
        with self.lock:
            listener, self.listener = self.listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            self.accepting.join()
            listener.close()
        for connection in list(self.connections):
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept(self, listener):
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self.connections.add(connection)
            threading.Thread(target=self.serve, args=(connection, peer), daemon=True).start()

    def serve(self, connection, peer):
        kept = connection
        try:
            if self.behaviour[0] == "mute":
                self.record(next(self.log.count), "-", "", {}, 0)
                silence()
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
                self.connections.add(connection)
                self.connections.discard(kept)
                kept = connection
            Handler(connection, peer, self)
        except (OSError, ValueError):
            pass
        finally:
            self.connections.discard(kept)
            connection.close()

    def record(self, n, method, path, headers, status):
        self.log.write(
            n=n,
            time=round(time.time(), 3),
            door=self.name,
            method=method,
            path=path,
            host=headers.get("Host", ""),
            agent=headers.get("User-Agent", ""),
            auth=headers.get("Authorization", ""),
            status=status,
        )


def silence():
    threading.Event().wait()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def any(self):
        self.n = next(self.server.log.count)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        door = self.server
        word, *argument = door.behaviour
        if door.only is not None and not door.only.search(self.path):
            word, argument = "pass", []
        if word in ("hang", "mute"):
            self.record(0)
            silence()
        elif word == "status":
            self.answer(int(argument[0]), headers=zip(argument[1::2], argument[2::2]))
        elif self.admitted():
            self.forward(word, *argument)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = any

    def admitted(self):
        door = self.server
        given = self.headers.get("Authorization")
        if door.header and self.headers.get(door.header[0]) != door.header[1]:
            self.answer(403)
        elif door.basic and given != door.basic:
            self.answer(401, challenge='Basic realm="fake"')
        elif door.bearer and self.path.startswith("/token"):
            # A client that tries OAuth's POST first is told to ask as Docker's clients do.
            if self.command != "GET" or given != door.bearer:
                self.answer(404 if self.command != "GET" else 401)
            else:
                self.answer(200, body=json.dumps({"token": TOKEN, "access_token": TOKEN, "expires_in": 300}))
        elif door.bearer and given != "Bearer " + TOKEN:
            realm = f"{'https' if door.context else 'http'}://{self.headers.get('Host')}/token"
            self.answer(401, challenge=f'Bearer realm="{realm}",service="fake",scope="repository:any:pull"')
        else:
            return True
        return False

    def forward(self, word, argument=None):
        target = self.server.target
        if target is None:
            return self.answer(200 if self.path.partition("?")[0] == "/v2/" else 404)
        if target.scheme == "https":
            context = ssl._create_unverified_context()
            onward = http.client.HTTPSConnection(target.netloc, timeout=60, context=context)
        else:
            onward = http.client.HTTPConnection(target.netloc, timeout=60)
        # The Host is the target's: what passes here is not mistaken for what a client asked of it.
        headers = {name: value for name, value in self.headers.items() if name.lower() not in (*HOP, "authorization")}
        try:
            onward.request(self.command, target.path.rstrip("/") + self.path, self.body or None, headers)
            reply = onward.getresponse()
        except OSError:
            return self.answer(502)
        self.record(reply.status)
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        length = reply.getheader("Content-Length")
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        half = None
        if word == "stall" and "/blobs/" in self.path and self.command == "GET":
            half = int(length or 0) // 2
        while self.command != "HEAD" and (data := reply.read(CHUNK if half is None else min(CHUNK, half))):
            self.wfile.write(data)
            if half is not None:
                half -= len(data)
                if half <= 0:
                    silence()
            if word == "slow":
                time.sleep(len(data) / int(argument))
        onward.close()

    def answer(self, status, challenge=None, body=None, headers=()):
        self.record(status)
        if body is None:
            code = "NAME_UNKNOWN" if status == 404 and self.server.behaviour[0] == "status" else "FAKE"
            body = json.dumps({"errors": [{"code": code, "message": f"{status} on demand"}]})
        data = body.encode()
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def record(self, status):
        self.server.record(self.n, self.command, self.path, self.headers, status)

    def log_message(self, *_):
        pass


def address(door):
    host, _, port = door.rpartition(":")
    return host.strip("[]"), int(port)


def obey(doors, log, command):
    if "open" in command:
        options = {key: value for key, value in command.items() if key != "open"}
        door = Door(log, *address(command["open"]), **options)
        doors[door.name] = door
        return {"door": door.name}
    if command["set"] not in doors:
        raise ValueError(f"set {command['set']}: no such door")
    doors[command["set"]].set(command["behaviour"], command.get("only"))
    return {"door": command["set"]}


def serve(directory):
    os.makedirs(directory, exist_ok=True)
    control, log, doors = os.path.join(directory, "control"), Log(os.path.join(directory, "log")), {}
    if os.path.exists(control):
        os.unlink(control)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(control)
    listener.listen(16)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            try:
                answer = obey(doors, log, json.loads(stream.readline()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(answer) + "\n")
            stream.flush()


def tell(directory, command):
    """The answer to one command."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.path.join(directory, "control"))
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(command) + "\n")
            stream.flush()
            return json.loads(stream.readline())


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "tell":
        print(json.dumps(tell(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
