"""An HTTP server on the loopback address that only ever reads.

What keeps others out: it listens on 127.0.0.1 alone; other users of this machine are refused; a request whose
Host is not this address is refused, so that a web page which points its own name here (DNS rebinding) learns
nothing; no other origin is ever allowed; anything but GET and HEAD is refused; no path of a request is used as
a path of a file.
"""

import errno
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lockstep.errors import LockstepError, UsageError
from lockstep.ui.answers import Answer, Missing, Site
from lockstep.ui.peers import is_own

ADDRESS = "127.0.0.1"
DEFAULT_PORT = 8123
SILENCE_SECONDS = 30  # a connection on which nothing is said for so long is closed
LONGEST_QUERY = 4096
MOST_FIELDS = 64
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"


class Server(ThreadingHTTPServer):
    """Serves a site until it is told to stop. A thread a connection, none of which outlives the process."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        try:
            super().__init__((ADDRESS, port), Handler)
        except OverflowError:
            raise UsageError(f"port {port}: 0 to 65535 are allowed, 0 for any that is free") from None
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
            raise UsageError(
                f"port {port} of {ADDRESS} {why}: choose another with --port, or --port 0 for any that is free"
            ) from None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{ADDRESS}:{self.port}/"

    def own_names(self) -> set[str]:
        """Every Host that a browser on this machine would send for this server."""
        names = (ADDRESS, "localhost", "[::1]")
        return {f"{name}:{self.port}" for name in names} | (set(names) if self.port == 80 else set())

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """One line for what went wrong with a connection; none where the browser just went away."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            sys.stderr.write(f"a request failed: {type(error).__name__}: {error}\n")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "lockstep"
    sys_version = ""
    timeout = SILENCE_SECONDS
    server: Server

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Every method that is neither GET nor HEAD, known to HTTP or not, is refused in the same way."""
        if name.startswith("do_"):
            return self._refuse_method
        raise AttributeError(name)

    def do_GET(self) -> None:
        """Answer with a page, or say in one line why not."""
        self._send(self._answer())

    def do_HEAD(self) -> None:
        """The same without its body."""
        self._send(self._answer())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base class refuses (a line too long, no HTTP) in the same plain form."""
        self.close_connection = True
        self._send(_plain(code, message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the terminal belongs to who started the server."""

    def _refuse_method(self) -> None:
        self.close_connection = True  # a body may follow, and is not read
        answer = _plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered: nothing here changes")
        answer.headers["Allow"] = "GET, HEAD"
        self._send(answer)

    def _refusal(self) -> Answer | None:
        """Why this request is not answered; None where it is."""
        if self.headers.get_all("Host", []) not in ([name] for name in self.server.own_names()):
            return _plain(HTTPStatus.FORBIDDEN, "this server answers only as localhost or 127.0.0.1")
        if not is_own(self.connection):
            return _plain(HTTPStatus.FORBIDDEN, "this server answers only the user who started it")
        from_elsewhere = self.headers["Sec-Fetch-Site"] == "cross-site"
        if from_elsewhere and self.headers["Sec-Fetch-Mode"] != "navigate":
            return _plain(HTTPStatus.FORBIDDEN, "another site asked")
        return None if self.path.startswith("/") else _plain(HTTPStatus.BAD_REQUEST, "not a path")

    def _answer(self) -> Answer:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # its body is not read
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        parts = urlsplit("http://host" + self.path)
        try:
            query = parse_qs(parts.query[:LONGEST_QUERY], max_num_fields=MOST_FIELDS)
            return self.server.site.answer(parts.path, query)
        except Missing as error:
            return _plain(HTTPStatus.NOT_FOUND, str(error))
        except (LockstepError, ValueError) as error:
            return _plain(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot be read: {error.strerror or error}")

    def _send(self, answer: Answer) -> None:
        asked = getattr(self, "headers", None)  # there are none where the request was no HTTP
        tag = answer.headers.get("ETag")
        unchanged = tag is not None and asked is not None and asked["If-None-Match"] == tag
        body = b"" if unchanged else answer.body
        self.send_response(HTTPStatus.NOT_MODIFIED if unchanged else answer.status)
        told = {"Cache-Control": "no-store", "Content-Security-Policy": NOTHING, **HEADERS, **answer.headers}
        for name, value in told.items():
            self.send_header(name, value)
        if not unchanged:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _plain(status: int, words: str) -> Answer:
    return Answer(f"{words}\n".encode(errors="replace"), "text/plain; charset=utf-8", int(status))
