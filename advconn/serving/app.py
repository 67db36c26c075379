"""The server: the Open Inference Protocol, files to judge, metrics, and a page to drop a picture on."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from advconn.blackbox import Endpoint
from advconn.errors import AdvconnError, DataError
from advconn.images import Collection
from advconn.pages import Case, page
from advconn.pictures import SUFFIXES as PICTURES
from advconn.report import records
from advconn.serving.batching import Batcher, Full
from advconn.serving.judge import Judge, predict
from advconn.serving.metrics import Judged, Metrics
from advconn.serving.protocol import HEADER, answer, asked, described
from advconn.serving.requests import DIGITS, Limits, body_of, files_of
from advconn.watch import Watch

Note = Callable[[str], None]
SHOWN = 12  # flagged images that the page remembers


class Server:
    """What answers requests for one detector under one name.

    Args:
        judge: the detector, loaded.
        name: that clients ask for.
        about: of the detector, for the page: what is flagged, and what is promised.
        block: answer 422 where an image is flagged.
        limits: on requests.
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
        note: Note = print,
    ) -> None:
        self.judge, self.name, self.about, self.block, self.note = judge, name, about, block, note
        self.limits = limits = limits or Limits()
        self.metrics = Metrics(Watch(judge.detector.calibration_))
        self.batcher = Batcher(
            lambda images: predict(judge, images),
            batch=limits.batch, wait=limits.wait, most=limits.waiting, told=self.metrics.batched,
        )  # fmt: skip
        self.last: deque[dict[str, Any]] = deque(maxlen=SHOWN)

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        model = f"/v2/models/{self.name}"
        routes = [
            Route("/", self.index),
            Route("/score", self.score, methods=["POST"]),
            Route("/flagged", self.flagged),
            Route("/metrics", self.told),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        for path in (model, f"{model}/versions/1"):
            routes += [
                Route(path, self.model),
                Route(f"{path}/ready", self.ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        faults: dict[Any, Any] = {AdvconnError: self.fault, HTTPException: self.refusal, ClientDisconnect: self.gone}
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=faults)
        app.router.redirect_slashes = False  # whose answer would name the host that the client says
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.batcher.start()
        yield
        await self.batcher.stop()

    async def live(self, request: Request) -> Response:
        """It runs."""
        return Response()

    async def ready(self, request: Request) -> Response:
        """It can judge: a classifier upstream is asked whether it is ready too."""
        network = self.judge.detector.connectivity.classifier.network
        if isinstance(network, Endpoint) and not await asyncio.to_thread(network.ready):
            return JSONResponse({"error": "the classifier upstream is not ready"}, 503)
        return Response()

    async def server(self, request: Request) -> Response:
        """What serves."""
        about = {"name": "advconn", "version": version("advconn"), "extensions": ["binary_tensor_data"]}
        return JSONResponse(about | {"models": [self.name]})

    async def model(self, request: Request) -> Response:
        """What it takes and gives."""
        classifier = self.judge.detector.connectivity.classifier
        return JSONResponse(
            described(self.name, classifier.channels, classifier.preprocessing.size, classifier.num_classes)
        )

    async def infer(self, request: Request) -> Response:
        """Logits and verdicts of a request's images."""
        length = request.headers.get(HEADER)
        if length is not None and not (length.isdecimal() and len(length) <= DIGITS):
            raise DataError(f"{HEADER}: expected a number of bytes")
        body = await body_of(request, self.limits)
        said = await asyncio.to_thread(asked, body, None if length is None else int(length), self.limits.images)
        images = await asyncio.to_thread(self.judge.images, said.images)
        self._fits(images)
        verdicts = await self._judged(images)
        if self.block and verdicts["advconn_flag"].any():
            flagged = np.flatnonzero(verdicts["advconn_flag"]).tolist()
            self.metrics.refused.labels("422").inc()
            told = {"error": f"{len(flagged)} of {len(images)} images flagged", "flagged": flagged}
            return JSONResponse(told | {"p_value": verdicts["advconn_p_value"][flagged].tolist()}, 422)
        content, head = answer(verdicts, said, self.name)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER: str(head)}, media_type="application/octet-stream")

    def _fits(self, images: torch.Tensor) -> None:
        """Refuse images of another size, before they wait with others."""
        classifier = self.judge.detector.connectivity.classifier
        classifier.check(torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device="cpu"))

    async def _judged(self, images: torch.Tensor) -> dict[str, Any]:
        verdicts = await self.batcher.ask(images)
        classifier = self.judge.detector.connectivity.classifier
        names = classifier.label_names(np.nan_to_num(verdicts["logits"]).argmax(1).tolist())
        columns = (verdicts[f"advconn_{name}"].tolist() for name in ("score", "p_value", "flag", "stage", "error"))
        self._count([None if row[-1] else Judged(*row[:-1]) for row in zip(names, *columns, strict=True)])
        return verdicts

    def _count(self, verdicts: list[Judged | None]) -> None:
        if self.metrics.judged(verdicts):
            self.note(self.metrics.watch.sentence())

    async def score(self, request: Request) -> Response:
        """What `advconn score` says of uploaded files: a list of records, or with ?page=1 the page of one file.

        A file that cannot be judged has an error, and counts as flagged.
        """
        pictures, wanted = await files_of(request, self.limits), request.query_params.get("page") == "1"
        cases: list[Case] = []
        for name, content in pictures:  # one at a time: other requests have their turn
            cases += await self.batcher.run(partial(self._scored, name, content, wanted), 1)
        if wanted:  # of a file that was judged before: it counts once
            return HTMLResponse(page(cases, self.about))
        said = [c.record if "error" not in c.record else c.record | {"adversarial": True} for c in cases]
        keys = ("class_name", "score", "p_value", "adversarial", "stage")
        self._count([None if "error" in r else Judged(*(r[key] for key in keys)) for r in said])
        blocked = self.block and any(record["adversarial"] for record in said)
        if blocked:
            self.metrics.refused.labels("422").inc()
        return JSONResponse(said, 422 if blocked else 200)

    def _scored(self, name: str, content: bytes, wanted: bool) -> list[Case]:
        """As the command reads and judges a file; one that cannot be read has an error."""
        detector, cases, shown = self.judge.detector, [], name[:200]
        connectivity = detector.connectivity

        def refuse(item: Any, error: AdvconnError) -> None:
            cases.append(Case({"image": shown, "error": str(error).replace(str(path), shown)}))

        with tempfile.TemporaryDirectory() as folder:
            suffix = Path(name).suffix.lower()
            path = Path(folder) / f"image{suffix if suffix in PICTURES else ''}"  # no array files: tensors have /infer
            path.write_bytes(content)
            try:
                collection = Collection(path, reading="both")
                for batch in collection.batches(
                    connectivity.classifier.preprocessing, connectivity.classifier.channels, 4, refuse
                ):
                    for record, rows in records(detector, batch, full=wanted):
                        row = next((i for i in rows if batch.readings[i] == record.get("reading")), rows[0])
                        cases.append(self._case(record | {"image": shown}, batch.images[row], wanted))
            except AdvconnError as error:
                refuse(None, error)
        return cases

    def _case(self, record: dict[str, Any], image: torch.Tensor, wanted: bool) -> Case:
        if "error" in record:
            self.note(f"{record['image']}: {record['error']}")
            return Case({"image": record["image"], "error": "the classifier fails on it, or gives NaN"})
        checked = self.judge.detector.connectivity.classifier.check(image[None])
        told = self.judge.detector.explain(checked) if wanted else None
        kept = {k: v for k, v in record.items() if k != "features"}
        if record["adversarial"] and not wanted:
            self.last.appendleft({k: kept[k] for k in ("image", "class_name", "consensus_name", "p_value", "why")})
        return Case(kept, checked[0].cpu(), told)

    async def flagged(self, request: Request) -> Response:
        """The last files that were flagged."""
        return JSONResponse(list(self.last))

    async def told(self, request: Request) -> Response:
        """Metrics."""
        self.metrics.waiting.set(self.batcher.waiting)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def index(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._index)

    @cached_property
    def _index(self) -> str:
        from jinja2 import Environment

        source = (Path(__file__).parent / "templates" / "index.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True).from_string(source)
        return template.render(name=self.name, about=self.about, version=version("advconn"))

    async def fault(self, request: Request, error: Exception) -> Response:
        """One line of what was wrong: 400 if it was the request, 503 if too much waits, 502 if the classifier fails."""
        status = 503 if isinstance(error, Full) else 400 if isinstance(error, DataError) else 502
        said = str(error)
        if status == 502:  # which may name what is behind the server
            self.note(said)
            said = "the classifier cannot be asked: the server's log says why"
        self.metrics.refused.labels(str(status)).inc()
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"error": said[:300]}, status, headers)

    async def gone(self, request: Request, error: Exception) -> Response:
        """The client went away while it sent."""
        return Response(status_code=400)

    async def refusal(self, request: Request, error: HTTPException) -> Response:
        """The same of what HTTP itself refuses."""
        self.metrics.refused.labels(str(error.status_code)).inc()
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
