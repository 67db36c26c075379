"""Vrabel et al., section 4.2 and figure 6: the barrier between two real images against real and adversarial ones.

Largest cross-entropy and gap on one straight path a pair, and the AUROC of a single pair. Their attack is unbounded and
targeted; beside it stand what they lack: attacks bounded in eps, the same after they were saved as JPEG, misclassified
images, and noise of an attack's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.attacks.attack import Attack
from advconn.data.conditions import CONDITIONS, noise_of_size
from advconn.data.input_conversion import as_bytes
from advconn.metrics import auroc, auroc_bootstrap_interval
from advconn.models.classifier import Classifier
from advconn.paths.connection import losses
from advconn.paths.path import straight
from advconn.runtime.forward_passes import gradients_enabled
from advconn.studies.common import Pairs, Pool, Study, Subject, boxes, pool, same_class, spread, to_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = 0.94  # AUROC of one pair, from their published pairs on GoogLeNet: unbounded targeted attack
REAL = "real, real"
SAVED = "jpeg75"  # how attacked images are saved again
ATTACKS = {"pgd": "pgd:eps=8/255,steps=10", "cw": "cw:c=1,kappa=0,steps=50", "fgsm": "fgsm:eps=8/255"}


def run(subject: Subject, fast: bool = False) -> Study:
    """Barriers of pairs by kind. fast: 60 pairs of each and 17 points on a path; else 300 and 129."""
    count, samples = (60, 17) if fast else (300, 129)
    pooled = pool(subject, 600 if fast else 3000)
    kinds = pairs(subject, pooled, count)
    rows: dict[str, Any] = {}
    measured: dict[str, dict[str, Any]] = {"barrier": {}, "gap": {}}
    for i, (kind, some) in enumerate(kinds.items()):
        subject.progress("barriers", i + 1, len(kinds))
        if len(some) < 2:
            continue
        line = losses(straight(some.start, some.end), subject.classifier.landscape(some.labels), samples)
        measured["barrier"][kind], measured["gap"][kind] = (v.cpu().double().numpy() for v in (line.barrier, line.gap))
        rows[kind] = {"barrier": spread(measured["barrier"][kind]), "gap": spread(measured["gap"][kind])}
    for name, values in measured.items():
        for kind, row in rows.items():
            low, high = auroc_bootstrap_interval(values[REAL], values[kind], seed=subject.seed)
            row[name] |= {"auroc": auroc(values[REAL], values[kind]), "auroc_low": low, "auroc_high": high}
    figures = {"classifier": str(subject.classifier), "kinds": rows, "paper": {"auroc of the barrier": PAPER}}
    return Study(figures, text(figures), lambda: draw(measured))


def pairs(subject: Subject, pooled: Pool, count: int) -> dict[str, Pairs]:
    """Pairs by kind: an image of each kind with a real one of the class that it is given.

    Args:
        subject: the classifier, the seed, and the attacks' specifications.
        pooled: checked images and their classes, which the pairs are made of.
        count: pairs of each kind, at most.
    """
    classifier, seed = subject.classifier, subject.seed
    out = {REAL: same_class(pooled, count, seed)}
    clean = pooled.right.nonzero()[:count, 0]
    images, labels = pooled.images[clean], pooled.labels[clean]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    shift = torch.randint(
        1, classifier.num_classes, labels.shape, generator=generator, dtype=torch.int64, device="cpu"
    ).to(labels)
    wanted = (labels + shift) % classifier.num_classes
    aimed = to_class(images, wanted, pooled, seed)
    stop = F.cross_entropy(classifier.logits(aimed.end), aimed.labels, reduction="none")
    made = unbounded(classifier, aimed.start, aimed.labels, stop, progress=subject.progress)
    hit = classifier.logits(made).argmax(1) == aimed.labels
    out["real, adversarial unbounded"] = Pairs(made, aimed.end, aimed.labels).rows(hit.nonzero()[:, 0])
    change = 1.0
    for name, usual in ATTACKS.items():
        spec = subject.attacks.get(name, usual)
        attacked = Attack.parse(spec).run(classifier, images, labels, seed=seed)
        given = classifier.logits(attacked).argmax(1)
        rows = (given != labels).nonzero()[:, 0]
        out[f"real, adversarial {name}"] = to_class(attacked[rows], given[rows], pooled, seed)
        out[f"real, adversarial {name}, {SAVED}"] = _saved(classifier, attacked[rows], labels[rows], pooled, seed)
        if name == "pgd" and len(rows):
            change = float((attacked - images)[rows].flatten(1).norm(dim=1).mean())
    wrong = (~pooled.right).nonzero()[:count, 0]
    out["real, misclassified"] = to_class(pooled.images[wrong], pooled.predicted[wrong], pooled, seed)
    spoilt = classifier.check(noise_of_size(change)((images * 255).round().byte().cpu(), seed))
    out["real, noisy"] = to_class(spoilt, classifier.logits(spoilt).argmax(1), pooled, seed)
    return out


def _saved(classifier: Classifier, attacked: Tensor, labels: Tensor, pooled: Pool, seed: int) -> Pairs:
    """Pairs of attacked images that still fool the classifier after they were saved as SAVED."""
    shown = classifier.check(CONDITIONS[SAVED](as_bytes(attacked.cpu()), seed)).to(attacked)
    given = classifier.logits(shown).argmax(1)
    rows = (given != labels).nonzero()[:, 0]
    return to_class(shown[rows], given[rows], pooled, seed)


def unbounded(
    classifier: Classifier, images: Tensor, wanted: Tensor, stop: Tensor, *, rate: float = 0.005, steps: int = 512,
    least: int = 32, progress: Any = None,
) -> Tensor:  # fmt: skip
    """Their attack: Adam on the image towards the wanted class (n,), until its cross-entropy is under `stop` (n,).

    At least `least` steps, no bound on the change but that the image stays in [0, 1].

    Args:
        classifier: what is attacked.
        images: clean ones (n, c, h, w), checked.
        wanted: classes (n,) to reach.
        stop: cross-entropies (n,) under which an image is changed no more.
        rate: learning rate of Adam.
        steps: at most so many.
        least: at least so many.
        progress: told (stage, done, total); None tells nobody.
    """
    with gradients_enabled():
        leaf = images.clone().requires_grad_()
        optimizer = torch.optim.Adam([leaf], rate)
        for step in range(steps):
            loss = F.cross_entropy(classifier.logits(leaf), wanted, reduction="none")
            done = (loss.detach() < stop) & (step >= least)
            if bool(done.all()):
                break
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            before = leaf.detach().clone()
            leaf.grad = gradient
            optimizer.step()
            with torch.no_grad():
                leaf.copy_(torch.where(done[:, None, None, None], before, leaf).clamp(0, 1))
            if progress is not None:
                progress("unbounded attack", step + 1, steps)
    return leaf.detach()


def text(figures: dict[str, Any]) -> str:
    """The AUROCs in words."""
    out = [
        f"{figures['classifier']}: median barrier (cross-entropy) on a straight path to a real image of the class "
        f"given, and AUROC of one pair against two real images (paper, GoogLeNet, unbounded attack: {PAPER}):"
    ]
    for kind, row in figures["kinds"].items():
        barrier, gap = row["barrier"], row["gap"]
        out.append(
            f"- {kind}: {barrier['median']:.3g}, AUROC {barrier['auroc']:.3f} "
            f"({barrier['auroc_low']:.3f} to {barrier['auroc_high']:.3f}, n {barrier['n']}); gap {gap['auroc']:.3f}"
        )
    return "\n".join(out)


def draw(groups: dict[str, dict[str, Any]]) -> Figure:
    """Box plots of the barrier and the gap by kind."""
    told = {"barrier": "largest cross-entropy", "gap": "gap: what exceeds the larger end"}
    return boxes({told[name]: {k: v.clip(1e-8) for k, v in groups[name].items()} for name in told}, log=True)
