"""A detector and an attack of your own in the benchmark: check the contract first, then compare.

python benchmark_my_detector.py
"""

import torch
import torch.nn.functional as F

from advconn.benchmark import Candidate
from advconn.benchmark.run import Settings, run
from advconn.bundle import default, load
from advconn.data.datasets import unseen_digits
from advconn.runtime.parallel import Runner
from advconn.testing import check_attack, check_detector


class Spread(Candidate):
    """How far apart the logits are."""

    name, source = "spread", "ours"

    def measure(self, images):
        """Columns (n, d); column 0 is the score."""
        return -self.classifier.logits(images).std(1, keepdim=True).cpu().double().numpy()


class Step:
    """One step along the gradient."""

    name, size = "one step", 0.2

    def run(self, classifier, images, labels, *, seed):
        """Attacked copies in [0, 1]."""
        leaf = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(classifier.logits(leaf), labels), leaf)
        return (images + self.size * slope.sign()).clamp(0, 1)


check_detector(Spread)
print(f"one step changes {check_attack(Step()):.0%} of the predictions")

settings = Settings(attacks=(Step(),), baselines=(Spread,), mixture=("pgd:eps=0.1", "fgsm:eps=0.2"), limit=100)
report = run(unseen_digits(), load(default("digits")), settings, Runner())
for row in report.rows:
    print(f"{row.detector:30} {row.attack:10} AUROC {row.auroc:.3f}, detected {row.tpr:.2f}")
