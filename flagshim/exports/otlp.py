"""A trace as log records to an OTLP endpoint, https://opentelemetry.io/docs/specs/otlp/.

By HTTP and protobuf, with the SDK's own exporter: it does the encoding, the retries (with growing
waits, for as long as $OTEL_EXPORTER_OTLP_TIMEOUT allows) and the headers, certificates and
compression that the OTEL_EXPORTER_OTLP_… variables ask for. Needs the extra "otlp".
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult

from flagshim.errors import FlagshimError
from flagshim.exports.logrecords import LogRecords
from flagshim.exports.records import Record

_BATCH = 503


def send(records: Iterable[Record], endpoint: str) -> int:
    """Send records as log records.

    Args:
        records: whose sessions, hosts and CI jobs become resource attributes.
        endpoint: URL; if it has no path, /v1/logs is meant.

    Returns:
        How many there were; the endpoint has taken them all.

    Raises:
        FlagshimError: it did not.
    """
    url = _logs_url(endpoint)
    for name in ("opentelemetry", "urllib3"):  # they would tell of each try
        logging.getLogger(name).addHandler(logging.NullHandler())
    log_records = map(LogRecords().make, records)
    connection = _Connection(url)
    taken = 0
    try:
        while batch := list(islice(log_records, _BATCH)):
            refused, cause = connection.send(batch)
            taken += len(batch) - refused
            if refused:
                raise FlagshimError(
                    f"{shown(url)}: {cause} ({taken} records were taken)",
                    "the trace still has them: run the same command again",
                )
    finally:
        connection.close()
    return taken


class _Connection:
    def __init__(self, url: str) -> None:
        self._session = _Session()
        self._exporter = OTLPLogExporter(endpoint=url, session=self._session)

    def send(self, batch: Sequence[ReadableLogRecord]) -> tuple[int, str]:
        """Send a batch; return how many records were not taken, and why."""
        result = self._exporter.export(batch)
        answer = self._session.answer
        if result is not LogRecordExportResult.SUCCESS:
            if answer is not None:
                return len(batch), f"{answer.status_code} {answer.reason}"
            return len(batch), _cause(self._session.error)
        try:
            reply = ExportLogsServiceResponse.FromString(answer.content if answer else b"")
        except DecodeError:  # an OK all the same
            return 0, ""
        partial = reply.partial_success
        return partial.rejected_log_records, partial.error_message or "it did not say why"

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Session(requests.Session):
    """Remembers what came of the last request.

    The exporter tells only whether there was an answer that says OK. Why not, and that the
    endpoint took a part only ("partial success"), is in what came by HTTP.
    """

    answer: requests.Response | None = None
    error: Exception | None = None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401
        """Send one request."""
        self.answer = self.error = None
        try:
            self.answer = super().send(request, **options)
        except requests.RequestException as error:
            self.error = error
            raise
        return self.answer


def shown(url: str) -> str:
    """Return a URL without the user name and password in it, which are nobody's business."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('//')[0]}//{after}" if at else url


def _logs_url(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        usable = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise FlagshimError(
            f"--otlp {shown(endpoint)}: not the URL of an OTLP endpoint",
            "as in --otlp http://collector:4318",
        )
    return urlunsplit(parts._replace(path="/v1/logs")) if parts.path in ("", "/") else endpoint


def _cause(error: BaseException | None) -> str:
    """Return the few words at the bottom of what requests and urllib3 wrapped around them."""
    words = "it could not be reached"
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        words = str(error)
        error = error.__cause__ or error.__context__
    return words
