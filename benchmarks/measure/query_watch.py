"""Who is noticed by the watch over queries: attackers without access to the network, honest pictures, films.

    python -m benchmarks.measure.query_watch --data DIR --photographs DIR [--runs 100] [--record DIR]

Claim: how many of 100 runs of Square, HopSkipJump, SimBA and Boundary are noticed within 100 queries, at most how many
false alerts there are among 10,000 different pictures and in films that pan over photographs, and what is left where
the attacker adds noise to every query or moves it (OARS, Feng et al. 2023). PHOTOGRAPHS holds pictures of 256 pixels or
more, in any depth of folders.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from PIL import Image
from torch import Tensor, nn

from advconn import bundle
from advconn.metrics import clopper_pearson
from advconn.models.classifier import Classifier
from advconn.serving.query_watch import QueryWatch
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import read
from benchmarks.common.provenance import SEED, write_record

QUERIES, HONEST = 100, 10_000
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # pixels a frame
FRAMES, SIDE = 60, 128
SENSOR = 1 / 255  # standard deviation of a camera's noise
DISGUISES = ("plain", "noise 4/255", "noise 16/255", "moved by up to 2 pixels", "mirrored by turns")


class Noticed(Exception):
    """The run can stop: it was noticed, or asked enough."""


class Watched(nn.Module):
    """A network behind a watch, which counts what it is asked."""

    def __init__(self, classifier: Classifier, watch: QueryWatch, disguise: str, seed: int) -> None:
        super().__init__()
        self.classifier, self.watch, self.disguise = classifier, watch, disguise
        self.generator = torch.Generator().manual_seed(seed)
        self.asked, self.noticed = 0, None

    def forward(self, images: Tensor) -> Tensor:
        """Logits; raises where nothing more is to be learned."""
        answers = []
        for image in images.detach().clamp(0, 1).split(1):
            shown = _disguised(image, self.disguise, self.asked, self.generator)
            self.asked += 1
            if self.watch.see((shown * 255).round().to(torch.uint8)).began:
                self.noticed = self.asked
            if self.noticed is not None or self.asked >= QUERIES:
                raise Noticed
            answers.append(self.classifier.logits(shown))
        return torch.cat(answers)


def _disguised(image: Tensor, disguise: str, asked: int, generator: torch.Generator) -> Tensor:
    if disguise.startswith("noise"):
        sigma = float(disguise.split()[1].split("/")[0]) / 255
        return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    if disguise.startswith("moved"):
        dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
        return F.pad(image, (2, 2, 2, 2), mode="reflect")[..., dy : dy + image.shape[2], dx : dx + image.shape[3]]
    return image.flip(3) if disguise.startswith("mirrored") and asked % 2 else image


def square(network: nn.Module, image: Tensor, label: Tensor, seed: int) -> None:
    """Of torchattacks (Andriushchenko et al. 2020)."""
    import torchattacks

    torchattacks.Square(network, eps=8 / 255, n_queries=QUERIES, seed=seed)(image, label)


def _foolbox(attack: Any) -> Callable[[nn.Module, Tensor, Tensor, int], None]:
    def run(network: nn.Module, image: Tensor, label: Tensor, seed: int) -> None:
        from foolbox.models.pytorch import PyTorchModel

        model = PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack()(model, image, label, epsilons=None)

    return run


def hopskipjump() -> Any:
    """Of foolbox (Chen et al. 2020)."""
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

    return HopSkipJumpAttack(steps=3)


def boundary() -> Any:
    """Of foolbox (Brendel et al. 2018)."""
    from foolbox.attacks.boundary_attack import BoundaryAttack

    return BoundaryAttack(steps=QUERIES)


def simba(network: nn.Module, image: Tensor, label: Tensor, seed: int, size: float = 0.2) -> None:
    """Guo et al. 2019, algorithm 1, in the basis of pixels."""
    order = np.random.default_rng(seed).permutation(image.numel())
    at, best = image.clone(), float(network(image).softmax(1)[0, label])
    for place in order:
        for sign in (size, -size):
            new = at.flatten().clone()
            new[place] = (new[place] + sign).clamp(0, 1)
            share = float(network(new.view_as(at)).softmax(1)[0, label])
            if share < best:
                at, best = new.view_as(at), share
                break


ATTACKS = {"Square": square, "HopSkipJump": _foolbox(hopskipjump), "Boundary": _foolbox(boundary), "SimBA": simba}


def attack_row(
    classifier: Classifier, images: Tensor, labels: Tensor, runs: int, name: str, disguise: str
) -> dict[str, Any]:
    """Of one attack in one disguise, how many runs are noticed, and after how many queries."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = []
    for i in range(runs):
        torch.manual_seed(SEED + i)
        np.random.seed(SEED + i)
        network = Watched(classifier, QueryWatch(), disguise, SEED + i)
        with suppress(Noticed, ValueError, AssertionError):  # of foolbox, whose start a disguise may undo
            ATTACKS[name](network.eval(), images[i : i + 1].float() / 255, labels[i : i + 1], SEED + i)
        found.append((network.noticed, network.asked))
    at: list[int] = [n for n, _ in found if n is not None]
    low, high = clopper_pearson(np.array([n is not None for n, _ in found]))
    ended = [asked for n, asked in found if n is None and asked < QUERIES]
    row = {"attack": name, "disguise": disguise, "runs": runs, "noticed": len(at), "low": low, "high": high}
    row |= {"median_queries": statistics.median(at) if at else None, "ended_early": len(ended), "ended_at": ended}
    print(row, flush=True)
    return row


