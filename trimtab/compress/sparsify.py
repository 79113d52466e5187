"""Sparse weights: single weights become zero, unstructured or two of every four (2:4); shapes stay.

Han et al., "Learning both Weights and Connections" (2015): the smallest of each layer. Mishra et al., "Accelerating
Sparse Deep Neural Networks" (2021): in 2:4, of every four inputs in a row. By `activation` a weight counts |w| x the L2
norm of its input, compared within its output (Sun et al., "Wanda", 2023). With `compensate` the weights that stay are
re-solved by least squares on the original's inputs, one output at a time: the optimum for the chosen zeros, which
"SparseGPT" (Frantar and Alistarh, 2023) approximates column by column; the ridge pulls towards the weights there were.
By `allocation="global"` all layers share one budget: a weight's squared score counts as a share of those of its layer
that are no smaller ("LAMP", Lee et al., 2021), so that wide layers lose most and no layer loses all.

What it is good for: fewer bytes once the file is compressed. It is no faster: ONNX Runtime and OpenVINO ran weights
with 50 to 99 % zeros at 0.96 to 0.99 times the speed of dense ones on a CPU. The plan says how many bytes zlib makes
of each weight, before and after. Training on fills the zeros in again.
Cost: a pass over the weights; compensation one Cholesky factorization for each output of a layer.
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import (
    DATA_FREE,
    MAX_FEATURES,
    Layer,
    batches,
    calibration,
    grams,
    layer_of,
    num_features,
)
from trimtab.compress.prune import as_graph
from trimtab.compress.tables import table
from trimtab.core import Skip, Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor

PATTERNS = ("unstructured", "2:4")
ALLOCATIONS = ("uniform", "global")
RIDGE = 1e-2
MAX_FEATURES_SOLVED = 1536


@dataclass(frozen=True)
class Sparse:
    """What becomes of one weight: how many of its numbers stay, and the SHA-256 of the mask that says which.

    bytes_before and bytes_after: what zlib makes of it (level 6); after, before any compensation.
    """

    weight: str
    layer: str
    size: int
    kept: int
    mask_sha256: str
    importance_lost: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class SparsifyPlan:
    """Which weights become sparse; `samples` of the train split are used."""

    weights: tuple[Sparse, ...]
    skipped: tuple[Skip, ...]
    samples: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One row per weight."""
        return [
            {
                "weight": one.weight,
                "numbers": one.size,
                "zeros": one.size - one.kept,
                "importance lost": round(one.importance_lost, 4),
                "zlib bytes before": one.bytes_before,
                "zlib bytes after": one.bytes_after,
            }
            for one in self.weights
        ]

    def __str__(self) -> str:
        """The rows as a table, and what was left alone."""
        before, after = (sum(getattr(one, name) for one in self.weights) for name in ("bytes_before", "bytes_after"))
        lines = [table(self.rows()), f"compressed by zlib: {before:,} to {after:,} bytes ({after / before:.1%} left)"]
        return "\n".join([*lines, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class Sparsify:
    """Zero single weights of every layer with a fixed weight.

    Args:
        ratio: the share of each weight that goes; 0.5 for 2:4.
        pattern: "unstructured", or "2:4": two of every four inputs in a row of each output.
        importance: "magnitude", or "activation", which needs data.
        samples: of the train split, for activation and compensation.
        compensate: re-solve the weights that stay.
        allocation: "uniform" zeroes `ratio` of every weight; "global" `ratio` of all together, where it costs least.

    >>> Sparsify(pattern="2:4").name, Sparsify(0.8, importance="activation").name
    ('sparsify 2:4', 'sparsify .8 by activation')
    """

    ratio: float = 0.5
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    importance: Literal["magnitude", "activation"] = "magnitude"
    samples: int = 256
    compensate: bool = False
    allocation: Literal["uniform", "global"] = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise PlanError(f"Sparsify(ratio={self.ratio:g}) is not a share of weights: give 0 < ratio < 1, e.g. 0.5.")
        if self.pattern not in PATTERNS or self.importance not in ("magnitude", "activation"):
            raise PlanError(
                f"Sparsify(pattern={self.pattern!r}, importance={self.importance!r}) is not known; use pattern "
                "'unstructured' or '2:4', importance 'magnitude' or 'activation'."
            )
        if self.pattern == "2:4" and (self.ratio != 0.5 or self.allocation != "uniform"):
            raise PlanError(
                f"Sparsify(pattern='2:4') zeroes half of the weights; got ratio={self.ratio:g}, "
                f"allocation={self.allocation!r}. Leave them out."
            )
        if self.allocation not in ALLOCATIONS:
            raise PlanError(f"Sparsify(allocation={self.allocation!r}) is not known; use 'uniform' or 'global'.")

    @property
    def name(self) -> str:
        words = f"sparsify {self.pattern if self.pattern != 'unstructured' else f'{self.ratio:g}'}"
        words += " globally" if self.allocation == "global" else ""
        words += "" if self.importance == "magnitude" else f" by {self.importance}"
        return (words + (" compensated" if self.compensate else "")).replace(" 0.", " .")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> SparsifyPlan:
        """Choose the weights that stay.

        Args:
            graph: captured; or a module, which is captured with inputs of the task's select split.
            task: not needed for a graph by magnitude without compensation.

        Raises:
            PlanError: nothing can be made sparse, weights are not finite, or there are too few samples.
        """
        graph = as_graph(graph, task, method="Sparsify")
        data = self._data(task)
        layers, skipped = self._layers(graph)
        if not layers:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skipped)
            raise PlanError(f"Nothing can be made sparse: no layer has a fixed weight of its own that fits.{reasons}")
        masks = self._masks(graph, layers, data)
        weights = tuple(_sparse(graph, layer, *masks[layer.node]) for layer in layers)
        return SparsifyPlan(weights, tuple(skipped), len(data) if data is not None else 0)

    def apply(self, graph: GraphModule, plan: SparsifyPlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` with the zeros that were planned.

        Raises:
            PlanError: the plan is for another graph, or there is no task for the samples it needs.
        """
        result, nodes = copy.deepcopy(graph), {node.name: node for node in graph.graph.nodes}
        data = calibration(tools.task if tools else None, plan.samples, purpose="Sparsify") if plan.samples else None
        found = [_layer(graph, nodes.get(one.layer)) for one in plan.weights]
        layers = [layer for layer in found if layer is not None]
        known = {layer.node: get_tensor(graph, layer.weight).numel() for layer in layers}
        wrong = next((one for one in plan.weights if known.get(one.layer) != one.size), None)
        masks = self._masks(graph, layers, data) if wrong is None else {}
        for one in plan.weights if wrong is None else ():
            if _digest(masks[one.layer][0]) != one.mask_sha256:
                wrong = one
        if wrong is not None:
            raise PlanError(
                f"This plan was made for another graph or other data: {wrong.weight} is not the weight that was "
                "planned on. Plan on the graph that you make sparse."
            )
        inputs = grams(graph, layers, batches(data)) if self.compensate and data is not None else {}
        for layer in layers:
            _zero_(result, layer, masks[layer.node][0], inputs.get(layer.node))
        return result

    def _data(self, task: Task | None) -> Split | None:
        if not self.compensate and self.importance != "activation":
            return None
        return calibration(task, self.samples, purpose=f"Sparsify ({self.name})", instead=DATA_FREE)

    def _layers(self, graph: GraphModule) -> tuple[list[Layer], list[Skip]]:
        layers, skipped = [], []
        for node in graph.graph.nodes:
            if (layer := _layer(graph, node)) is None:
                continue
            weight, each = get_tensor(graph, layer.weight), num_features(layer, get_tensor(graph, layer.weight))
            if not weight.isfinite().all():
                raise PlanError(f"The weight {layer.weight!r} holds NaN or infinity. Load a sound checkpoint.")
            if self.pattern == "2:4" and each % 4:
                skipped.append(Skip(layer.weight, f"its sums have {each} terms, which is no multiple of 4"))
            elif self._data_limits(each):
                skipped.append(Skip(layer.weight, f"its sums have {each} terms, too many to solve"))
            else:
                layers.append(layer)
        return layers, skipped

    def _data_limits(self, features: int) -> bool:
        limit = MAX_FEATURES_SOLVED if self.compensate else MAX_FEATURES
        return (self.compensate or self.importance == "activation") and features > limit

    def _masks(self, graph: GraphModule, layers: list[Layer], data: Split | None) -> dict[str, tuple[Tensor, Tensor]]:
        """For each layer True where a number stays, and the scores, both [num_groups, outputs, features]."""
        inputs = grams(graph, layers, batches(data)) if self.importance == "activation" and data is not None else {}
        found = {}
        for layer in layers:
            scores = layer.matrix(get_tensor(graph, layer.weight).detach().double().abs())
            if self.importance == "activation":
                norms = inputs[layer.node].diagonal(dim1=1, dim2=2)[:, : scores.shape[2]].sqrt()
                scores = scores * norms[:, None]
            found[layer.node] = scores
        if self.allocation == "global":
            return {node: (mask, found[node]) for node, mask in _global_masks(found, self.ratio).items()}
        return {node: (self._mask(scores), scores) for node, scores in found.items()}

    def _mask(self, scores: Tensor) -> Tensor:
        if self.pattern == "2:4":
            return _largest(scores.reshape(-1, 4), 2).reshape(scores.shape)
        # Magnitudes compare within the layer, what depends on the input within one output.
        rows = scores.reshape(1, -1) if self.importance == "magnitude" else scores.reshape(-1, scores.shape[-1])
        kept = max(1, math.floor((1 - self.ratio) * rows.shape[1] + 0.5))
        return _largest(rows, kept).reshape(scores.shape)


def _largest(rows: Tensor, num: int) -> Tensor:
    """True at the `num` largest of each row; of equals the first."""
    order = rows.argsort(dim=1, descending=True, stable=True)[:, :num]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)  # noqa: FBT003 - a value


def _global_masks(scores: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """True at the (1 - ratio) numbers of all layers that have the largest LAMP scores; each layer keeps its largest."""
    shares = []
    for own in scores.values():
        order = own.flatten().square().sort(descending=True, stable=True)
        share = order.values / order.values.cumsum(0).clamp_min(torch.finfo(own.dtype).tiny)
        shares.append(torch.empty_like(share).scatter_(0, order.indices, share))
    together = torch.cat(shares)
    kept = max(len(scores), math.floor((1 - ratio) * len(together) + 0.5))
    masks = _largest(together[None], kept)[0].split([len(share) for share in shares])
    return {node: mask.reshape(own.shape) for (node, own), mask in zip(scores.items(), masks, strict=True)}


def _layer(graph: GraphModule, node: Node | None) -> Layer | None:
    return None if node is None else layer_of(graph, node)


def _sparse(graph: GraphModule, layer: Layer, mask: Tensor, scores: Tensor) -> Sparse:
    weight = get_tensor(graph, layer.weight).detach()
    sparse = layer.weight_of(layer.matrix(weight).where(mask, 0.0), weight.shape)
    total = float(scores.sum())
    lost = 1 - float(scores[mask].sum()) / total if total else 0.0
    sizes = [len(zlib.compress(w.contiguous().numpy().tobytes(), 6)) for w in (weight, sparse)]
    return Sparse(layer.weight, layer.node, weight.numel(), int(mask.sum()), _digest(mask), lost, sizes[0], sizes[1])


def _digest(mask: Tensor) -> str:
    return hashlib.sha256(mask.contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def _zero_(graph: GraphModule, layer: Layer, mask: Tensor, gram: Tensor | None) -> None:
    weight = get_tensor(graph, layer.weight)
    matrix = layer.matrix(weight.detach().double())
    zeroed = matrix.where(mask, 0.0)  # a product would leave -0.0 in places, which no coder takes for a zero
    if gram is not None:
        delta = torch.stack([_make_up(gram[g], matrix[g], mask[g], layer.bias is not None) for g in range(len(matrix))])
        zeroed += delta[..., : matrix.shape[2]]
        if layer.bias:
            bias = get_tensor(graph, layer.bias)
            bias += delta[..., -1].reshape(bias.shape)
    weight.copy_(layer.weight_of(zeroed, weight.shape))


def _make_up(gram: Tensor, matrix: Tensor, mask: Tensor, has_bias: bool) -> Tensor:  # noqa: FBT001 - private
    """What the weights that stay add, for each output [outputs, features (+ 1)], to make up for those that go."""
    damped = gram + RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    result = torch.zeros(len(matrix), len(gram), dtype=gram.dtype)
    lost = (matrix * ~mask) @ gram[: matrix.shape[1]]
    for output in range(len(matrix)):
        stays = torch.cat([mask[output], torch.ones(int(has_bias), dtype=torch.bool)]).nonzero().flatten()
        if len(stays):
            factor = torch.linalg.cholesky(damped[stays][:, stays])
            result[output, stays] = torch.cholesky_solve(lost[output, stays][:, None], factor).flatten()
    return result
