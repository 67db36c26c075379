"""What scripts are told on the command line: folders, where a record goes, and --tiny."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

from advconn import bundle
from benchmarks.common.provenance import SEED

FOLDERS = {
    "data": "holds train.npz and test.npz of CIFAR-10",
    "cache": "where finished work is kept",
    "nets": "weights of ship/train_architectures.py, train_robust.py and common/small.py",
    "public": "networks.py and weights that others trained",
}
TRAIN, TEST = 304, 16  # made-up pictures: 19 to fit on, 19 to calibrate on, and twice 8 to test on


def parser_of(about: str, *folders: str) -> argparse.ArgumentParser:
    """A script's parser: its help is `about`; it takes some of FOLDERS, --record and --tiny."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in folders:
        parser.add_argument(f"--{name}", type=Path, help=FOLDERS[name])
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    parser.add_argument(
        "--tiny",
        type=Path,
        metavar="DIR",
        help="run in seconds, on pictures made up in DIR: this shows that the script runs, its figures mean nothing",
    )
    return parser


def parse(parser: argparse.ArgumentParser, *required: str, **tiny: Any) -> argparse.Namespace:
    """What the command line says.

    Args:
        parser: one of parser_of.
        required: names of options that must be given, but for --tiny; NAME is a positional one.
        tiny: what --tiny sets, whatever else is given. Folders of FOLDERS and `photographs` are made up.
    """
    args = parser.parse_args()
    if args.tiny is None:
        missing = [name if name == "NAME" else f"--{name}" for name in required if getattr(args, name.lower()) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        return args
    if args.record is not None:
        parser.error("--tiny makes no record: its pictures are made up")
    for name, value in {**made_up(args.tiny), **tiny}.items():
        if hasattr(args, name):
            setattr(args, name, value)
    return args


def made_up(folder: Path) -> dict[str, Path]:
    """The folders of a run with --tiny: smooth pictures, with the classes that the shipped classifier gives them."""
    out = {name: folder / name for name in (*FOLDERS, "photographs")}
    for place in out.values():
        place.mkdir(parents=True, exist_ok=True)
    model = bundle.load(bundle.default()).classifier
    for name, count, seed in (("train", TRAIN, SEED), ("test", TEST, SEED + 1)):
        file = out["data"] / f"{name}.npz"
        if not file.exists():
            images = smooth_pictures(count, seed)
            labels = torch.cat([model.predict(x).cpu() for x in images.split(256)]).numpy()
            np.savez(file, images=images.permute(0, 2, 3, 1).numpy(), labels=labels)
    for number, picture in enumerate(load_sample_images().images):
        Image.fromarray(picture).save(out["photographs"] / f"{number}.png")
    return out


def smooth_pictures(count: int, seed: int, side_px: int = 32) -> torch.Tensor:
    """Pictures (n, 3, side, side) uint8 with structure at two scales and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, side_px, side_px)
    for cells in (4, 9):
        grid = torch.rand(count, 3, cells, cells, generator=generator)
        total += F.interpolate(grid, (side_px, side_px), mode="bicubic") / 2
    total += 0.01 * torch.randn(total.shape, generator=generator)
    return (total.clamp(0, 1) * 255).round().to(torch.uint8)