def film(picture: Image.Image, speed: float, rng: np.random.Generator) -> Tensor:
    """Frames (n, 3, SIDE, SIDE) uint8 of a camera that pans over a picture, until its end."""
    frames = []
    for i in range(min(FRAMES, int((min(picture.size) - SIDE) / speed))):
        at = speed * i
        box = (at, at / 2, at + SIDE, at / 2 + SIDE)
        pixels = np.asarray(picture.transform((SIDE, SIDE), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC))
        noisy = pixels + rng.normal(0, 255 * SENSOR, pixels.shape)
        frames.append(torch.from_numpy(noisy.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
    return torch.stack(frames)


def honest_rows(images: Tensor, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    """Alerts where nobody attacks."""
    watch = QueryWatch()
    alerts = sum(watch.see(some).began for some in images.split(1))
    rows: list[dict[str, Any]] = [{"shown": "CIFAR-10's images, each once", "n": len(images), "alerts": alerts}]
    print(rows[-1], flush=True)
    watch, alerts, near = QueryWatch(), 0, 0
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
        seen = watch.see(F.interpolate(pixels.float(), size=(224, 224), mode="area").round().to(torch.uint8))
        alerts, near = alerts + seen.began, near + int(seen.near.sum())
    rows.append({"shown": "photographs", "n": len(pictures), "alerts": alerts, "near": near})
    print(rows[-1], flush=True)
    rng = np.random.default_rng(SEED)
    for speed in SPEEDS:
        seen_films = [QueryWatch().see(film(picture, speed, rng)) for picture in pictures]
        rows.append({
            "shown": f"films that pan by {speed:g} pixels a frame",
            "films": len(pictures),
            "n": sum(len(seen.near) for seen in seen_films),
            "alerts": sum(seen.began for seen in seen_films),
            "near": float(np.mean([seen.near.mean() for seen in seen_films])),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--photographs", type=Path, help="a folder")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--films", type=int, default=200)
    args = parse(parser, "data", "photographs", runs=1, jobs=1, films=1, attacks=["Square"])
    warnings.filterwarnings("ignore")
    classifier = bundle.load(bundle.default()).classifier
    test = read(args.data / "test.npz")
    right = classifier.predict(test.images[: 2 * args.runs]) == test.labels[: 2 * args.runs]
    chosen = test.rows(right.nonzero().flatten()[: args.runs])
    files = sorted(f for f in args.photographs.rglob("*") if f.suffix.lower() in (".webp", ".jpg", ".png", ".jpeg"))
    pictures = [Image.open(file).convert("RGB") for file in files[: args.films]]
    others = read(args.data / "train.npz").images[: HONEST - len(test.images)]
    honest = honest_rows(torch.cat([test.images, others]), pictures)
    pairs = [(name, disguise) for name in args.attacks for disguise in DISGUISES]
    attacks = Parallel(n_jobs=args.jobs)(
        delayed(attack_row)(classifier, chosen.images, chosen.labels, args.runs, *pair) for pair in pairs
    )
    watch = {k: v for k, v in vars(QueryWatch()).items() if not k.startswith("_")}
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "watch": watch}
    write_record(args.record, "query-watch", record | {"honest": honest, "attacks": attacks}, __file__)


if __name__ == "__main__":
    main()
