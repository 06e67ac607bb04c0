"""A real S3 server on loopback, which fails when it is told to."""

import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Server:
    """moto's S3 over HTTP.

    Attributes:
        endpoint: its URL.
        failures: HTTP method and key → how often such a request is still to fail.
        seen: (method, key) of every request, failed ones too.
        failure: status and code of the answers to those that fail.
    """

    endpoint: str = ""
    failure: tuple[str, str] = ("500 Internal Server Error", "InternalError")
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def s3_server() -> Iterator[Server]:
    """Inside, the server runs in a thread of its own."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    application: Callable[..., Any] = DomainDispatcherApplication(create_backend_app)
    server = Server()
    lock = threading.Lock()

    def with_failures(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        request = (environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/"))
        with lock:
            server.seen.append(request)
            left = server.failures.get(request, 0)
            server.failures[request] = max(0, left - 1)
        if left:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = server.failure
            start_response(status, [("Content-Type", "text/xml")])
            message = f"<Error><Code>{code}</Code><Message>told to fail</Message></Error>"
            return [] if request[0] == "HEAD" else [message.encode()]
        return application(environ, start_response)

    http = make_server("127.0.0.1", 0, with_failures, threaded=True, request_handler=Silent)
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    # moto's buckets outlive its server.
    urllib.request.urlopen(f"{server.endpoint}/moto-api/reset", data=b"").close()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
