"""Palettes: the numbers of a weight are replaced by a few values that they share, chosen by k-means.

Han et al., "Deep Compression" (2016): k-means for each layer, started evenly between the extremes, with centroids that
learn by the sum of their numbers' gradients. Differs: zeros stay zeros, as one of the values, so that `Sparsify` before
it is not undone; so many rows can have a palette of their own; by `weighted` a weight's error counts as much as the
mean square of its input; by `compensate` each column's error is made up for by the columns after it, as in Frantar et
al., "GPTQ" (2023), with the nearest of the palette for its nearest integer. Centroids are numbers that a float16 holds.

What it is good for: fewer bytes. The graph keeps plain weights, so every runtime takes it, at the speed that it had;
`tt.save(..., coded=True)` writes the palettes and entropy-coded places, and the plan says how many bytes each weight
takes in that file (docs/decisions/0009). Training on lets the numbers go apart again; `epochs` trains the centroids.
Cost: a sort of each weight; compensation a Cholesky factorization for each layer; training as it is, and a gather.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import MAX_FEATURES, Layer, batches, calibration, grams, layer_of, num_features
from trimtab.compress.kmeans import kmeans, nearest
from trimtab.compress.prune import as_graph
from trimtab.compress.tables import table
from trimtab.compress.zeros import is_sparse
from trimtab.core import Fit, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.coded import code
from trimtab.graph.shapes import refresh_shapes_
from trimtab.train.loop import fit

aten = torch.ops.aten
LARGEST_HALF = 65504.0
DAMPING = 1e-2


@dataclass(frozen=True)
class Shared:
    """A weight whose numbers become a few values. `centroids`: those of each `rows` rows, rising.

    error: ||w - w'||^2 / ||w||^2. bytes_before: of the numbers; bytes_after: in the coded file, before any training.
    """

    weight: str
    shape: tuple[int, ...]
    bits: int
    rows: int
    centroids: tuple[tuple[float, ...], ...]
    error: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class PalettePlan:
    """Which weights get palettes; `samples` of the train split are used, and `settings` if centroids are trained."""

    weights: tuple[Shared, ...]
    skipped: tuple[Skip, ...]
    samples: int = 0
    settings: Fit | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row per weight."""
        return [
            {
                "weight": one.weight,
                "numbers": math.prod(one.shape),
                "bits": one.bits,
                "palettes": len(one.centroids),
                "error": round(one.error, 6),
                "bytes before": one.bytes_before,
                "coded bytes after": one.bytes_after,
            }
            for one in self.weights
        ]

    def __str__(self) -> str:
        """The rows as a table, and what was left alone."""
        before, after = (sum(getattr(one, name) for one in self.weights) for name in ("bytes_before", "bytes_after"))
        lines = [table(self.rows()), f"in the coded file: {before:,} to {after:,} bytes ({after / before:.1%} left)"]
        return "\n".join([*lines, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class Palette:
    """Let the numbers of every weight matrix share 2^bits values.

    Args:
        bits: 1 ... 8.
        rows: of a weight, along its first dim, that have a palette in common. Default: all of them.
        weighted: an error counts by the mean square of what it multiplies, seen on data.
        compensate: columns make up for the errors of those before them; needs data.
        samples: of the train split, for both.
        bits_of: (weight, bits) where they are others, e.g. ("head.weight", 5); 0 leaves a weight alone.
        epochs: over the train split, to train centroids (and biases and norms) with the task's loss.
        lr: the highest learning rate then.

    >>> Palette().name, Palette(3, rows=1, weighted=True).name
    ('palette 4 bits', 'palette 3 bits a row weighted')
    """

    bits: int = 4
    rows: int | None = None
    weighted: bool = False
    compensate: bool = False
    samples: int = 256
    bits_of: tuple[tuple[str, int], ...] = ()
    epochs: int = 0
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for bits in (self.bits, *(bits for _, bits in self.bits_of if bits)):
            if not 1 <= bits <= 8:
                raise PlanError(
                    f"Palette(bits={bits}) makes no palette: give 1 ... 8 bits, which are 2 ... 256 values."
                )
        if self.rows is not None and self.rows < 1:
            raise PlanError(f"Palette(rows={self.rows}): give how many rows share a palette, 1 or more, or None.")
        if self.epochs < 0 or self.lr <= 0:
            raise PlanError(f"Palette needs epochs >= 0 and lr > 0; got epochs={self.epochs}, lr={self.lr:g}.")

    @property
    def name(self) -> str:
        each = {None: "", 1: " a row"}.get(self.rows, f" {self.rows} rows")
        words = f"palette {self.bits} bits{each}" + (" weighted" if self.weighted else "")
        words += " compensated" if self.compensate else ""
        return words + (" trained" if self.epochs else "")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> PalettePlan:
        """Choose the values.

        Args:
            graph: captured; or a module, which is captured with inputs of the task's select split.
            task: for data; not needed for a graph without `weighted`, `compensate` and `epochs`.

        Raises:
            PlanError: no weight is larger than its palette, or one that is named in `bits_of`; weights are not finite.
        """
        graph = as_graph(graph, task, method="Palette")
        bits, skipped = self._bits(graph)
        if not bits:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skipped)
            raise PlanError(
                f"No weight can share values: none with two dims or more is larger than its palette.{reasons}"
            )
        settings = self._settings(task)
        seen, num = self._seen(graph, list(bits), task, self.samples)
        weights = []
        for name, its_bits in bits.items():
            before = get_tensor(graph, name).detach()
            centroids = self._centroids(before, its_bits, seen.get(name))
            after = self._shared(before, centroids, seen.get(name))[0]
            error = float((before - after).double().pow(2).sum() / before.double().pow(2).sum().clamp_min(1e-300))
            sizes = before.nbytes, len(code(after).data)
            rows = len(before) // len(centroids)
            values = tuple(map(tuple, centroids.tolist()))
            weights.append(Shared(name, tuple(before.shape), its_bits, rows, values, error, *sizes))
        return PalettePlan(tuple(weights), tuple(skipped), num, settings)

    def apply(self, graph: GraphModule, plan: PalettePlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` whose weights have the planned values.

        Raises:
            PlanError: the plan is for another graph, or there is no task for the data it needs.
        """
        tools = tools or Tools()
        held = dict(graph.named_parameters(remove_duplicate=False))
        for one in plan.weights:
            if one.weight not in held or tuple(held[one.weight].shape) != tuple(one.shape):
                found = tuple(held[one.weight].shape) if one.weight in held else "none"
                raise PlanError(
                    f"This plan was made for another graph: {one.weight} should be {tuple(one.shape)} and is {found}. "
                    "Plan on the graph that gets the palettes."
                )
        if plan.settings and tools.task is None:
            raise PlanError("Palette needs the task to train centroids; got Tools(task=None). Give Tools(task=...).")
        result = copy.deepcopy(graph)
        seen, _ = self._seen(graph, [one.weight for one in plan.weights], tools.task, plan.samples)
        places = {}
        for one in plan.weights:
            weight = get_tensor(result, one.weight)
            centroids = torch.tensor(one.centroids, dtype=torch.float64)
            with torch.no_grad():
                shared, places[one.weight] = self._shared(weight.detach(), centroids, seen.get(one.weight))
                weight.copy_(shared)
        return _trained(result, plan, places, tools) if plan.settings else result

    def _bits(self, graph: GraphModule) -> tuple[dict[str, int], list[Skip]]:
        """Weight -> its bits, and what gets no palette."""
        asked, found, skipped = dict(self.bits_of), {}, []
        candidates = _matrices(graph)
        if unknown := [name for name in asked if name not in candidates]:
            raise PlanError(
                f"Palette(bits_of=...) names {unknown[0]!r}, and the graph has no such weight with two dims or more; "
                f"it has: {', '.join(candidates) or 'none'}."
            )
        for name, weight in candidates.items():
            if not weight.isfinite().all():
                raise PlanError(f"The weight {name!r} holds NaN or infinity. Load a sound checkpoint.")
            bits = asked.get(name, self.bits)
            groups = len(weight) // self._rows(weight)
            takes = groups * 2 ** (bits + 1) + math.ceil(weight.numel() * bits / 8)
            if name in asked and bits == 0:
                skipped.append(Skip(name, "bits_of says 0 bits"))
            elif 2**bits >= weight.numel() // groups or takes >= weight.nbytes:
                told = f"{groups} of {2**bits} values for {weight.numel():,} numbers"
                why = f"a palette would be larger than the weight ({told})"
                if name in asked:
                    raise PlanError(f"Palette(bits_of=...): {name!r}: {why}. Give fewer bits, more rows, or 0 bits.")
                skipped.append(Skip(name, why))
            else:
                found[name] = bits
        return found, skipped

    def _rows(self, weight: Tensor) -> int:
        """How many rows share a palette: as asked if that divides them, else the next number that does."""
        rows = self.rows or len(weight)
        return next(num for num in range(min(rows, len(weight)), len(weight) + 1) if len(weight) % num == 0)

    def _settings(self, task: Task | None) -> Fit | None:
        if not self.epochs:
            return None
        if task is None:
            raise PlanError("Palette needs the task to train centroids; got no task. Give plan(graph, task).")
        return dataclasses.replace(task.fit or Fit(), epochs=self.epochs, lr=self.lr)

    def _seen(
        self, graph: GraphModule, names: list[str], task: Task | None, samples: int
    ) -> tuple[dict[str, _Seen], int]:
        """What each layer multiplies, by weight, and on how many samples that was seen."""
        if not (self.weighted or self.compensate):
            return {}, 0
        data = calibration(task, samples, purpose=f"Palette ({self.name})")
        found = [layer_of(graph, node) for node in graph.graph.nodes]
        layers = [layer for layer in found if layer is not None and layer.weight in names]
        layers = [layer for layer in layers if num_features(layer, get_tensor(graph, layer.weight)) <= MAX_FEATURES]
        known = grams(graph, layers, batches(data))
        return {layer.weight: _Seen(layer, known[layer.node]) for layer in layers}, len(data)

    def _centroids(self, weight: Tensor, bits: int, seen: _Seen | None) -> Tensor:
        """The values of each palette, rising; float64 [groups, 2^bits]."""
        groups = len(weight) // self._rows(weight)
        values = weight.double().reshape(groups, -1)
        mass = torch.ones_like(values)
        if self.weighted and seen is not None:
            mass = seen.mean_squares(weight.shape).reshape(groups, -1)
        keeps_zeros = is_sparse(weight)
        if keeps_zeros:  # they stand aside, as numbers without weight where another is
            there = values.abs().argmax(1, keepdim=True)
            mass, values = mass * (values != 0), torch.where(values == 0, values.gather(1, there), values)
        centroids = kmeans(values, 2**bits - int(keeps_zeros), mass)
        if keeps_zeros:
            centroids = torch.cat([centroids, torch.zeros_like(centroids[:, :1])], dim=1)
        return _half(centroids).sort(dim=1).values

    def _shared(self, weight: Tensor, centroids: Tensor, seen: _Seen | None) -> tuple[Tensor, Tensor]:
        """The weight with its planned values, and the place of each number's value in its palette, [groups, N]."""
        values = weight.double().reshape(len(centroids), -1)
        if self.compensate and seen is not None and seen.layer.output_dim == 0:
            each = len(weight) // len(centroids)
            places = _compensated(seen, weight, centroids.repeat_interleave(each, dim=0)).reshape(values.shape)
        else:
            places = nearest(values, centroids)
        return centroids.gather(1, places).reshape(weight.shape).to(weight.dtype), places


@dataclass(frozen=True)
class _Seen:
    """A layer and X'X of its inputs, [num_groups, F, F]."""

    layer: Layer
    gram: Tensor

    def mean_squares(self, shape: torch.Size) -> Tensor:
        """Of what each number of the weight multiplies, up to a factor; in the weight's shape."""
        features = num_features(self.layer, torch.empty(shape, device="meta"))
        squares = self.gram.diagonal(dim1=1, dim2=2)[:, None, :features]
        rows = math.prod(shape) // (len(self.gram) * features)
        return self.layer.weight_of(squares.expand(-1, rows, -1), shape)


def _compensated(seen: _Seen, weight: Tensor, centroids: Tensor) -> Tensor:
    """The places of each row's values, [rows, F], column by column; the error goes on to the columns to come."""
    matrix = seen.layer.matrix(weight.double()).clone()
    num_groups, rows, features = matrix.shape
    gram = seen.gram[:, :features, :features]
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]
    damped = gram + DAMPING * scale * torch.eye(features, dtype=gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse).mT
    places = torch.empty(num_groups * rows, features, dtype=torch.int64)
    for column in range(features):
        now = matrix[:, :, column].reshape(-1, 1)
        places[:, column] = nearest(now, centroids)[:, 0]
        error = (now - centroids.gather(1, places[:, column, None])).reshape(num_groups, rows, 1)
        row = upper[:, column, None]
        matrix[:, :, column + 1 :] -= error / row[:, :, column, None] * row[:, :, column + 1 :]
    return places


def _half(values: Tensor) -> Tensor:
    """Rounded to what a float16 holds."""
    return values.clamp(-LARGEST_HALF, LARGEST_HALF).half().to(values.dtype)


def _matrices(graph: GraphModule) -> dict[str, Tensor]:
    """The real parameters with two dims or more that the graph reads, each under its first name."""
    held, seen = dict(graph.named_parameters(remove_duplicate=False)), set()
    found: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        tensor = held.get(str(node.target)) if node.op == "get_attr" else None
        if tensor is not None and id(tensor) not in seen and tensor.ndim > 1 and tensor.is_floating_point():
            seen.add(id(tensor))
            found[str(node.target)] = tensor
    return found


def _trained(graph: GraphModule, plan: PalettePlan, places: Mapping[str, Tensor], tools: Tools) -> GraphModule:
    """`graph` with centroids, and all that has no palette, trained; each number keeps its place in its palette."""
    assert tools.task is not None
    assert plan.settings is not None
    opened = _open(graph, plan, places)
    checkpoint = Path(tools.folder) / "palette.safetensors" if tools.folder else None
    trained = fit(opened, tools.task, plan.settings, report=tools.report, checkpoint=checkpoint)
    learned = trained.state_dict()
    with torch.no_grad():
        for name, tensor in graph.state_dict().items():
            if name in learned:
                tensor.copy_(learned[name])
        for one in plan.weights:
            centroids = _half(learned[_stem(one.weight)] * learned[f"{_stem(one.weight)}_free"])
            weight = get_tensor(graph, one.weight)
            flat = places[one.weight] + torch.arange(len(one.centroids))[:, None] * len(one.centroids[0])
            weight.copy_(centroids.flatten()[flat].reshape(weight.shape))
    return graph


def _stem(weight: str) -> str:
    return f"{weight.replace('.', '_')}_palette"


def _open(graph: GraphModule, plan: PalettePlan, places: Mapping[str, Tensor]) -> GraphModule:
    """A copy in which each weight is looked up in its palette, so that a centroid's gradient is the sum of theirs."""
    opened = copy.deepcopy(graph)
    shared = {id(get_tensor(opened, one.weight)): one for one in plan.weights}
    for node in [node for node in opened.graph.nodes if node.op == "get_attr"]:
        one = shared.get(id(get_tensor(opened, str(node.target))))
        if one is None:
            continue
        centroids = torch.tensor(one.centroids).reshape(-1, 1)
        offsets = torch.arange(len(one.centroids))[:, None] * len(one.centroids[0])
        stem = _stem(one.weight)
        if not hasattr(opened, stem):
            set_tensor_(opened, stem, nn.Parameter(centroids))
            set_tensor_(opened, f"{stem}_free", (centroids != 0).to(centroids.dtype))  # a zero stays one
            set_tensor_(opened, f"{stem}_places", (places[one.weight] + offsets).flatten())
        with opened.graph.inserting_before(node):
            read = {part: opened.graph.create_node("get_attr", stem + part) for part in ("", "_free", "_places")}
            free = opened.graph.call_function(aten.mul.Tensor, (read[""], read["_free"]))
            values = opened.graph.call_function(aten.embedding.default, (free, read["_places"]))
            whole = opened.graph.call_function(aten.reshape.default, (values, list(one.shape)))
        node.replace_all_uses_with(whole)
        opened.graph.erase_node(node)
    for name, tensor in list(opened.named_parameters(remove_duplicate=False)):
        if id(tensor) in shared:
            path, _, leaf = name.rpartition(".")
            delattr(opened.get_submodule(path), leaf)
    opened.recompile()
    return refresh_shapes_(opened)
