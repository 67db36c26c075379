"""A span of OpenTelemetry for each request, with an event for each flagged image (extra `otel`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from threading import Thread

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from advconn.errors import printable
from advconn.runtime.trace_context import traced
from advconn.serving.log import FlaggedImage
from advconn.serving.trace import Tracing

MOST_EVENTS = 32  # flagged images of a request that its span tells one by one
LONGEST = 1000  # letters of an attribute
CLOSING_SECONDS = 3.0  # that the last spans may take to be sent


class OpenTelemetry(Tracing):
    """Makes a span for each request, as a child of the caller's, and as the parent of the request upstream.

    A provider that is set already, such as by opentelemetry-instrument, is used as it is. Otherwise one is made that
    exports by OTLP over HTTP, as the OTEL_* variables say. Unless OTEL_TRACES_SAMPLER is set, it keeps the spans of
    callers that do not sample theirs, too: else a client could keep itself out of the traces.

    Args:
        model: the name of the detector that is served.
        provider: of tracers; None takes the one that is set, or makes one.
        note: told what OpenTelemetry complains of.
    """

    def __init__(
        self, model: str, provider: TracerProvider | None = None, note: Callable[[str], None] | None = None
    ) -> None:
        there = trace.get_tracer_provider() if provider is None else provider
        self._own = not isinstance(there, TracerProvider)
        if not isinstance(there, TracerProvider):
            there = TracerProvider(
                sampler=None if OTEL_TRACES_SAMPLER in os.environ else ALWAYS_ON,
                resource=Resource.create({"service.version": version("advconn")}),
                span_limits=SpanLimits(max_attribute_length=LONGEST),
                shutdown_on_exit=False,  # which may take long: see close
            )
            there.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.provider, self.model = there, model
        self._tracer = there.get_tracer("advconn", version("advconn"))
        self._propagator = TraceContextTextMapPropagator()
        if note is not None:
            log = logging.getLogger("opentelemetry")
            log.addHandler(_Told(note))
            log.propagate = False

    @contextmanager
    def span(self, name: str, carried: Mapping[str, str], about: Mapping[str, str]) -> Iterator[Callable[[int], None]]:
        """Make a span of it; a status of 500 or more marks the span as an error.

        Args:
            name: of the span.
            carried: headers of the caller's trace.
            about: attributes of the span.
        """
        parent = self._propagator.extract(carried)
        told = {"advconn.model": self.model} | {key: printable(text) for key, text in about.items()}
        kind = trace.SpanKind.SERVER if "http.request.method" in about else trace.SpanKind.CONSUMER
        with self._tracer.start_as_current_span(name, parent, kind, told) as mine:
            onward: dict[str, str] = {}
            self._propagator.inject(onward)

            def answered(status: int) -> None:
                mine.set_attribute("http.response.status_code", status)
                if status >= 500:
                    mine.set_status(trace.StatusCode.ERROR)

            with traced(onward):
                yield answered

    def flagged(self, images: Sequence[FlaggedImage]) -> None:
        """As told in Tracing."""
        mine = trace.get_current_span()
        mine.set_attribute("advconn.flagged", len(images))
        for one in images[:MOST_EVENTS]:
            told: dict[str, str | float] = {"advconn.image": printable(one.image), "advconn.p_value": one.p_value}
            told |= {"advconn.error": printable(one.error)} if one.error else {}
            mine.add_event("advconn.flagged", told)

    def close(self) -> None:
        """As told in Tracing, for CLOSING_SECONDS at most; a provider that somebody else made is left to them."""
        if self._own:
            ending = Thread(target=self.provider.shutdown, daemon=True)
            ending.start()
            ending.join(CLOSING_SECONDS)


class _Told(logging.Handler):
    """Hands on what a library logs."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        """Its first line."""
        self.note(f"OpenTelemetry: {record.getMessage().partition(chr(10))[0]}")
