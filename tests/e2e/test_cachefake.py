"""cachefake.py by itself: no root, no machine. `python3 -m unittest discover tests/e2e`."""

import http.client
import os
import ssl
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import cachefake
from fake import Door, Fake, certificate


class Local(Fake):
    """A fake on this host instead of a lab's gateway."""

    def __init__(self, directory):
        self.lab = self.node = None
        self.directory, self.opened = directory, []
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, "cachefake.py"), "serve", directory])
        deadline = time.monotonic() + 15
        while not os.path.exists(directory + "/control") and time.monotonic() < deadline:
            time.sleep(0.02)


class CacheFake(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.fake = Local(self.place.name + "/fake")

    def tearDown(self):
        self.fake.close()
        self.place.cleanup()

    def door(self, **options):
        return self.fake.door("127.0.0.1:0", **options)

    def ask(self, door, path="/v2/", context=None, **headers):
        kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
        connection = kind(door.name, timeout=5, **({} if context is None else {"context": context}))
        self.addCleanup(connection.close)
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        reply.body = reply.read()
        return reply

    def test_behaviour_changes_between_requests(self):
        door = self.door()
        connection = http.client.HTTPConnection(door.name, timeout=5)
        self.addCleanup(connection.close)
        got = []
        for behaviour in (["pass"], ["status", 500], ["pass"]):
            door.set(*behaviour)
            connection.request("GET", "/v2/")
            reply = connection.getresponse()
            reply.read()
            got.append(reply.status)
        self.assertEqual(got, [200, 500, 200])

    def test_only_concerns_some_paths(self):
        door = self.door()
        door.set("status", 429, only="/blobs/")
        self.assertEqual([self.ask(door, f"/v2/a/{what}/x").status for what in ("manifests", "blobs")], [404, 429])

    def test_refuse_ends_open_connections_and_comes_back(self):
        door = self.door()
        open_one = http.client.HTTPConnection(door.name, timeout=5)
        self.addCleanup(open_one.close)
        open_one.request("GET", "/v2/")
        open_one.getresponse().read()
        door.set("refuse")
        with self.assertRaises(ConnectionRefusedError):
            self.ask(door)
        with self.assertRaises((OSError, http.client.HTTPException)):
            open_one.sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
            if not open_one.sock.recv(1):
                raise ConnectionResetError
        door.set("pass")
        self.assertEqual(self.ask(door).status, 200)

    def test_stall_gives_half_of_a_blob(self):
        behind = self.door()
        door = self.door(target=f"http://{behind.name}")
        door.set("stall")
        connection = http.client.HTTPConnection(door.name, timeout=1)
        self.addCleanup(connection.close)
        connection.request("GET", "/v2/a/blobs/x")
        reply = connection.getresponse()
        self.addCleanup(reply.close)
        length = int(reply.getheader("Content-Length"))
        half = reply.read(length // 2)
        self.assertEqual(len(half), length // 2)
        with self.assertRaises(TimeoutError):
            reply.read(1)
        self.assertEqual(self.ask(door, "/v2/a/manifests/x").status, 404)

    def test_credentials(self):
        basic = self.door(basic="mirror:secret")
        given = "Basic bWlycm9yOnNlY3JldA=="
        self.assertIn("Basic", self.ask(basic).getheader("WWW-Authenticate"))
        self.assertEqual(self.ask(basic, Authorization=given).status, 200)
        bearer = self.door(bearer="mirror:secret")
        self.assertIn("/token", self.ask(bearer).getheader("WWW-Authenticate"))
        self.assertEqual(self.ask(bearer, "/token?scope=x").status, 401)
        self.assertIn(cachefake.TOKEN.encode(), self.ask(bearer, "/token?scope=x", Authorization=given).body)
        self.assertEqual(self.ask(bearer, Authorization="Bearer " + cachefake.TOKEN).status, 200)
        header = self.door(header=("X-Mirror", "yes"))
        self.assertEqual([self.ask(header).status, self.ask(header, **{"X-Mirror": "yes"}).status], [403, 200])

    def test_client_certificates(self):
        crt, key, authority = certificate(self.place.name, "server", "127.0.0.1")
        mine = certificate(self.place.name, "client", authority="clients", client=True)
        door = self.door(tls=(crt, key), client_ca=mine[2])
        context = ssl.create_default_context(cafile=authority)
        with self.assertRaises(OSError):
            self.ask(door, context=context)
        context.load_cert_chain(mine[0], mine[1])
        self.assertEqual(self.ask(door, context=context).status, 200)

    def test_the_log_keeps_the_order(self):
        doors = self.fake.record(20)
        mark = self.fake.mark()
        for door in reversed(doors):
            self.ask(door, f"/v2/a/manifests/1?ns=x%3A5000", **{"User-Agent": "me"})
        asked = self.fake.requests(mark)
        self.assertEqual([request.door for request in asked], [door.name for door in reversed(doors)])
        self.assertEqual(
            {(r.method, r.path, r.agent, r.status) for r in asked},
            {("GET", "/v2/a/manifests/1?ns=x%3A5000", "me", 404)},
        )

    def test_mistakes_are_told(self):
        door = self.door()
        for wrong in (lambda: door.set("explode"), lambda: door.set("status"), lambda: Door(self.fake, "x:1").set("pass")):
            with self.assertRaises(OSError):
                wrong()


if __name__ == "__main__":
    unittest.main()
