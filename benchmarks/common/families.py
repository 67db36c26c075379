"""Attacked images of every family on several CIFAR-10 networks, and what their walks show: made once and kept.

    python -m benchmarks.common.families --data DIR --cache DIR --nets DIR --network half18 --part fit

NETS holds weights of train_architectures.py (plain, half18, vit6) and train_robust.py (robust); `shipped` is the
classifier that ships. Images of the part 'fit' are for fitting and teaching, those of 'attack' are test images. A spec
that begins with `from:` is PGD 8/255 made on another of the networks.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from advconn import bundle, models
from advconn.attacks.attack import Attack, SuccessfulAttacks, attack_correct_images, concat_hits
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.attacked_copies import still_misclassified
from advconn.data.conditions import BENIGN, CONDITIONS
from advconn.features.connectivity import Connectivity
from advconn.features.references import synthesise
from advconn.models.classifier import Classifier
from benchmarks.common.cifar10 import Part, attacked, classifier, kept, parts, whole
from benchmarks.common.provenance import SEED

HERE = Path(__file__).parent
NETWORKS = ("shipped", "robust", "plain", "half18", "vit6")
SHAPED = (
    "tifgsm:eps=8/255",
    "low-frequency:eps=16/255",
    "universal:eps=10/255",
    "patch:side=8",
    "pixle",
)
OTHERS = ("noise:eps=16/255,tries=20", "fmn-l0", "saltpepper", "colour", "spatial", "ead")
CHEAP = ("deepfool:steps=50", "mifgsm:eps=4/255,steps=10", "transfer:eps=8/255", *SHAPED, *OTHERS)
WIDE = tuple(dict.fromkeys((*MIXTURE, *CHEAP)))  # what a head is taught on
NAMED = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "cw:c=1,kappa=0,steps=100",
    "deepfool",
    "fgsm:eps=8/255",
    "square:eps=8/255,n_queries=500",
)
FROM = "pgd:eps=8/255,steps=10 from"
BRIEF = (*NAMED, f"{FROM} plain", *SHAPED)  # on the networks beside the shipped one
TEST = (*BRIEF, f"{FROM} half18", *OTHERS, "onepixel:pixels=5")
LIMITS = dict.fromkeys(NAMED, 600) | {NAMED[-1]: 300}  # images that the shipped network is attacked on by each


def tried(name: str, spec: str, few: int) -> int:
    """How many test images of a network are attacked."""
    return LIMITS.get(spec, 100) if name == "shipped" else few


def network(name: str, nets: Path) -> Classifier:
    """One of NETWORKS."""
    if name == "shipped":
        return classifier(bundle.default() / "classifier.safetensors")
    if name == "robust":
        return classifier(nets / "robust.safetensors")
    spec = f"{HERE.parent / 'ship' / 'train_architectures.py'}:{name}"
    return models.load(spec, nets / f"{name}.safetensors", size=(32, 32))


def hits_of(cache: Path, nets: Path, name: str, where: str, part: Part, spec: str, limit: int) -> SuccessfulAttacks:
    """Successful copies of at most `limit` images of a part; `SPEC from NAME` is made on another network."""
    model = network(name, nets)
    spec, _, other = spec.partition(" from ")
    if not other:
        return attacked(cache, model, where, part, spec, limit)

    def make() -> SuccessfulAttacks:
        source = network(other, nets)
        order = torch.randperm(len(part.images), generator=torch.Generator().manual_seed(SEED + 1))[:limit]
        attack = Attack.parse(spec)
        made = [
            (attack_correct_images(model, attack, part.images[rows], part.labels[rows], seed=SEED, source=source), rows)
            for rows in order.split(64)
        ]
        return concat_hits(made, part.images)

    return kept(cache, f"{spec} of {network(other, nets).fingerprint} on {model.fingerprint} {where} {limit}", make)


def walk_of(cache: Path, model: Classifier) -> Connectivity:
    """The whole walk, with synthesised references."""
    return Connectivity(model, kept(cache, f"references {model.fingerprint}", lambda: synthesise(model)))


def arguments(about: str) -> argparse.ArgumentParser:
    """What all scripts on these networks are told: the data, the cache and the networks' weights."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "nets"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--part", choices=("fit", "attack"), required=True)
    parser.add_argument("--clean", type=int, default=300, help="clean images walked from")
    parser.add_argument("--limit", type=int, default=40, help="images attacked by each")
    parser.add_argument("--attacks", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, groups = network(args.network, args.nets), parts(args.data)
    connectivity, started = walk_of(args.cache, model), time.time()
    fitted = args.part == "fit"
    clean = groups["fit" if fitted else "clean"].rows(slice(0, args.clean))
    whole(args.cache, connectivity, "clean", clean.images)
    if fitted:
        for i, kind in enumerate(BENIGN):
            whole(args.cache, connectivity, kind, CONDITIONS[kind](clean.images[i :: len(BENIGN)], SEED))
    for spec in args.attacks or (WIDE if fitted else TEST if args.network == "shipped" else BRIEF):
        if spec.endswith(f" from {args.network}"):
            continue
        part, limit = groups[args.part], args.limit if fitted else tried(args.network, spec, args.limit)
        hits = hits_of(args.cache, args.nets, args.network, args.part, part, spec, limit)
        if not len(hits.rows):
            continue
        whole(args.cache, connectivity, spec, hits.images)
        if fitted:
            changed, _ = still_misclassified(model, hits.images, part.labels[hits.rows], BENIGN, SEED)
            if len(changed):
                whole(args.cache, connectivity, f"{spec}, changed", changed)
        print(f"{args.network} {spec} {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
