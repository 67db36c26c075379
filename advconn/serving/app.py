"""The server: the Open Inference Protocol, files to judge, metrics, and a page to drop a picture on."""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property, partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from advconn.data.collection import Batch, batch_of, merge_batches
from advconn.data.decoding import Wanted, views_far, views_near
from advconn.data.formats import COMMON, FORMATS
from advconn.detector.drift import Watch
from advconn.errors import AdvconnError, DataError, first_line, printable
from advconn.models.onnx_and_http import Endpoint
from advconn.runtime.trace_context import trace_headers
from advconn.scoring.records import Failure, Record, Result, score_batch
from advconn.scoring.report_page import PageEntry, page, template_source
from advconn.serving.batching import Batcher, QueueFull
from advconn.serving.cloudevents import Event, parse_event
from advconn.serving.framework_callable import Judge, per_picture, predict
from advconn.serving.log import Asked, FlaggedImage, Log
from advconn.serving.metrics import Metrics, VerdictRow
from advconn.serving.open_inference_protocol import (
    HEADER,
    NEAR_JSON,
    InferRequest,
    build_response,
    model_metadata,
    parse_header_length,
    parse_request,
)
from advconn.serving.query_watch import QueryWatch
from advconn.serving.request_body import Bodies, Limits, files_in
from advconn.serving.shadow import REQUESTS, flagged_event, send_event
from advconn.serving.trace import Traced, Tracing, trace_of
from advconn.serving.web_security import Guarded, PlainJSON, policy

T = TypeVar("T")
SHOWN = 12  # flagged images that the page remembers
NEAR, FAR = 4, 2  # threads that read what takes little, and what may take long
UPSTREAM_THREADS = 4  # that wait for a classifier upstream
REQUEST_SECONDS = 60.0  # after which no more files of a request are read
SHADOWED = 256  # events that wait to be judged
CLIENT_LETTERS = 12  # of the digest of the header that says who asks
WALKS = "Advconn-Client-Walks"  # the header of an answer to a client that asks about nearly equal pictures
PROBED = 10.0  # seconds after which a classifier upstream is asked again whether it is the same
REPLACED = "the classifier upstream is another one than at the start: fit or calibrate the detector for it"
UNCLEAR = "the classifier fails on it, or gives NaN"


