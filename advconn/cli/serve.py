"""advconn serve: a detector behind HTTP."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.common import Asked, detector_of, note
from advconn.cli.options import PATH, device_option, model_options
from advconn.errors import DataError, ModelError

if TYPE_CHECKING:
    from advconn.detector import Detector

DRAIN = 25  # seconds in which what waits is finished, after SIGTERM
EXTRA = "pip install 'advconn[serve]'"


@click.command()
@click.option("--detector", type=PATH, metavar="DIR", help="A fitted detector's folder [default: the shipped one].")
@model_options
@click.option("--upstream", metavar="URL", help="A server of the Open Inference Protocol that runs the classifier.")
@click.option("--upstream-model", metavar="NAME", help="The classifier's name there.")
@click.option(
    "--upstream-timeout",
    type=click.FloatRange(0, min_open=True),
    default=10,
    show_default=True,
    help="Seconds until an image that it does not answer for cannot be judged.",
)
@click.option("--name", default="cifar10", show_default=True, help="The model's name for clients.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for clients of other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
@click.option("--block", is_flag=True, help="Answer 422 to a request with a flagged image.")
@click.option("--max-bytes", type=click.IntRange(1), default=2**26, show_default=True, help="Of a request.")
@click.option("--max-images", type=click.IntRange(1), default=256, show_default=True, help="In a request.")
@click.option("--max-waiting", type=click.IntRange(1), default=1024, show_default=True, help="Images; past it, 503.")
@click.option("--wait", type=click.FloatRange(0, 1000), default=5, show_default=True, help="Milliseconds, for others.")
@device_option
def serve(
    detector: Path | None,
    asked: Asked,
    upstream: str | None,
    upstream_model: str | None,
    upstream_timeout: float,
    name: str,
    host: str,
    port: int,
    block: bool,
    max_bytes: int,
    max_images: int,
    max_waiting: int,
    wait: float,
    device: str,
) -> None:
    """Judge images over HTTP, in front of a classifier or in its place.

    Speaks the Open Inference Protocol, version 2 (clients of Triton, KServe and MLServer): the classifier's logits come
    with advconn_score, advconn_p_value, advconn_flag and advconn_consensus. POST /score takes image files, /metrics is
    for Prometheus, and / is a page to drop a picture on. Images are FP32 in [0, 1] or UINT8. It has no log-in of its
    own: put it behind what has one.

    \b
    Example:
      advconn serve
      advconn serve --detector detector/ --upstream http://localhost:8000 --upstream-model resnet --port 8080
    """
    try:
        import uvicorn
        from PIL import Image

        from advconn.serving.app import Server
        from advconn.serving.requests import Limits
    except ImportError as error:
        raise ModelError(f"to serve needs {error.name or 'other packages'}: {EXTRA}") from None
    from advconn.cli.verdicts import flagged_where
    from advconn.serving import Judge

    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise click.UsageError("--name: expected letters, digits, '-', '_' and '.'")
    loaded = _detector(detector, asked, upstream, upstream_model, upstream_timeout, device)
    limits = Limits(max_bytes, max_images, max_waiting, min(64, max_waiting), wait / 1000)
    server = Server(Judge(loaded), name, flagged_where(loaded), block=block, limits=limits, note=note)

    class Telling(uvicorn.Server):
        """Says where it serves, once it does."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                note(f"serving {name} on http://{host}:{port}" + f"; images wait {wait:g} ms for others" * (wait > 0))

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # pictures are refused by their size
    config = uvicorn.Config(server.app(), host=host, port=port, log_level="critical", timeout_graceful_shutdown=DRAIN)
    running = Telling(config)
    with suppress(SystemExit):
        running.run()
    if not running.started:
        raise DataError(
            f"http://{host}:{port} cannot be served: the port is in use, or the host is not of this machine"
        )


def _detector(
    detector: Path | None,
    asked: Asked,
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
    there = Asked(address)
    there.options["timeout"] = timeout
    return detector_of(detector, there, device)
