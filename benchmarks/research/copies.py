"""Would other copies show what the thirty show too little of? Candidates, by what they add on fitting images alone.

    python -m benchmarks.research.copies --data DIR --cache DIR --nets DIR [--record DIR]

Occluded quarters, low-passed and high-passed copies, other colours, farther shifts, turns and zooms: of each the same
four columns as of any copy (rise, lean, energy, move) join those of the whole walk. In two folds by image a head is
fitted on the mixture and asked about smooth and transferred attacks, and about three others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from advconn.attacks.catalog import MIXTURE
from advconn.cascade.cascade import STAGES, head_log_odds, stage_extractors
from advconn.features import transforms
from advconn.metrics import auroc
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from benchmarks.common.cifar10 import parts, tables, taught, whole
from benchmarks.common.families import arguments, hits_of, network, walk_of
from benchmarks.common.provenance import SEED, write_record

ASKED = (
    "transfer:eps=8/255",
    "tifgsm:eps=8/255",
    "low-frequency:eps=16/255",
    "fgsm:eps=8/255",
    "square:eps=8/255,n_queries=500",
    "cw:kappa=0,steps=100",
)
CLEAN, KNOWN, NEW = 800, 50, 150  # clean images; of each attack of the mixture; of each that is only asked about


def occluded(i: int, j: int) -> Callable[[Tensor], Tensor]:
    """A quarter filled with its own mean."""

    def copy(images: Tensor) -> Tensor:
        h, w = images.shape[2] // 2, images.shape[3] // 2
        out, part = images.clone(), (slice(None), slice(None), slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w))
        out[part] = out[part].mean((2, 3), keepdim=True)
        return out

    return copy


def coarse(images: Tensor, side: int) -> Tensor:
    small = F.adaptive_avg_pool2d(images, side)
    return F.interpolate(small, size=images.shape[2:], mode="bicubic", align_corners=False)


def low(side: int) -> Callable[[Tensor], Tensor]:
    return lambda images: coarse(images, side).clamp(0, 1)


def flat(side: int) -> Callable[[Tensor], Tensor]:
    """With half of what a coarse grid shows taken away."""
    return lambda images: (images - 0.5 * (coarse(images, side) - images.mean((2, 3), keepdim=True))).clamp(0, 1)


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"occluded {i}{j}": occluded(i, j) for i in (0, 1) for j in (0, 1)},
    **{f"low {side}": low(side) for side in (12, 16, 20)},
    **{f"flat {side}": flat(side) for side in (4, 8)},
    "grey": transforms.saturation(0.0),
    "vivid": transforms.saturation(1.6),
    "channels swapped": lambda images: images.flip(1),
    "channels mixed": lambda images: (images + images.roll(1, 1)) / 2,
    "left3": transforms.shift(0, -3),
    "down3": transforms.shift(3, 0),
    "aside4": transforms.shift(4, 4),
    "zoom75": transforms.zoom(0.75),
    "zoom125": transforms.zoom(1.25),
    "turn12": transforms.rotate(12),
    "unturn12": transforms.rotate(-12),
    "weak": transforms.contrast(0.5),
    "noise25": transforms.noise(0.25, 5),
    "flip+left3": transforms.both(transforms.flip, transforms.shift(0, -3)),
    "flip+zoom85": transforms.both(transforms.flip, transforms.zoom(0.85)),
}


def columns(model: Classifier, copy: Callable[[Tensor], Tensor], images: Tensor, query: Tensor) -> np.ndarray:
    """Rise, lean, energy and move (n, 4) of one copy of images (n, c, h, w) whose logits (n, k) are `query`."""
    with torch.no_grad():
        copied, label = model.logits(copy(images)), query.argmax(1)
    other = copied.scatter(1, label[:, None], -torch.inf).argmax(1)

    def lead(logits: Tensor) -> Tensor:
        return (logits.gather(1, other[:, None]) - logits.gather(1, label[:, None]))[:, 0]

    rise = margin(copied, label) - margin(query, label)
    energy = copied.logsumexp(1) - query.logsumexp(1)
    return torch.stack([rise, lead(copied) - lead(query), energy, (copied - query).norm(dim=1)], 1).double().numpy()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    model, fit = network("shipped", args.nets), parts(args.data)["fit"]
    connectivity = walk_of(args.cache, model)
    connectivities = stage_extractors(connectivity, STAGES)[:3]
    images = {"": fit.images[:CLEAN].float() / 255}
    base = {"": tables(whole(args.cache, connectivity, "fit", fit.images), connectivities)[2][:CLEAN]}
    fold = {"": np.arange(CLEAN) % 2}
    for spec in dict.fromkeys((*MIXTURE, *ASKED)):
        in_mixture = spec in MIXTURE
        hits = hits_of(args.cache, args.nets, "shipped", "fit", fit, spec, taught(spec) if in_mixture else 250)
        count = KNOWN if in_mixture else NEW
        images[spec], fold[spec] = hits.images[:count], hits.rows.numpy()[:count] % 2
        base[spec] = tables(whole(args.cache, connectivity, spec, hits.images), connectivities)[2][:count]
    with torch.no_grad():
        query = {spec: model.logits(model.check(x)) for spec, x in images.items()}
    extra = {
        name: {spec: columns(model, copy, model.check(x), query[spec]) for spec, x in images.items()}
        for name, copy in CANDIDATES.items()
    }

    def asked(names: tuple[str, ...]) -> dict[str, list[float]]:
        full = {spec: np.concatenate([base[spec], *(extra[name][spec] for name in names)], 1) for spec in base}
        scores = {spec: np.zeros(len(table)) for spec, table in full.items()}
        for part in (0, 1):
            rows = [full[spec][fold[spec] == part] for spec in ("", *MIXTURE)]
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=120, tol=1e-3))
            head.fit(np.concatenate(rows), np.repeat(np.arange(len(rows)), list(map(len, rows))))
            threshold = np.quantile(head_log_odds(head, full[""][fold[""] != part]), 0.95)
            for spec, table in full.items():
                scores[spec][fold[spec] != part] = head_log_odds(head, table[fold[spec] != part]) - threshold
        return {
            spec: [round(auroc(scores[""], scores[spec]), 4), round(float((scores[spec] > 0).mean()), 4)]
            for spec in ASKED
        }

    results = {"none": asked(())}
    print("none", results["none"], flush=True)
    for name in CANDIDATES:
        results[name] = asked((name,))
        print(name, {spec: round(v[0] - results["none"][spec][0], 4) for spec, v in results[name].items()}, flush=True)
    results["all"] = asked(tuple(CANDIDATES))
    print("all", results["all"], flush=True)
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "seed": SEED,
        "found": results,
    }
    write_record(args.record, "copies", record, __file__)


if __name__ == "__main__":
    main()