class Server:
    """What answers requests for one detector under one name.

    Args:
        judge: the detector, loaded.
        name: that clients ask for.
        about: of the detector, for the page: what is flagged, and what is promised.
        block: answer 422 where an image is flagged, or where a picture in a file is not judged.
        limits: on requests.
        hosts: names that clients may give as Host; None allows any.
        show_flagged: tell every client which files were flagged last.
        every_format: also of pictures that Python code decodes.
        reading: of pictures, see decoding.decode_variants.
        watch_queries: watch for clients that ask about nearly equal pictures; a client is who gives one value of this
            header, or with '' who has one address. None does not watch.
        shadow: judge copies of another model's requests, which arrive as CloudEvents at POST /.
        sink: address that events of flagged requests are sent to.
        metrics_apart: leave the route /metrics out: they are served on a port of their own.
        tracing: carries requests' traces on, and may make spans of them.
        note: told what its operator should know.
    """

    def __init__(
        self,
        judge: Judge,
        name: str,
        about: str,
        *,
        block: bool = False,
        limits: Limits | None = None,
        hosts: Collection[str] | None = None,
        show_flagged: bool = False,
        every_format: bool = False,
        reading: str = "both",
        watch_queries: str | None = None,
        shadow: bool = False,
        sink: str | None = None,
        metrics_apart: bool = False,
        tracing: Tracing | None = None,
        note: Log | Callable[[str], None] = print,
    ) -> None:
        self.judge, self.name, self.about, self.block = judge, name, about, block
        self.note = note if isinstance(note, Log) else Log(note)
        self.hosts, self.show_flagged, self.reading = hosts, show_flagged, reading
        self.client_header, self.queries = watch_queries, None if watch_queries is None else QueryWatch()
        self.shadow, self.sink, self.tracing = shadow, sink, tracing or Tracing()
        self.metrics_apart = metrics_apart
        self.events: asyncio.Queue[Event] = asyncio.Queue(SHADOWED)
        self.waiting_bytes = 0  # of the events that wait
        self.formats = FORMATS if every_format else COMMON
        self.limits = limits = limits or Limits()
        self.bodies = Bodies(limits)
        self.metrics = Metrics(Watch(judge.detector.calibration_), name, judge.detector.calibration_.fpr)
        self.classifier = judge.detector.classifier
        network = self.classifier.network
        self.upstream = network if isinstance(network, Endpoint) else None
        self.batcher = Batcher(
            lambda images: predict(judge, images),
            batch=limits.batch, wait=limits.wait, most=limits.waiting, told=self.metrics.batched,
            threads=1 if self.upstream is None else UPSTREAM_THREADS,
        )  # fmt: skip
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        self.near, self.far = ThreadPoolExecutor(NEAR, "advconn-near"), ThreadPoolExecutor(FAR, "advconn-far")
        self.watching, self.sending = ThreadPoolExecutor(1, "advconn-watch"), ThreadPoolExecutor(1, "advconn-sink")
        self.last: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self.probed = float("-inf")  # when the classifier upstream was asked last whether it is the same
        self.replaced = False  # whether the classifier upstream was another one when it was asked last
        self.probe: asyncio.Task[str | None] | None = None
        self.same, self.drawing = asyncio.Lock(), asyncio.Lock()
        if self.upstream is not None:
            self.classifier.answers_as_before()

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        model = f"/v2/models/{self.name}"
        routes = [
            Route("/", self.index),
            Route("/score", self.score, methods=["POST"]),
            Route("/flagged", self.flagged),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        routes += [] if self.metrics_apart else [Route("/metrics", self.told)]
        routes += [Route("/", self.take_event, methods=["POST"])] if self.shadow else []
        for path in (model, f"{model}/versions/1"):
            routes += [
                Route(path, self.model),
                Route(f"{path}/ready", self.ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        routes.append(Route("/{path:path}", self.unknown, methods=every))
        faults: dict[Any, Any] = {
            AdvconnError: self.fault,
            HTTPException: self.refusal,
            ClientDisconnect: self.gone,
            Exception: self.unforeseen,
        }
        csp = policy(self._index, template_source())
        paths = {route.path for route in routes}
        probes = {"/metrics", "/v2/health/live"} | {path for path in paths if path.endswith("/ready")}
        middleware = [
            Middleware(Traced, tracing=self.tracing, paths=paths, unseen=probes),
            Middleware(Guarded, hosts=self.hosts, csp=csp),
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=faults, middleware=middleware)
        app.router.redirect_slashes = False  # whose answer would name the host that the client says
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.batcher.start()
        following = asyncio.create_task(self._follow_events()) if self.shadow else None
        yield
        if following is not None:
            following.cancel()
            if not self.events.empty():
                self.note(f"{self.events.qsize()} events were not judged before the server ended")
        if self.probe is not None:
            self.probe.cancel()
        await self.batcher.stop()
        for pool in (self.near, self.far, self.watching, self.sending):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, self.tracing.close)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    async def live(self, request: Request) -> Response:
        """It runs."""
        return PlainJSON({"live": True})

    async def ready(self, request: Request) -> Response:
        """It can judge: a classifier upstream is asked whether it is ready too, and at times whether it is the same."""
        fault = None if self.upstream is None else await self._upstream_fault(self.upstream)
        if fault is not None:
            return PlainJSON({"error": fault, "ready": False}, 503)
        return PlainJSON({"ready": True, "name": self.name})

    async def _upstream_fault(self, upstream: Endpoint) -> str | None:
        """Why the classifier upstream cannot be asked, if it cannot."""
        async with self.same:
            if not await self._run(self.far, upstream.ready):
                return "the classifier upstream is not ready"
            now = asyncio.get_running_loop().time()
            if self.replaced or now - self.probed > PROBED:
                try:
                    self.replaced = not await self._run(self.far, self.classifier.answers_as_before)
                except AdvconnError as error:
                    self.note(str(error))
                    return "the classifier upstream does not answer"
                self.probed = now
        return REPLACED if self.replaced else None

    def _require_same_upstream(self) -> None:
        """Refuse to judge by a classifier upstream that was replaced; ask it beside this request where that is due.

        Raises:
            AdvconnError: it was another one when it was asked last.
        """
        if self.upstream is None:
            return
        due = self.replaced or asyncio.get_running_loop().time() - self.probed > PROBED
        if due and (self.probe is None or self.probe.done()):
            self.probe = asyncio.create_task(self._upstream_fault(self.upstream))
        if self.replaced:
            raise AdvconnError(REPLACED)

    async def server(self, request: Request) -> Response:
        """What serves."""
        about = {"name": "advconn", "version": version("advconn"), "extensions": ["binary_tensor_data"]}
        return PlainJSON(about | {"models": [self.name]})

    async def model(self, request: Request) -> Response:
        """What it takes and gives."""
        classifier = self.classifier
        return PlainJSON(
            model_metadata(self.name, classifier.channels, classifier.preprocessing.size, classifier.num_classes)
        )

    async def infer(self, request: Request) -> Response:
        """Logits and verdicts of a request's images."""
        self._require_same_upstream()
        lengths = request.headers.getlist(HEADER)
        if len(lengths) > 1:
            raise DataError(f"{len(lengths)} headers {HEADER}; expected one")
        length = parse_header_length(lengths[0] if lengths else None)
        async with self.bodies.of(request) as body:  # which counts until its pictures are read
            pool = self.near if len(body) <= NEAR_JSON else self.far
            said = await self._run(pool, parse_request, body, length, self.limits.images)
            body.clear()
            images, unread, readings = await self._images(said)
        self._fits(images)
        verdicts = await self._judged(images, readings, unread)
        walks = await self._walks(request, _first_rows(images, readings))
        flagged = np.flatnonzero(verdicts["advconn_flag"]).tolist()
        p_values = verdicts["advconn_p_value"].tolist()
        of = "image" if said.id is None else f"request {said.id[:40]}, image"
        self._tell(
            _asked_by(request), [FlaggedImage(f"{of} {i}", p_values[i], verdicts["advconn_error"][i]) for i in flagged]
        )
        if self.block and flagged:
            self.metrics.refused.labels("422").inc()
            errors = {str(i): text for i in flagged if (text := verdicts["advconn_error"][i])}
            said_so = f"{len(flagged) - len(errors)} of {len(images)} images flagged, {len(errors)} could not be judged"
            told = {"error": said_so, "id": said.id, "flagged": flagged, "errors": errors}
            return PlainJSON(told | {"p_value": [p_values[i] for i in flagged]}, 422, walks)
        content, head = build_response(verdicts, said, self.name)
        if head is None:
            return Response(content, headers=walks, media_type="application/json")
        return Response(content, headers={HEADER: str(head)} | walks, media_type="application/octet-stream")

    async def _images(self, said: InferRequest) -> tuple[torch.Tensor, dict[int, str], list[tuple[str, ...]]]:
        """The images of a request, why some could not be read, and the readings of each, which are rows of images.

        What could not be read stands as NaN, so that it is flagged.
        """
        if not said.pictures:
            images = await self._run(self.near, self.judge.images, said.images)
            return images, {}, [("array",)] * len(images)
        until = asyncio.get_running_loop().time() + REQUEST_SECONDS
        read = [await self._read(f"picture {i}", file, self.reading, until) for i, file in enumerate(said.pictures)]
        unread = {i: one.error for i, one in enumerate(read) if isinstance(one, Failure)}
        for i, one in enumerate(read):
            if self.block and isinstance(one, Batch) and any(one.others):
                unread[i] = f"picture {i}: holds other pictures that are not judged"
        shapes = {one.images.shape[1:] for one in read if isinstance(one, Batch)}
        if len(shapes) > 1:
            raise DataError("the pictures are of several sizes, and the classifier takes any: send them one by one")
        if not shapes:
            raise DataError(next(iter(unread.values())))
        blank = torch.full((1, *shapes.pop()), torch.nan, dtype=torch.float32, device="cpu")
        parts: list[torch.Tensor] = []
        readings: list[tuple[str, ...]] = []
        for i, one in enumerate(read):
            if isinstance(one, Failure) or i in unread:
                parts.append(blank)
                readings.append(("plain",))
            else:
                parts.append(one.images.float() / 255 if one.images.dtype == torch.uint8 else one.images)
                readings.append(one.readings)
        return torch.cat(parts), unread, readings

    def _fits(self, images: torch.Tensor) -> None:
        """Refuse images of another size, before they wait with others."""
        self.classifier.check(torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device="cpu"))

    async def _judged(
        self, images: torch.Tensor, readings: Sequence[tuple[str, ...]], unread: Mapping[int, str]
    ) -> dict[str, Any]:
        """Verdicts of pictures, of which each has as many rows of images as readings; why some could not be read."""
        rows = await self.batcher.ask(images)
        verdicts = per_picture(rows, readings, self.judge.detector.calibration_)
        names = self.classifier.label_names(np.nan_to_num(verdicts["logits"]).argmax(1).tolist())
        columns = (verdicts[f"advconn_{name}"].tolist() for name in ("score", "p_value", "flag", "stage", "error"))
        self._count([None if row[-1] else VerdictRow(*row[:-1]) for row in zip(names, *columns, strict=True)])
        for i, text in unread.items():
            verdicts["advconn_error"][i] = text
        return verdicts

    async def take_event(self, request: Request) -> Response:
        """A copy of another model's request: 202 at once, 503 where too many wait."""
        async with self.bodies.of(request) as body:
            event = await self._run(self.far, parse_event, request.headers, bytes(body))
        if not event.kind.endswith(REQUESTS):
            return Response(status_code=202)
        if self.events.full() or self.waiting_bytes + len(event.content) > 2 * self.limits.bytes:
            self.metrics.refused.labels("503").inc()
            return PlainJSON({"error": "too many events wait already"}, 503, {"Retry-After": "1"})
        self.waiting_bytes += len(event.content)
        self.events.put_nowait(event)
        return Response(status_code=202)

    async def _follow_events(self) -> None:
        """Judge the events that arrive, one after the other, and tell the sink what is flagged."""
        while True:
            event = await self.events.get()
            try:
                about = {"cloudevents.event_id": event.id, "cloudevents.event_source": event.source}
                with self.tracing.span("judge an event", event.carried, about):
                    await self._follow(event)
            except AdvconnError as error:
                self.metrics.refused.labels("event").inc()
                self.note(f"{event.source}: request {event.id[:40]} was not judged, or not told of: {error}")
            except Exception as error:  # one event that nobody thought of must not end the others
                self.metrics.refused.labels("event").inc()
                self.note(f"an error inside advconn, please report it: {type(error).__name__}: {first_line(error)}")
            finally:
                self.waiting_bytes -= len(event.content)

    async def _follow(self, event: Event) -> None:
        told = flagged_event(event, self.name, await self._event_verdicts(event))
        if told is None:
            return
        rows = zip(told["data"]["flagged"], told["data"]["p_value"], strict=True)
        errors = told["data"]["errors"]
        of = f"request {event.id[:40]}, image"
        seen = [FlaggedImage(f"{of} {i}", p, errors.get(str(i), "")) for i, p in rows]
        self._tell(Asked(event.source, "/", _current_trace()), seen)
        if self.sink is not None:
            await self._run(self.sending, send_event, self.sink, told)

    async def _event_verdicts(self, event: Event) -> dict[str, Any]:
        self._require_same_upstream()
        said = await self._run(self.far, parse_request, event.content, event.json_bytes, self.limits.images)
        images, unread, readings = await self._images(said)
        self._fits(images)
        return await self._judged(images, readings, unread)

    def _tell(self, asked: Asked, flagged: Sequence[FlaggedImage]) -> None:
        """Log what was flagged, or could not be judged, and add it to the current span."""
        self.note.flagged(asked, flagged)
        if flagged:
            self.tracing.flagged(flagged)

    def _count(self, verdicts: list[VerdictRow | None]) -> None:
        if self.metrics.judged(verdicts):
            self.note(self.metrics.watch.sentence())

    async def score(self, request: Request) -> Response:
        """What `advconn score` says of uploaded files: a list of records, or with ?page=1 the page of one file.

        A file that cannot be judged has an error, and counts as flagged.
        """
        self._require_same_upstream()
        wanted = request.query_params.get("page") == "1"
        until = asyncio.get_running_loop().time() + REQUEST_SECONDS
        async with self.bodies.of(request) as body:  # which counts until all of it is judged
            kinds = request.headers.getlist("content-type")
            pictures = await self._run(self.near, files_in, kinds, body, self.limits.images)
            body.clear()
            if wanted and len(pictures) > 1:
                raise DataError(f"{len(pictures)} files; a page is of one")
            read = [await self._read(*picture, self.reading, until) for picture in pictures]
            pictures.clear()
            cases: list[PageEntry] = []
            for some in _together(read, self.limits.batch):
                if isinstance(some, Failure):
                    cases.append(PageEntry(some))
                else:  # some at a time: other requests have their turn
                    cases += await self.batcher.run(partial(self._scored, some, wanted), len(some.items))
            walks: dict[str, str] = {}
            firsts = [one.images[:1] for one in read if isinstance(one, Batch)]
            for _, alike in groupby(firsts, lambda image: (image.shape, image.dtype)):
                walks = await self._walks(request, torch.cat(list(alike)))
        said = [case.result for case in cases]
        flagged = [r for r in said if isinstance(r, Failure) or r.adversarial]
        blocked = self.block and (bool(flagged) or any(isinstance(r, Record) and r.other_pictures for r in said))
        self._tell(_asked_by(request), list(map(_named, flagged)))
        if not wanted:  # the page is of a file that was judged before: it counts once
            self._count([None if isinstance(r, Failure) else _verdict_row(r) for r in said])
        if blocked:
            self.metrics.refused.labels("422").inc()
        status = 422 if blocked else 200
        if not wanted:
            return PlainJSON(list(map(_answer, said)), status, walks)
        async with self.drawing:  # in a thread, one page at a time
            return HTMLResponse(await self._run(self.near, page, cases, self.about), status, walks)

    async def _walks(self, request: Request, images: torch.Tensor) -> dict[str, str]:
        """Show a request's images to the watch over queries; the header of the answer where its client walks."""
        if self.queries is None:
            return {}
        address = request.client.host if request.client is not None else "?"
        client = address
        if self.client_header:  # which may be a secret
            said = request.headers.get(self.client_header, "")
            client = hashlib.sha256(said.encode()).hexdigest()[:CLIENT_LETTERS] if said else "without that header"
        try:
            seen = await self._run(self.watching, self.queries.see, images, client)
        except Exception as error:  # a watch must not fail a request
            self.note(f"the watch over queries failed, please report it: {type(error).__name__}: {first_line(error)}")
            return {}
        self.metrics.near.inc(int(seen.near.sum()))
        if seen.began:
            self.metrics.walks.inc()
            self.note(
                f"{address} {printable(request.url.path)}: client {client} asks about many nearly equal "
                f"pictures ({self.queries.alert} or more of its last {self.queries.window}), as attacks do that "
                "see answers alone"
            )
        return {WALKS: "true"} if len(seen.walks) and seen.walks[-1] else {}

    async def _read(self, name: str, content: bytes, reading: str, until: float) -> Batch | Failure:
        """A file's picture as the command reads it, or why it cannot be read; none after this time of the loop's."""
        if asyncio.get_running_loop().time() > until:
            return Failure(name, f"{name}: the request took more than {REQUEST_SECONDS:g} s: send fewer files")
        classifier = self.classifier
        wanted = Wanted(classifier.preprocessing, reading, formats=self.formats)
        try:
            found = await self._run(self.near, views_near, content, name, wanted)
            if found is None:
                found = await self._run(self.far, views_far, content, name, wanted)
            return batch_of(found, name)
        except DataError as error:
            return Failure(name, str(error).removesuffix(": give --frames first or --frames all"))

    def _scored(self, batch: Batch, wanted: bool) -> list[PageEntry]:
        """What the detector says of pictures."""
        out = []
        for result, rows in score_batch(self.judge.detector, batch, full=wanted):
            if isinstance(result, Failure):
                self.note(result.error)
                out.append(PageEntry(Failure(result.image, UNCLEAR)))
                continue
            row = next((i for i in rows if batch.readings[i] == result.reading), rows[0])
            out.append(self._case(result, batch.images[row], wanted))
        return out

    def _case(self, record: Record, image: torch.Tensor, wanted: bool) -> PageEntry:
        checked = self.classifier.check(image[None])
        told = self.judge.detector.explain(checked) if wanted else None
        if record.adversarial and not wanted and self.show_flagged:
            fields = ("image", "class_name", "consensus_name", "p_value", "why")
            self.last.appendleft({k: getattr(record, k) for k in fields})
        return PageEntry(record.without_features(), checked[0].cpu(), told)

    async def flagged(self, request: Request) -> Response:
        """The last files that were flagged; none unless the server was started to show them."""
        return PlainJSON(list(self.last))

    async def told(self, request: Request) -> Response:
        """Metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def index(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._index)

    @cached_property
    def _index(self) -> str:
        from jinja2 import Environment

        source = (Path(__file__).parent / "templates" / "index.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True).from_string(source)
        about = {"name": self.name, "about": self.about, "version": version("advconn")}
        return template.render(about | {"show_flagged": self.show_flagged})

    async def unknown(self, request: Request) -> Response:
        """There is no such address: what there is."""
        self.metrics.refused.labels("404").inc()
        there = f"the model here is {self.name!r} (/v2/models/{self.name}/infer); POST /score takes files of pictures"
        return PlainJSON({"error": f"{printable(request.url.path)[:100]}: nothing is here: {there}"}, 404)

    async def unforeseen(self, request: Request, error: Exception) -> Response:
        """An error that nobody thought of: it is logged and counted, and the client is told nothing of it."""
        self.metrics.refused.labels("500").inc()
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" ({Path(where[0].filename).name}:{where[0].lineno})" if where else ""
        self.note(f"an error inside advconn, please report it: {type(error).__name__}: {first_line(error)}{place}")
        return PlainJSON({"error": "the server failed: its log says why"}, 500)

    async def fault(self, request: Request, error: Exception) -> Response:
        """One line of what was wrong: 400 if it was the request, 503 if too much waits, 502 if the classifier fails."""
        status = 503 if isinstance(error, QueueFull) else 400 if isinstance(error, DataError) else 502
        said = str(error)
        if status == 502:  # which may name what is behind the server
            self.note(said)
            said = "the classifier cannot be asked: the server's log says why"
        self.metrics.refused.labels(str(status)).inc()
        headers = {"Retry-After": "1"} if status == 503 else None
        return PlainJSON({"error": said[:300]}, status, headers)

    async def gone(self, request: Request, error: Exception) -> Response:
        """The client went away while it sent."""
        return Response(status_code=400)

    async def refusal(self, request: Request, error: HTTPException) -> Response:
        """The same of what HTTP itself refuses."""
        self.metrics.refused.labels(str(error.status_code)).inc()
        return PlainJSON({"error": error.detail}, error.status_code, error.headers)


def _first_rows(images: torch.Tensor, readings: Sequence[tuple[str, ...]]) -> torch.Tensor:
    """Of pictures that have several rows of images each, the first."""
    starts = np.cumsum([0, *(len(rows) for rows in readings)])[:-1]
    return images[torch.from_numpy(starts)]


def _answer(result: Result) -> dict[str, Any]:
    """A result as `score` sends it: a file that cannot be judged counts as flagged."""
    failed = isinstance(result, Failure)
    return result.to_dict() | ({"other_pictures": 0, "adversarial": True} if failed else {})


def _named(result: Result) -> FlaggedImage:
    """Name, p-value and error, as the log tells them."""
    if isinstance(result, Failure):
        return FlaggedImage(result.image, 0.0, result.error)
    return FlaggedImage(result.image, result.p_value, "")


def _current_trace() -> str:
    """The id of the trace that the current work belongs to, or ''."""
    return trace_of(trace_headers().get("traceparent"))


def _asked_by(request: Request) -> Asked:
    """Who asked."""
    client = request.client.host if request.client is not None else "?"
    return Asked(client, request.url.path, _current_trace())


def _verdict_row(record: Record) -> VerdictRow:
    return VerdictRow(record.class_name, record.score, record.p_value, record.adversarial, record.stage)


def _together(read: Sequence[Batch | Failure], most: int) -> Iterator[Batch | Failure]:
    """Pictures of one size that follow one another as batches of about so many, and between them what was not read."""
    for shape, some in groupby(read, lambda one: one.images.shape[1:] if isinstance(one, Batch) else None):
        if shape is None:
            yield from some
            continue
        batches = [one for one in some if isinstance(one, Batch)]
        for i in range(0, len(batches), most):
            yield merge_batches(batches[i : i + most])
