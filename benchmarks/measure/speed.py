"""What a verdict costs: time against the same forwards run bare, against the whole walk, memory, and cold start.

    python -m benchmarks.measure.speed [--detector models/cifar10] [--data DIR] [--threads 1] [--device cpu] \\
        [--record DIR]

Claim: on clean images the shipped detector judges four times as many a second as a walk of all 51 forwards does, in
one run; 8 forwards an image in the stages of copies and 12 with the last one (a gradient counts as three); seconds of
all stages of copies divided by those of as many forwards through the unmodified module in float32, at its best batch
size in the same run, for the shipped classifier, a ResNet-20 and EfficientNet-Lite0 at 224 pixels; one image from a
cold start; memory grows with the batch, not the images.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from advconn import bundle
from advconn.bundle import shipped
from advconn.cascade.cascade import STAGES, run_extractor, stage_extractors
from advconn.features.connectivity import Connectivity
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import parts
from benchmarks.common.provenance import write_record
from benchmarks.common.training import MEAN, STD

CAT = Path(__file__).parents[2] / "tests" / "images" / "cat.png"
MEMORY = """
import resource, sys, torch, advconn
from advconn.bundle import default
detector = advconn.load(default())
images = torch.randint(0, 256, (int(sys.argv[1]), 3, 32, 32), dtype=torch.uint8)
detector.score_samples(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of repeats, after a warm-up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def bare(
    module: torch.nn.Module, images: torch.Tensor, repeats: int, gradient: bool = False, mean=MEAN, std=STD
) -> float:
    """Seconds per image of a forward, or of an input gradient, of the module as a user has it."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (mean, std))

    def forward() -> None:
        with torch.no_grad():
            module((images - mean) / std)

    def slope() -> None:
        leaf = images.clone().requires_grad_()
        loss = F.cross_entropy(
            module((leaf - mean) / std), torch.zeros(len(leaf), dtype=torch.long, device=leaf.device)
        )
        torch.autograd.grad(loss, leaf)

    return seconds(slope if gradient else forward, repeats) / len(images)


def resnet20() -> torch.nn.Module:
    """He et al. (2016) for 32 x 32 pixels; random weights do for time."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(3):
            step = stride if i == 0 else 1
            down = None
            if step != 1 or before != width:
                down = nn.Sequential(nn.Conv2d(before, width, 1, step, bias=False), nn.BatchNorm2d(width))
            layers.append(BasicBlock(before, width, step, down))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def copies(
    module: torch.nn.Module, classifier: Classifier, images: torch.Tensor, sizes, normalisation, repeats: int
) -> dict[str, float]:
    """Stages of copies: seconds an image, and against as many bare forwards at the best batch size."""
    best = min(bare(module, images[:n] if n <= len(images) else images, repeats, False, *normalisation) for n in sizes)
    connectivity = stage_extractors(Connectivity(classifier), STAGES)[-1]
    n = 1 + len(connectivity.copies) + len(connectivity.halves)
    first = stage_extractors(Connectivity(classifier), STAGES)[0]
    taken = seconds(lambda: run_extractor(connectivity, images), repeats) / len(images)
    single = seconds(lambda: run_extractor(first, images[:1]), repeats)
    return {
        "forwards": n,
        "milliseconds_bare_forward": 1000 * best,
        "ratio": taken / (n * best),
        "milliseconds_first_stage_one_image": 1000 * single,
    }


def efficientnet() -> tuple[torch.nn.Module, Classifier] | None:
    if not shipped.photographs_installed():
        return None
    import timm

    return timm.create_model("efficientnet_lite0").eval(), shipped.efficientnet_lite0()


def _scored(command: list[Any]) -> None:
    """Run `advconn score`, which judges."""
    assert subprocess.run(command, capture_output=True, check=False).returncode in (0, 1)


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--memory", type=int, nargs="+", default=[64, 256, 2048], help="images whose memory is measured"
    )
    parser.add_argument("--no-large", action="store_true", help="leave EfficientNet-Lite0 out")
    parser.add_argument("--no-cold", action="store_true", help="leave cold starts out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parse(parser, images=16, memory=[4], repeats=1, no_large=True, no_cold=True)
    few = min(3, args.repeats)

    torch.set_num_threads(args.threads)
    detector = bundle.load(args.detector, device=args.device)
    state = load_file(args.detector / bundle.WEIGHTS)
    widths = tuple(state[k].shape[0] for k in sorted(k for k in state if k.endswith("widen.weight")))
    module = compact(10, 3, (state["stem.weight"].shape[0], *widths)).eval()
    module.load_state_dict(state)
    module.to(args.device)
    some = parts(args.data)["clean"].images if args.data else torch.randint(0, 256, (args.images, 3, 32, 32)).byte()
    some = some[: args.images]
    blocks = some.split(64)
    judgements = [detector.judge(block) for block in blocks]
    forwards, gradients = (
        sum(getattr(f.total_cost, k) for f in judgements) / len(some) for k in ("forwards", "gradients")
    )
    noise = torch.rand(min(256, args.images), 3, 32, 32, device=args.device)
    rates = {kind: min(bare(module, noise[:n], few, kind) for n in (16, 64, 256)) for kind in (False, True)}
    taken = seconds(lambda: [detector.judge(block) for block in blocks], few) / len(some)
    whole = seconds(lambda: [detector.connectivity.transform(block) for block in blocks[:2]], few) / len(some[:128])
    figures: dict[str, object] = {
        "images": len(some),
        "batch": 64,
        "milliseconds_per_image": 1000 * taken,
        "milliseconds_whole_walk_of_51": 1000 * whole,
        "times_faster": whole / taken,
        "forwards_per_image": forwards,
        "gradients_per_image": gradients,
        "ratio_to_bare_passes": taken / (forwards * rates[False] + gradients * rates[True]),
        "milliseconds_one_clean_image": 1000 * seconds(lambda: detector.judge(some[:1]), args.repeats),
        "shipped": copies(module, detector.classifier, noise[:64], (16, 64), (MEAN, STD), few),
    }
    net = resnet20()
    figures["resnet-20"] = copies(
        net, Classifier(net, size=32, mean=MEAN, std=STD), noise[:64], (16, 64), (MEAN, STD), few
    )
    large = None if args.no_large else efficientnet()
    if large is not None:
        half = ((0.5,) * 3, (0.5,) * 3)
        figures["efficientnet-lite0, 224"] = copies(*large, torch.rand(16, 3, 224, 224), (1, 2, 4, 8, 16), half, few)
    if args.device == "cpu":
        run = [sys.executable, "-m", "advconn.cli"]
        figures["help_seconds"] = seconds(
            lambda: subprocess.run([*run, "--help"], capture_output=True, check=True), args.repeats
        )
        for name in () if args.no_cold else ("cifar10", *["imagenet"] * (large is not None)):
            cold = [*run, "score", CAT, "--detector", name]
            figures[f"cold_score_seconds, {name}"] = seconds(lambda cold=cold: _scored(cold), few)
        for n in args.memory:
            out = subprocess.run([sys.executable, "-c", MEMORY, str(n)], capture_output=True, text=True, check=True)
            figures[f"peak_mib_{n}_images"] = float(out.stdout)
    print(json.dumps(figures, indent=1))
    write_record(args.record, "speed", {**figures}, __file__)


if __name__ == "__main__":
    main()
