"""A span of OpenTelemetry for each request, with an event for each flagged image (extra `otel`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from advconn.runtime.trace_context import traced
from advconn.serving.log import FlaggedImage
from advconn.serving.trace import Tracing

MOST_EVENTS = 32  # flagged images of a request that its span tells one by one


class OpenTelemetry(Tracing):
    """Makes a span for each request, as a child of the caller's, and as the parent of the request upstream.

    The OTEL_* variables say where spans go (OTEL_EXPORTER_OTLP_ENDPOINT) and what the service is called. A provider
    that is set already, such as by opentelemetry-instrument, is used.

    Args:
        model: the name of the detector that is served.
        provider: of tracers; None takes the one that is set, or makes one that exports by OTLP over HTTP.
    """

    def __init__(self, model: str, provider: TracerProvider | None = None) -> None:
        there = trace.get_tracer_provider() if provider is None else provider
        if not isinstance(there, TracerProvider):
            there = TracerProvider(resource=Resource.create({"service.version": version("advconn")}))
            there.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.provider, self.model = there, model
        self._tracer = there.get_tracer("advconn", version("advconn"))
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, carried: Mapping[str, str], about: Mapping[str, str]) -> Iterator[Callable[[int], None]]:
        """Make a span of it; a status of 500 or more marks the span as an error.

        Args:
            name: of the span.
            carried: headers of the caller's trace.
            about: attributes of the span.
        """
        parent, told = self._propagator.extract(carried), {"advconn.model": self.model, **about}
        with self._tracer.start_as_current_span(name, parent, trace.SpanKind.SERVER, told) as mine:
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
            told: dict[str, str | float] = {"advconn.image": one.image, "advconn.p_value": one.p_value}
            told |= {"advconn.error": one.error} if one.error else {}
            mine.add_event("advconn.flagged", told)

    def close(self) -> None:
        """As told in Tracing."""
        self.provider.shutdown()
