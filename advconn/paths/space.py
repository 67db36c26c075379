"""Where paths live: the images themselves, or the outputs of a layer, from which only the rest of the network is run.

After Gu & Borovykh (2023), who connect images in the original space and in latent ones.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from advconn.errors import PathError
from advconn.models.classifier import Classifier
from advconn.models.margin import MarginLandscape
from advconn.runtime.forward_passes import batched_forward

PIXEL = "pixel"


class Space:
    """The inputs of a classifier, or the outputs of one of its layers.

    A layer is named as in the module's `named_modules()`; 'NAME:input' is what it is given. A convolution whose batch
    norm was folded gives the normalised output.

    Args:
        classifier: what the points are shown to.
        layer: a layer's name, or 'pixel'.

    Raises:
        PathError: no such layer, or the network cannot be cut there: its code cannot be traced, the layer is called
            more than once, or what follows reads something from before it too.
    """

    def __init__(self, classifier: Classifier, layer: str = PIXEL) -> None:
        self.classifier, self.layer = classifier, layer
        self._parts = None if layer == PIXEL else split_network(classifier.network, layer)

    def __repr__(self) -> str:
        return f"Space({self.layer})"

    def points(self, images: Tensor) -> Tensor:
        """The points (n, *shape) of checked images (n, c, h, w)."""
        if self._parts is None:
            return images
        front = self._parts[0]

        def forward(chunk: Tensor) -> Tensor:
            output = front(self.classifier.prepare(chunk).to(self.classifier.adapter.dtype))
            if not isinstance(output, Tensor):
                raise PathError(f"{self.layer!r} gives a {type(output).__name__}: expected a tensor to walk between")
            return output.float()

        return batched_forward(forward, images, self.classifier.batch_size)

    def logits(self, points: Tensor) -> Tensor:
        """Logits (n, k) of points (n, *shape); differentiable with respect to them where they ask for it."""
        if self._parts is None:
            return self.classifier.logits(points)
        tail = self._parts[1]
        read, dtype = self.classifier.adapter.read, self.classifier.adapter.dtype
        return batched_forward(
            lambda chunk: read(tail(chunk.to(dtype)), len(chunk)), points, self.classifier.batch_size
        )

    def landscape(self, labels: Tensor) -> MarginLandscape:
        """The margin against `labels` (n,), one a row."""
        return MarginLandscape(self.logits, labels)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        side = self.classifier.preprocessing.size or (32, 32)
        grey = torch.full((1, self.classifier.channels, *side), 0.5, device=self.classifier.device, dtype=torch.float32)
        return tuple(self.points(grey).shape[1:])


def layers(classifier: Classifier) -> list[str]:
    """Names of the layers that a classifier can be cut at, in order."""
    out = []
    for name, _ in classifier.network.named_modules():
        if name:
            try:
                split_network(classifier.network, name)
            except PathError:
                continue
            out.append(name)
    return out


class _Whole(Tracer):
    """Keeps one layer in a piece, whatever it is made of."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


def split_network(network: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """The network up to and with a layer (or, of 'NAME:input', up to it), and the rest: rest(front(x)) is network(x).

    Raises:
        PathError: it cannot be cut there.
    """
    layer, _, given = layer.partition(":")
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        some = ", ".join(n for n in names if "." not in n) or "none"
        raise PathError(f"no layer {layer!r} in the network: expected 'pixel' or a layer's name, such as {some}")
    try:
        nodes = list(_Whole(layer).trace(network).nodes)
    except Exception as error:  # whatever a user's forward does that cannot be traced
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise PathError(f"the network cannot be cut at {layer!r}: its code cannot be traced ({line[:120]})") from error
    calls = [node for node in nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1:
        raise PathError(f"the network cannot be cut at {layer!r}: it is called {len(calls)} times, expected once")
    cut_node = calls[0]
    if given:
        cut_node = cut_node.all_input_nodes[0]
        if given != "input" or cut_node.op == "placeholder" or len(calls[0].all_input_nodes) != 1:
            raise PathError(f"the network cannot be cut at {layer}:{given}: it has no one input within the network")
    return _front(network, nodes, cut_node), _rest(network, nodes, cut_node)


def _front(network: nn.Module, nodes: list[Node], cut_node: Node) -> nn.Module:
    graph, made = Graph(), dict[Node, Node]()
    needed = _behind(cut_node, None)
    for node in (n for n in nodes if n in needed):
        made[node] = graph.node_copy(node, lambda n: made[n])
    graph.output(made[cut_node])
    return GraphModule(network, graph)


def _rest(network: nn.Module, nodes: list[Node], cut_node: Node) -> nn.Module:
    before = set(nodes[: nodes.index(cut_node)])
    needed = _behind(nodes[-1], cut_node)
    graph = Graph()
    made = {cut_node: graph.placeholder("latent")}
    for node in (n for n in nodes if n in needed):
        if node.op == "placeholder" or (node in before and node.op != "get_attr"):
            raise PathError(
                f"the network cannot be cut at {cut_node.target!r}: what follows it reads {node.name!r} from before "
                "it too"
            )
        made[node] = graph.node_copy(node, lambda n: made[n])
    return GraphModule(network, graph)


def _behind(last: Node, stop: Node | None) -> set[Node]:
    """A node and all that it is made from, but nothing that only `stop` needs."""
    needed, open_ = {last}, [last]
    while open_:
        fresh = [n for n in open_.pop().all_input_nodes if n is not stop and n not in needed]
        needed.update(fresh)
        open_ += fresh
    return needed
