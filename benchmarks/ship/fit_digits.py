"""Train and fit the second default: a small classifier of scikit-learn's digits and its detector, in a minute.

    python -m benchmarks.ship.fit_digits --out models/digits

The first 600 of the shuffled digits train the classifier, the next 400 fit and calibrate the detector; the others are
left to benchmarks. Attack strengths suit images of 8 x 8 pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from advconn import bundle, models
from advconn.data.datasets import DIGIT_MIXTURE, FIT_END, TRAIN_END, digits
from advconn.detector.fitting import fit
from advconn.models.architectures import compact
from benchmarks.common.provenance import machine

WIDTHS = (16, 32, 64)


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int = 40) -> torch.nn.Module:
    net = compact(10, 1, WIDTHS)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // 60)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(60):
            dy, dx = (int(v) for v in torch.randint(-1, 2, (2,)))
            batch = F.pad(images[rows], (1, 1, 1, 1))[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]
            optimizer.zero_grad()
            F.cross_entropy(net(batch), labels[rows], label_smoothing=0.02).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = digits()
    net = train(images[:TRAIN_END].float() / 255, labels[:TRAIN_END])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "classifier.safetensors"
        save_file(net.state_dict(), weights)
        names = tuple(str(i) for i in range(10))
        model = models.load("advconn:compact", weights, size=(8, 8), class_names=names)
    with torch.no_grad():
        right = (net(images[FIT_END:].float() / 255).argmax(1) == labels[FIT_END:]).float().mean()
    detector = fit(
        model,
        images[TRAIN_END:FIT_END],
        labels[TRAIN_END:FIT_END],
        synthesised=True,
        attacks=DIGIT_MIXTURE,
        per_attack=240,
    )
    figures = {"unseen_accuracy": round(float(right), 4), "train_images": TRAIN_END, "machine": machine()}
    print(bundle.save(detector, args.out, figures=figures), figures["unseen_accuracy"])
    for name, (tried, hits) in detector.fitted_.attacks.items():
        print(f"  {name:40} {hits} of {tried}")


if __name__ == "__main__":
    main()
