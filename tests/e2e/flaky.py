"""A server that stands in front of another and answers 503 SlowDown, or nothing for a while, as it is told to."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Flaky(ThreadingHTTPServer):
    """Once it has answered `after` requests it answers none for `silence` seconds. The first `outage` get a 503, then
    the share `failing`, and always those of paths that end in `broken`. Counts what it does."""

    daemon_threads = True

    def __init__(
        self, upstream: int, failing: float = 0.0, silence: float = 0.0, after: int = 0, outage: int = 0,
        broken: str = "\n",
    ) -> None:  # fmt: skip
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.failing, self.silence, self.after = upstream, failing, silence, after
        self.failed = self.hung = self.passed = 0
        self.silent_until: float | None = None
        self.outage, self.broken, self.lock, self.random = outage, broken, threading.Lock(), random.Random(0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flaky

    def do_GET(self) -> None:
        with self.server.lock:
            hang = self._silence()
            fail = self._fails()
            self.server.hung += hang > 0
            self.server.failed += fail
            self.server.passed += not fail
        time.sleep(hang)
        if fail:
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)  # the host too, which the client has signed
        upstream.endheaders()
        answer = upstream.getresponse()
        dropped = ("content-length", "transfer-encoding", "connection")
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        self._answer(answer.status, headers, answer.read())
        upstream.close()

    def _silence(self) -> float:
        """Seconds until this request is answered."""
        server, now = self.server, time.monotonic()
        if server.silent_until is None and server.passed >= server.after:
            server.silent_until = now + server.silence
        return max(0.0, (server.silent_until or now) - now)

    def _fails(self) -> bool:
        server = self.server
        chance = server.random.random() < server.failing
        return chance or server.failed < server.outage or self.path.endswith(server.broken)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked has given up waiting

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def flaky(upstream: int, **behaviour: float | str) -> Iterator[Flaky]:
    """See Flaky; `upstream` is a port on this machine."""
    server = Flaky(upstream, **behaviour)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
