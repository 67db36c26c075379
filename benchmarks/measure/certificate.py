"""What share of test images a vote under Gaussian noise certifies, and how many clean ones the same rule rejects.

    python -m benchmarks.measure.certificate --data DIR --voter noisy.safetensors --sigma 0.25 \\
        [--device cuda] [--record DIR]

An image is accepted only if a second network, the voter (train_robust.py --objective noise), gives the classifier's
class under Gaussian noise of deviation SIGMA, often enough. By Cohen et al. (ICML 2019) the share of votes for a class
moves by at most R / SIGMA standard deviations within the L2 distance R. Two rules: `majority`, where the class must get
more votes than any other, and `plausible`, where it must get a share of votes that LEVEL of clean calibration images
fall below. An image that is accepted is certified at R where no other class can be accepted anywhere within R: then no
attack of that length succeeds, whatever it knows. Bounds hold with 99.9 % confidence for every image (Clopper & Pearson
1934; over classes by Bonferroni).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta, norm
from torch import Tensor

from advconn import bundle
from advconn.bundle import shipped
from advconn.metrics import clopper_pearson
from advconn.models.classifier import Classifier
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import classifier, parts
from benchmarks.common.provenance import SEED, write_record

ALPHA, CLASSES = 0.001, 10
MANY = 250  # noisy copies that are asked at once
RADII = (0.1, 0.25, 0.5)
LEVEL = 0.05


def votes(voter: Classifier, images: Tensor, sigma: float, count: int, seed: int) -> np.ndarray:
    """How many of `count` noisy copies of each image (n, c, h, w) get each class, (n, k)."""
    generator = torch.Generator(voter.device).manual_seed(seed)
    out = torch.zeros(len(images), voter.num_classes, dtype=torch.int64, device=voter.device)
    for i, image in enumerate(images.to(voter.device)):
        for _ in range(count // MANY):
            noise = torch.randn((MANY, *image.shape), generator=generator, device=voter.device)
            out[i] += torch.bincount(voter.logits(image + sigma * noise).argmax(1), minlength=voter.num_classes)
    return out.cpu().numpy()


def lower(hits: np.ndarray, count: int, alpha: float) -> np.ndarray:
    return np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), count - hits + 1), 0.0)


def upper(hits: np.ndarray, count: int, alpha: float) -> np.ndarray:
    return np.where(hits < count, beta.ppf(1 - alpha, hits + 1, np.maximum(count - hits, 1)), 1.0)


def certified(tallies: np.ndarray, said: np.ndarray, count: int, sigma: float, radius: float, least: float | None):
    """Accepted (n,), and certified (n,) besides; `least`: share of votes that is enough, None for the majority."""
    rows = np.arange(len(said))
    own = tallies[rows, said]
    rest = tallies.copy()
    rest[rows, said] = -1
    move = radius / sigma
    if least is None:
        accepted = own > rest.max(1)
        low = norm.cdf(norm.ppf(lower(own, count, ALPHA)) - move)
        return accepted, accepted & (low > 0.5)
    accepted = own >= least * count
    high = norm.cdf(norm.ppf(upper(np.maximum(rest, 0), count, ALPHA / CLASSES)) + move)
    high[rows, said] = 0
    return accepted, accepted & (high.max(1) < least)


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--voter", type=Path, help="weights of train_robust.py --objective noise")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=500, help="test images, and as many to calibrate on")
    parser.add_argument("--votes", type=int, default=4000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--subject", default="certificate", help="of the record: a variant has a name of its own")
    shipped_weights = bundle.default() / bundle.WEIGHTS
    args = parse(parser, "data", "voter", voter=shipped_weights, images=2, votes=MANY)

    model, voter, groups = shipped.NETWORKS[shipped.CIFAR10](args.device), classifier(args.voter), parts(args.data)
    voter.to(args.device)
    voter.batch_size = 250

    def asked(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = groups[name].rows(slice(0, args.images))
        with torch.no_grad():
            tallies = votes(voter, model.check(part.images), args.sigma, args.votes, SEED)
        return tallies, model.predict(part.images).numpy(), part.labels.numpy()

    tallies, said, _ = asked("calibrate")
    least = float(np.quantile(tallies[np.arange(len(said)), said] / args.votes, LEVEL))
    tallies, said, truth = asked("clean")
    results = []
    for rule, share in (("majority", None), ("plausible", least)):
        for radius in RADII:
            accepted, safe = certified(tallies, said, args.votes, args.sigma, radius, share)
            low, high = clopper_pearson(safe)
            results.append(
                {
                    "rule": rule,
                    "sigma": args.sigma,
                    "radius": radius,
                    "n": len(said),
                    "rejected": float((~accepted).mean()),
                }
                | {"certified": float(safe.mean()), "low": low, "high": high, "least": share}
                | {"certified_and_right": float((safe & (said == truth)).mean())}
            )
            print(results[-1], flush=True)
    card = args.voter.with_suffix(".json")
    about = json.loads(card.read_text()) if card.exists() else None
    whole = {"claim": __doc__.strip().split("\n")[0], "votes": args.votes, "voter": about}
    write_record(args.record, args.subject, whole | {"seed": SEED, "results": results}, __file__)


if __name__ == "__main__":
    main()
