"""A watch over queries: an attacker without access to the network must ask about hundreds of nearly equal pictures.

Stateful detection (Chen et al. 2020, Blacklight of Li et al. 2022, GWAD of 2025) compares each query with those before
it. Here each query is kept as a small grey view. It is near an earlier one if they differ by less than a share of the
picture's own contrast, and if no movement of the camera explains the difference. Differences are compared at the same
place, so that frames of a film, which move, do not count.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.errors import DataError

SIDE_PIXELS = 32  # of a view
LEAST_CONTRAST = 4 / 255  # standard deviation that a flat picture is taken to have
SMOOTHINGS = 6  # before a movement is looked for
SMALLEST_PIXELS = 16  # of a side, to tell a movement by: in fewer, noise looks like one
EXPLAINED = 0.25  # share of a difference's energy that a movement must explain


@dataclass
class _Client:
    """The views of a client's last queries (m, pixels), which of its last queries were near, and whether it walks."""

    views: deque[np.ndarray]
    near: deque[bool] = field(default_factory=deque)
    walks: bool = False


@dataclass(frozen=True)
class Seen:
    """What a watch says of n queries.

    Attributes:
        near: (n,) bool, whether each is near an earlier query of this client, and not the same.
        walks: (n,) bool, whether the client counts as walking after each query.
        began: whether it started to walk during these queries.
    """

    near: np.ndarray
    walks: np.ndarray
    began: bool


class QueryWatch:
    """Notices clients that ask about many nearly equal pictures, as score- and decision-based attacks do.

    A client *walks* (searches step by step, as such an attack does) while at least `alert` of its last `window` queries
    are near one of the `memory` queries before them.
    Exact repetitions do not count. Memory is bounded: `clients` times `memory` views of 2 kB; the client that asked
    least recently is forgotten first. An attacker with many identities, or one who moves the picture as a camera
    would, is not noticed; a camera that stands still looks like an attack. Thread-safe.

    Args:
        window: queries that are looked back on, 1 or more.
        alert: near ones among these that make a walk, from 1 to `window`.
        memory: queries of a client that a new one is compared with, 1 or more.
        distance: root mean square difference below which two views are near, as a share of the contrast, in (0, 1).
        clients: clients that are remembered, 1 or more.

    Raises:
        DataError: a value outside these ranges.

    Example:
        >>> import torch
        >>> from advconn.serving.query_watch import QueryWatch
        >>> watch = QueryWatch(alert=3)
        >>> picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> steps = torch.stack([picture + i * 0.001 * picture.roll(3, 0).flip(2) for i in range(5)]).clamp(0, 1)
        >>> watch.see(steps, "someone").walks.tolist()
        [False, False, False, True, True]
    """

    def __init__(
        self, *, window: int = 100, alert: int = 15, memory: int = 128, distance: float = 0.2, clients: int = 256
    ) -> None:
        if not (1 <= alert <= window and memory >= 1 and clients >= 1 and 0 < distance < 1):
            raise DataError(
                "QueryWatch: expected alert from 1 to window, memory and clients of 1 or more, and distance in (0, 1)"
            )
        self.window, self.alert, self.memory, self.distance, self.most = window, alert, memory, distance, clients
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._lock = Lock()

    def see(self, images: Tensor, client: str = "") -> Seen:
        """Look at a client's queries, in their order.

        Args:
            images: (n, c, h, w), uint8 or in [0, 1].
            client: whose; all clients count as one where it is always the same.
        """
        views = views_of(images)
        near, walks, began = np.zeros(len(views), bool), np.zeros(len(views), bool), False
        with self._lock:
            known = self._client(client)
            for i, view in enumerate(views):
                is_near, is_new = self._compared(known, view)
                near[i] = is_near
                if is_new:  # a repetition says nothing, and must not push out what does
                    known.views.append(view)
                    known.near.append(is_near)
                if len(known.near) > self.window:
                    known.near.popleft()
                walking = sum(known.near) >= self.alert
                began |= walking and not known.walks
                known.walks = walks[i] = walking
        return Seen(near, walks, began)

    def _client(self, name: str) -> _Client:
        known = self._clients.pop(name, None) or _Client(deque(maxlen=self.memory))
        self._clients[name] = known
        while len(self._clients) > self.most:
            self._clients.popitem(last=False)
        return known

    def _compared(self, known: _Client, view: np.ndarray) -> tuple[bool, bool]:
        """Whether a view is near an earlier one, and whether it is none of them."""
        same_size = [other for other in known.views if other.shape == view.shape]
        if not same_size:
            return False, True
        view = view.astype(np.float32)
        differences = np.stack(same_size).astype(np.float32) - view
        distances = np.sqrt((differences**2).mean((1, 2)))
        nearest = int(distances.argmin())
        if distances[nearest] < 1e-6:
            return False, False
        contrast = max(float(view.std()), LEAST_CONTRAST)
        if distances[nearest] >= self.distance * contrast:
            return False, True
        return not is_movement(same_size[nearest].astype(np.float32), view), True


def views_of(images: Tensor) -> list[np.ndarray]:
    """Grey views (h, w) float16 of images (n, c, h, w), at most SIDE_PIXELS a side, without their mean."""
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float().nan_to_num().clamp(0, 1)
    grey = values.mean(1, keepdim=True)
    height, width = (min(SIDE_PIXELS, side) for side in grey.shape[2:])
    small = F.interpolate(grey, size=(height, width), mode="area")[:, 0].cpu()
    centred = small - small.mean((1, 2), keepdim=True)
    return [view.astype(np.float16) for view in centred.numpy()]


def is_movement(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether an affine movement of one view (h, w) explains most of its difference from another (Lucas & Kanade 1981).

    Looked at in full and at half the size, where larger movements are small, both smoothed: of fine detail the slope
    says little.
    """
    old, new = _smoothed(before), _smoothed(after)
    for size in (1, 2):
        old, new = (_halved(old), _halved(new)) if size == 2 else (old, new)
        if min(old.shape) < SMALLEST_PIXELS:
            break
        middle = (old + new) / 2
        down, right = np.gradient(middle)
        y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in middle.shape), indexing="ij")
        columns = np.stack([g * f for g in (down, right) for f in (np.ones_like(x), x, y)], -1).reshape(-1, 6)
        difference = (new - old).reshape(-1)
        energy = float(difference @ difference)
        solution, *_ = np.linalg.lstsq(columns, difference, rcond=None)
        left = difference - columns @ solution
        if energy > 0 and 1 - float(left @ left) / energy > EXPLAINED:
            return True
    return False


def _smoothed(view: np.ndarray) -> np.ndarray:
    """SMOOTHINGS times by the weights 1, 2, 1 along both axes."""
    for axis in (0, 1) * SMOOTHINGS:
        padded = np.pad(view, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        before, here, after = (np.take(padded, np.arange(view.shape[axis]) + i, axis) for i in range(3))
        view = (before + 2 * here + after) / 4
    return view


def _halved(view: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in view.shape)
    return view[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
