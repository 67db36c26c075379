"""advconn serve: a detector behind HTTP."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.arguments import ModelOptions, detector_of
from advconn.cli.config_file import config_option
from advconn.cli.options import detector_option, device_option, model_options
from advconn.cli.output import note, notes_written_by
from advconn.errors import DataError, ModelError, first_line, printable

if TYPE_CHECKING:
    from advconn.detector.detector import Detector
    from advconn.serving.trace import Tracing

DRAIN, END = 20, 24  # seconds after SIGTERM: what waits is finished, and whatever still runs is ended
UNFINISHED = 2  # the exit status where something still ran at the end
EXTRA = "pip install 'advconn[serve]', or '.[serve]' in a checkout"


@click.command(context_settings={"auto_envvar_prefix": "ADVCONN_SERVE"})
@config_option
@detector_option
@model_options
@click.option("--upstream", metavar="URL", help="A server of the Open Inference Protocol that runs the classifier.")
@click.option("--upstream-model", metavar="NAME", help="The classifier's name there.")
@click.option(
    "--upstream-timeout",
    type=click.FloatRange(0, min_open=True),
    default=10,
    show_default=True,
    help="Seconds to wait for the upstream; then the image counts as not judged.",
)
@click.option("--name", help="The model's name for clients [default: the detector folder's].")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 admits other machines."
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    envvar="ADVCONN_SERVE_ALLOW_HOST",
    metavar="NAME",
    help="Accept this Host header; repeat for more. Without it: loopback names if --host is loopback, else any name.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 picks a free one."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve /metrics on this port alone, for a network that clients do not reach.",
)
@click.option(
    "--block",
    is_flag=True,
    help="Answer 422 if an image is flagged or cannot be judged completely.",
)
@click.option(
    "--watch-queries",
    metavar="HEADER",
    help="Notice clients that send many nearly equal pictures, as black-box attacks do. HEADER is the request header "
    "that identifies the client, such as X-Client-Id; `address` uses its network address. Such a client is logged and "
    "counted, and its answers carry the header Advconn-Client-Walks.",
)
@click.option(
    "--shadow",
    is_flag=True,
    help="Judge copies of another model's requests, which KServe's inference logger sends to POST / as CloudEvents. "
    "They are answered with 202 before they are judged.",
)
@click.option(
    "--sink", metavar="URL", help="With --shadow: send a CloudEvent there for each request with flagged images."
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json", "ocsf"]),
    default="text",
    show_default=True,
    help="The log on stderr: text for people; json, an object a line; ocsf, each flagged image as an OCSF Detection "
    "Finding and all else as json.",
)
@click.option(
    "--otel",
    is_flag=True,
    help="Make an OpenTelemetry span of each request (extra otel); the OTEL_* variables say where they are sent.",
)
@click.option("--show-flagged", is_flag=True, help="Let GET /flagged show the last flagged files to every client.")
@click.option("--all-formats", is_flag=True, help="Also accept rare picture formats, which decode slowly.")
@click.option(
    "--reading",
    type=click.Choice(["plain", "upright", "both"]),
    help="How pictures are read, see score --help [default: as fitted, else both].",
)
@click.option(
    "--max-bytes", type=click.IntRange(1), default=2**26, show_default=True, help="Maximum request size in bytes."
)
@click.option(
    "--max-images", type=click.IntRange(1), default=256, show_default=True, help="Maximum images per request."
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Maximum waiting images; beyond it, 503.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0, 1000),
    default=5,
    show_default=True,
    help="Milliseconds to wait for more requests to batch.",
)
@device_option
def serve(
    detector: Path | None,
    asked: ModelOptions,
    upstream: str | None,
    upstream_model: str | None,
    upstream_timeout: float,
    name: str | None,
    host: str,
    allowed: tuple[str, ...],
    port: int,
    metrics_port: int | None,
    block: bool,
    watch_queries: str | None,
    shadow: bool,
    log_format: str,
    otel: bool,
    sink: str | None,
    show_flagged: bool,
    all_formats: bool,
    reading: str | None,
    max_bytes: int,
    max_images: int,
    max_waiting: int,
    wait: float,
    device: str,
) -> None:
    """Judge images over HTTP.

    The server stands in front of a classifier, or in its place.

    Speaks the Open Inference Protocol, version 2 (clients of Triton, KServe and MLServer): the classifier's logits come
    with advconn_score, advconn_p_value, advconn_flag and so on. POST /score takes image files, /metrics is
    for Prometheus, and / is a page to drop a picture on. Images are FP32 in [0, 1] or UINT8. The server
    has no log-in: put it behind a proxy that has one.

    \b
    Example:
      advconn serve
      advconn serve --detector detector/ --upstream http://localhost:8000 --upstream-model resnet --port 8080
      ADVCONN_SERVE_BLOCK=1 advconn serve --config advconn.toml
    """
    try:
        import uvicorn
        from PIL import Image

        from advconn.serving.app import Server
        from advconn.serving.connection_limits import Protocol
        from advconn.serving.log import Log
        from advconn.serving.request_body import Limits
        from advconn.serving.web_security import LOOPBACK
    except ImportError as error:
        raise ModelError(f"to serve needs {error.name or 'other packages'}: {EXTRA}") from None
    from advconn import bundle
    from advconn.cli.output import flagged_where
    from advconn.serving import Judge

    if name is None:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", (detector or bundle.default()).absolute().name) or "detector"
    elif re.fullmatch(r"[A-Za-z0-9._-]+", name) is None:
        raise click.UsageError("--name: expected letters, digits, '-', '_' and '.'")
    if sink is not None and not (shadow and sink.startswith(("http://", "https://"))):
        raise click.UsageError(
            f"--sink: expected http://HOST:PORT/PATH together with --shadow, got {printable(sink)!r}"
        )
    plain = log_format == "text"
    log = Log(note if plain else partial(click.echo, err=True), log_format, name)
    with nullcontext() if plain else notes_written_by(log):
        loaded = _detector(detector, asked, upstream, upstream_model, upstream_timeout, device)
    limits = Limits(max_bytes, max_images, max_waiting, min(64, max_waiting), wait / 1000)
    hosts = None if host not in LOOPBACK and not allowed else {*LOOPBACK, host, *allowed}
    server = Server(
        Judge(loaded), name, flagged_where(loaded), block=block, limits=limits, hosts=hosts, show_flagged=show_flagged,
        every_format=all_formats, reading=reading or loaded.fitted_.shown_reading,
        note=log,
        watch_queries=None if watch_queries is None else _client_header(watch_queries), shadow=shadow, sink=sink,
        metrics_apart=metrics_port is not None, tracing=_tracing(name, log) if otel else None,
    )  # fmt: skip

    class Telling(uvicorn.Server):
        """Says where it serves, once it does, and ends in time."""

        terminated = False

        def handle_exit(self, sig: int, frame: Any) -> None:
            super().handle_exit(sig, frame)
            self.terminated = sig == signal.SIGTERM
            timer = threading.Timer(END, os._exit, [UNFINISHED])
            timer.daemon = True
            timer.start()

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                bound = next((s.getsockname()[1] for one in self.servers for s in one.sockets), port)
                server.note(
                    f"serving {name} on http://{host}:{bound}" + f"; images wait {wait:g} ms for others" * (wait > 0)
                )

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # pictures are refused by their size
    config = uvicorn.Config(
        server.app(), host=host, port=port, http=Protocol, ws="none", log_level="critical",
        timeout_graceful_shutdown=DRAIN,
    )  # fmt: skip
    if metrics_port is not None:
        server.metrics.serve(host, metrics_port)
    running = Telling(config)
    with suppress(SystemExit):
        try:
            running.run()
        except KeyboardInterrupt:  # uvicorn raises the signal again when all is done
            if not running.terminated:
                raise
    if not running.started:
        raise DataError(
            f"http://{host}:{port} cannot be served: the port is in use, or the host is not of this machine"
        )


def _tracing(name: str, log: Callable[[str], None]) -> Tracing:
    """What makes spans of the requests to a detector of this name."""
    try:
        from advconn.serving.spans import OpenTelemetry
    except ImportError as error:
        raise ModelError(
            f"--otel needs {error.name or 'other packages'}: pip install 'advconn[otel]', or '.[otel]' in a checkout"
        ) from None
    try:
        return OpenTelemetry(name, note=log)
    except Exception as error:  # of a variable of OpenTelemetry's that says nothing it can use
        raise ModelError(
            f"--otel: OpenTelemetry cannot be set up: {first_line(error)}: see the OTEL_* variables"
        ) from None


def _client_header(asked: str) -> str:
    """The header that names a client; '' goes by addresses."""
    if asked == "address":
        return ""
    if re.fullmatch(r"[A-Za-z0-9-]+", asked) is None:
        raise click.UsageError(f"--watch-queries: expected the name of a header, or address, got {asked!r}")
    return asked


def _detector(
    detector: Path | None,
    asked: ModelOptions,
    upstream: str | None,
    upstream_model: str | None,
    timeout: float,
    device: str,
) -> Detector:
    """The detector, whose classifier is here or upstream; `timeout`: seconds that it waits for an answer from there."""
    if upstream is None and upstream_model is None:
        return detector_of(detector, asked, device)
    if upstream is None or upstream_model is None or asked.model is not None:
        raise click.UsageError("--upstream goes with --upstream-model, and without --model")
    if not upstream.startswith(("http://", "https://")):
        raise click.UsageError(f"--upstream: expected http://HOST:PORT, got {upstream!r}")
    address = f"{upstream.rstrip('/')}/v2/models/{upstream_model}"
    there = ModelOptions(address, headers=asked.headers, verify_key=asked.verify_key)
    there.options["timeout"] = timeout
    return detector_of(detector, there, device)
