"""An OTLP endpoint on loopback that keeps what it is sent."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)


class Collector(ThreadingHTTPServer):
    """Keeps requests; `answers` says what to do with the next ones: a status, or more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[ExportLogsServiceRequest] = []
        self.tries = 0
        self.answers: list[int | ExportLogsServiceResponse | threading.Event] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def records(self) -> list[tuple[dict, dict, object]]:
        """(resource attributes, attributes, record) of every log record taken."""
        return [
            (attributes(of.resource.attributes), attributes(record.attributes), record)
            for request in self.requests
            for of in request.resource_logs
            for scope in of.scope_logs
            for record in scope.log_records
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.tries += 1
        self.server.headers.append(dict(self.headers))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if isinstance(answer, threading.Event):
            answer.wait(20)
            return
        reply = answer if isinstance(answer, ExportLogsServiceResponse) else b""
        status = answer if isinstance(answer, int) else 200
        assert self.path == "/v1/logs"
        if status == 200:
            self.server.requests.append(ExportLogsServiceRequest.FromString(body))
        content = reply.SerializeToString() if reply else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()


def attributes(pairs) -> dict:
    return {pair.key: value(pair.value) for pair in pairs}


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in any_value.array_value.values]
    return getattr(any_value, kind) if kind else None
