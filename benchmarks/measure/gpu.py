"""What a verdict costs on a GPU, and whether it is the verdict of a CPU.

    python -m benchmarks.measure.gpu --data DIR [--images 10000] [--side 224] [--compare 2000] [--record DIR]

Claim: the shipped detector judges 10,000 CIFAR-10 images in a second, and a quickly fitted one 10,000 pictures of 224
pixels on a ResNet-50 (random weights, which do for time; random smooth pictures, which leave the stages as clean images
do) in ten; on 2,000 test images the flags of GPU and CPU are the same. The bare forwards stand beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import advconn
from advconn import bundle
from advconn.detector.detector import Detector
from advconn.models.classifier import Classifier
from advconn.runtime.forward_passes import tf32_disabled
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import read
from benchmarks.common.provenance import write_record

WARM = 2048  # images judged before anything is timed


def finish() -> None:
    """Wait for what a GPU still works at."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 3) -> list[float]:
    """Of each repeat, after a warm-up."""
    taken = []
    for _ in range(repeats + 1):
        finish()
        started = time.perf_counter()
        work()
        finish()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def figures(detector: Detector, images: torch.Tensor) -> dict[str, object]:
    """Seconds for all images, in the precisions that the GPU offers, beside one bare forward of each."""
    classifier = detector.classifier
    detector.judge(images[:WARM])
    taken = seconds(lambda: detector.judge(images))
    judged = detector.judge(images)

    def bare() -> None:
        for block in images.split(4096):
            classifier.logits(classifier.check(block))

    return {
        "images": len(images),
        "size": list(images.shape[1:]),
        "seconds": taken,
        "images_a_second": len(images) / float(np.median(taken)),
        "bare_forward_seconds": float(np.median(seconds(bare))),
        "forwards": float(judged.forwards.mean()),
        "gradients": float(judged.gradients.mean()),
        "flagged": float(judged.adversarial.mean()),
        "stages": np.bincount(judged.stage, minlength=5)[1:].tolist(),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }


def compared(images: torch.Tensor, folder: Path, device: str) -> dict[str, object]:
    """Flags and scores of the same images on both."""
    here, there = (bundle.load(folder, device=one).judge(images) for one in ("cpu", device))
    return {
        "images": len(images),
        "flags_that_differ": int((here.adversarial != there.adversarial).sum()),
        "stages_that_differ": int((here.stage != there.stage).sum()),
        "largest_difference_of_p": float(np.abs(here.p_value - there.p_value).max()),
        "median_difference_of_score": float(np.median(np.abs(here.score - there.score))),
        "largest_difference_of_log_odds": moved(images, folder, device),
        "flagged": int(here.adversarial.sum()),
    }


def moved(images: torch.Tensor, folder: Path, device: str) -> list[float]:
    """By how much TF32 moves the log-odds of each stage at most, every stage walked for every image."""
    cascade = bundle.load(folder, device=device).cascade_
    tf32 = cascade.walk(images[:512], full=True).scores
    with tf32_disabled():
        exact = cascade.walk(images[:512], full=True).scores
    return np.abs(tf32 - exact).max(0).tolist()


def smooth(count: int, side: int, seed: int, device: str) -> torch.Tensor:
    """Random pictures (n, 3, side, side), uint8, with structure at several scales and a little noise."""
    generator = torch.Generator(device=device).manual_seed(seed)
    out = []
    for start in range(0, count, 500):
        n = min(500, count - start)
        total = torch.zeros(n, 3, side, side, device=device)
        for k in (4, 8, 16, 32, 64):
            grid = torch.randn(n, 3, k, k, device=device, generator=generator)
            total += F.interpolate(grid, (side, side), mode="bicubic") / k**0.5
        total += 0.02 * torch.randn(total.shape, device=device, generator=generator)
        out.append((total * 60 + 128).clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(out)


def large(count: int, side: int, device: str) -> dict[str, object]:
    """A ResNet-50 of random weights, and a detector fitted on pictures that nobody attacked."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    classifier = Classifier(network, size=side, device=device)
    pictures = smooth(count + 600, side, 0, device)
    detector = advconn.fit(classifier, pictures[count:], confidence="none", accept_accuracy=True)
    return figures(detector, pictures[:count])


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--compare", type=int, default=2000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--exact", action="store_true", help="convolutions in float32 where TF32 is usual")
    parser.add_argument("--no-large", action="store_true", help="leave the ResNet-50 out")
    parser.add_argument("--subject", default="gpu", help="of the record: a variant has a name of its own")
    args = parse(parser, "data", images=4, side=32, compare=4, device="cpu", no_large=True)
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device

    torch.backends.cudnn.allow_tf32 = not args.exact
    test = read(args.data / "test.npz").images
    many = torch.cat([test, test.flip(3), test])[: args.images]
    record: dict[str, object] = {"device": name, "tf32": torch.backends.cudnn.allow_tf32}
    record["cifar10"] = figures(bundle.load(bundle.default(), device=args.device), many)
    print(json.dumps(record, indent=1), flush=True)
    record["cpu_and_gpu"] = compared(test[: args.compare], bundle.default(), args.device)
    print(json.dumps(record["cpu_and_gpu"], indent=1), flush=True)

    if not args.no_large:
        record["resnet50"] = large(args.images, args.side, args.device)
        print(json.dumps(record["resnet50"], indent=1), flush=True)
    write_record(args.record, args.subject, {**record}, __file__)


if __name__ == "__main__":
    main()
