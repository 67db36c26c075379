"""What a server tells Prometheus of its verdicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest, start_http_server

from advconn.detector.drift import Watch
from advconn.errors import DataError, printable

P_VALUES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
RECENT = 1000  # images whose share of flagged ones is told
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class VerdictRow(NamedTuple):
    """A verdict: the predicted class's name, score, p-value, whether it is flagged, and the stage it left at."""

    predicted: str
    score: float
    p_value: float
    flag: bool
    stage: int


class Metrics:
    """Counts of a server: images by predicted class and stage, p-values, seconds, and the watch on the promise."""

    def __init__(self, watch: Watch, model: str, fpr: float) -> None:
        self.watch, self.registry = watch, CollectorRegistry()
        self.recent: deque[bool] = deque(maxlen=RECENT)
        own: dict[str, Any] = {"registry": self.registry}
        self.p_value = Histogram("advconn_p_value", "Conformal p-values of images.", buckets=P_VALUES, **own)
        self.images = Counter("advconn_images", "Images judged, by predicted class.", ["predicted"], **own)
        self.flagged = Counter("advconn_flagged", "Images flagged, by predicted class.", ["predicted"], **own)
        self.stage = Counter("advconn_stage", "Images by the stage they left at.", ["stage"], **own)
        self.errors = Counter("advconn_errors", "Images that could not be judged; they are flagged.", **own)
        self.refused = Counter("advconn_refused", "Requests refused, by status.", ["status"], **own)
        self.near = Counter("advconn_near_queries", "Images nearly equal to one that the same client sent.", **own)
        self.walks = Counter("advconn_walks", "Times that a client began to send many nearly equal images.", **own)
        self.seconds = Histogram("advconn_seconds_per_image", "Seconds of judging an image.", buckets=SECONDS, **own)
        self.batch = Histogram("advconn_batch_images", "Images judged together.", buckets=SIZES, **own)
        self.waiting = Gauge("advconn_waiting_images", "Images that wait.", **own)
        fortune = Gauge("advconn_watch_fortune", "Of the watch: 100 or more says that the images have changed.", **own)
        fortune.set_function(lambda: watch.fortune)
        spoke = Gauge("advconn_watch_spoke", "Of the watch: 1 once it said that the images have changed.", **own)
        spoke.set_function(lambda: float(watch.spoke_at is not None))
        share = Gauge("advconn_recent_flagged_ratio", f"Share flagged of the last {RECENT} images judged.", **own)
        share.set_function(self._recent_share)
        asked = Gauge("advconn_promised_flagged_ratio", "Share of clean images that may be flagged.", **own)
        asked.set(fpr)
        about = Info("advconn_detector", "What serves: the detector's name, and advconn's version.", **own)
        about.info({"model": model, "version": version("advconn")})

    def _recent_share(self) -> float:
        recent = self.recent.copy()  # requests go on to be judged in other threads
        return sum(recent) / max(1, len(recent))

    def batched(self, count: int, seconds: float) -> None:
        """A batch was judged."""
        self.batch.observe(count)
        for _ in range(count):
            self.seconds.observe(seconds / count)

    def judged(self, verdicts: Sequence[VerdictRow | None]) -> bool:
        """Count verdicts, None where there is none; whether the watch speaks now."""
        judged = [verdict for verdict in verdicts if verdict is not None]
        self.errors.inc(len(verdicts) - len(judged))
        for verdict in judged:
            self.p_value.observe(verdict.p_value)
            self.recent.append(verdict.flag)
            predicted = printable(verdict.predicted)
            self.images.labels(predicted).inc()
            self.stage.labels(str(verdict.stage)).inc()
            if verdict.flag:
                self.flagged.labels(predicted).inc()
        return self.watch.see(np.array([verdict.score for verdict in judged]))

    def serve(self, host: str, port: int) -> None:
        """Serve them alone, at /metrics of a port of their own, as long as the process runs.

        Raises:
            DataError: the port is in use, or the host is not of this machine.
        """
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            raise DataError(
                f"http://{host}:{port} cannot be served for metrics: {error.strerror}: give another --metrics-port"
            ) from None

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
