"""Folders with a hash of every byte. An artifact is what ships: the runtime's file, graph, weights, plans, evidence.

    manifest.json          name, runtime, precision, inputs, labels, the SHA-256 of every other file and of itself
    sample.npy             a few inputs to try it with
    evidence.json          recipe, measurements, verdict, outcomes per sample, machine, versions
    plans.json             what each method decided
    graph.json, weights.safetensors
    runtime/               what the runtime loads

An evidence bundle is what a verdict can be repeated from: manifest.json, evidence.json, plans.json, run.json (what was
asked, and the hash of the data), log.txt, and contenders/ROLE/, the files of the original, of the best free baseline
and of the chosen one. It lies beside the artifact, which ships without it.

A saved model is a graph alone, to go on with: manifest.json, plans.json, graph.json, weights.safetensors (or .coded).
None holds a pickle, and nothing in them names code to be run but the operations of the graph (docs/decisions/0002).
The hashes find damage and careless change; they are no signature against somebody who rewrites them all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cattrs
import numpy as np

from trimtab.core import Artifact, Precision, Target, Verdict
from trimtab.errors import ArtifactError, PlanError, RunError, RuntimeMissing
from trimtab.files import folder_atomic, read_json, sha256, write_array, write_json

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Method, Plan
    from trimtab.runtimes.evaluate import Exported

FORMAT = 1
ARTIFACT, MODEL, BUNDLE = "artifact", "model", "bundle"
WORDS = {
    ARTIFACT: ("artifact", "was measured"),
    MODEL: ("saved model", "was saved"),
    BUNDLE: ("evidence bundle", "was measured"),
}
MANIFEST_FILE = "manifest.json"
EVIDENCE_FILE = "evidence.json"
PLANS_FILE = "plans.json"
RUNTIME_FOLDER = "runtime"
CONTENDERS_FOLDER = "contenders"


@dataclass(frozen=True)
class Parts:
    """What an artifact is made of: two folders whose files are copied, and JSON values."""

    name: str
    runtime: str
    precision: Precision
    target: Target
    runtime_folder: Path
    graph_folder: Path
    plans: list[dict[str, Any]]
    samples: tuple[np.ndarray, ...]
    evidence: Mapping[str, Any]


def sample_name(place: int) -> str:
    """The file that holds a few samples of the model's input `place`."""
    return f"sample{place or ''}.npy"


def save_artifact(folder: Path, parts: Parts) -> None:
    """Write the artifact's files into `folder`, which exists and is empty."""
    from trimtab.graph.save import GRAPH_FILE, WEIGHTS_FILE

    shutil.copytree(parts.runtime_folder, folder / RUNTIME_FOLDER)
    for file in (GRAPH_FILE, WEIGHTS_FILE):
        shutil.copy2(parts.graph_folder / file, folder / file)
    for place, x in enumerate(parts.samples):
        write_array(folder / sample_name(place), x)
    write_json(folder / PLANS_FILE, parts.plans)
    write_json(folder / EVIDENCE_FILE, parts.evidence)
    described = {
        "trimtab": parts.evidence["trimtab"],
        "name": parts.name,
        "runtime": parts.runtime,
        "precision": parts.precision,
        "threads": parts.target.threads,
        "inputs": read_json(folder / GRAPH_FILE)["inputs"],
        "labels": list(parts.evidence["task"]["labels"]),
    }
    _seal(folder, ARTIFACT, described)


def save_bundle(
    folder: Path,
    *,
    evidence: Mapping[str, Any],
    plans: list[dict[str, Any]],
    contenders: Mapping[str, Exported],
    papers: Iterable[Path],
) -> None:
    """Write an evidence bundle's files into `folder`, which exists and is empty.

    Args:
        folder: of the bundle.
        evidence: as in the artifact.
        plans: as in the artifact.
        contenders: role -> the file that was raced and scored for the verdict.
        papers: what the run kept of itself: what was asked, and its log.
    """
    for role, one in contenders.items():
        shutil.copytree(one.folder, folder / CONTENDERS_FOLDER / role)
    for paper in papers:
        shutil.copy2(paper, folder / paper.name)
    write_json(folder / PLANS_FILE, plans)
    write_json(folder / EVIDENCE_FILE, evidence)
    served = {role: {"runtime": one.runtime, "precision": one.precision} for role, one in contenders.items()}
    _seal(folder, BUNDLE, {"trimtab": evidence["trimtab"], "task": evidence["task"]["name"], "contenders": served})


def save(
    graph: GraphModule, folder: str | Path, *, plans: Iterable[tuple[Method, Plan]] = (), coded: bool = False
) -> Path:
    """Keep a graph, e.g. a pruned one, in a folder of its own: as JSON and safetensors, bit for bit, no pickle.

    Args:
        graph: a captured graph, whatever was done to it since; left as it was.
        folder: made here, whole or not at all; it may exist if it is empty.
        plans: (method, plan) of each step that led to the graph, in order; kept to be read.
        coded: weights entropy-coded, in `weights.coded`: shorter after `Palette` or `Sparsify`, still bit for bit.

    Returns:
        The folder. `load` opens it.

    Raises:
        PlanError: what was given is no captured graph, or no pairs.
        RunError: the folder holds something, or cannot be written.
        ArtifactError: an operation of the graph cannot be saved.
    """
    from torch.fx import GraphModule

    from trimtab.graph.save import GRAPH_FILE, save_graph

    path = Path(folder).resolve()
    if not isinstance(graph, GraphModule):
        raise PlanError(
            f"save keeps a captured graph; got a {type(graph).__name__}. Capture it first: "
            "tt.save(tt.capture(model, example_inputs), folder)."
        )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path} exists and is not an empty folder. Nothing was changed: give save a new folder.")
    steps = [_step(pair) for pair in plans]
    with folder_atomic(path) as scratch:
        save_graph(graph, scratch, coded=coded)
        write_json(scratch / PLANS_FILE, steps)
        _seal(scratch, MODEL, {"trimtab": version("trimtab"), "inputs": read_json(scratch / GRAPH_FILE)["inputs"]})
    return path


def _step(pair: Any) -> dict[str, Any]:
    from trimtab.compress.build import settings_of

    match pair:
        case (object(name=str()) as method, object(skipped=_) as plan):
            return {"method": method.name, "settings": settings_of(method), "plan": cattrs.unstructure(plan)}
    raise PlanError(
        "save takes plans as (method, plan) pairs, e.g. plans=[(prune, prune.plan(graph))]; "
        f"got {type(pair).__name__}: {str(pair)[:80]}"
    )


def _seal(folder: Path, kind: str, described: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that is otherwise complete."""
    files = {str(file.relative_to(folder)): sha256(file) for file in _files(folder)}
    manifest = {"format": FORMAT, "kind": kind, **described, "files": files}
    write_json(folder / MANIFEST_FILE, manifest | {"sha256": _own_hash(manifest)})


@dataclass(frozen=True)
class Loaded:
    """An artifact whose hashes were right: run it as it ships, or take its graph."""

    artifact: Artifact
    manifest: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.artifact.path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, if the task gave any."""
        return tuple(self.manifest["labels"])

    @cached_property
    def graph(self) -> GraphModule:
        """The model as a module, bit for bit as it was measured."""
        return _graph(self.path)

    @cached_property
    def plans(self) -> tuple[Mapping[str, Any], ...]:
        """What each step decided, as data: `method`, `settings`, `plan`."""
        return _plans(self.path)

    @cached_property
    def _serve(self) -> Callable[[tuple[np.ndarray, ...]], np.ndarray]:
        from trimtab.runtimes import find_runtime
        from trimtab.runtimes.base import read_signature

        runtime = find_runtime(self.artifact.runtime)
        if missing := runtime.missing(serving=True):
            raise RuntimeMissing(missing)
        folder = self.path / RUNTIME_FOLDER
        signature = read_signature(folder)
        call = runtime.load(folder, precision=self.artifact.precision, threads=self.manifest["threads"], exact=False)

        def serve(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
            signature.check(inputs)
            return call(inputs)

        return serve

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """The model's answers, [B, ...], from the file that ships, in its runtime.

        Args:
            inputs: one array [B, ...] for each of the model's inputs.

        Raises:
            RuntimeFailed: the inputs do not fit; nothing was run.
        """
        return self._serve(inputs)


@dataclass(frozen=True)
class Saved:
    """A saved model whose hashes were right. It was exported to no runtime and judged by nobody: there is its graph."""

    path: Path
    manifest: Mapping[str, Any]

    @cached_property
    def graph(self) -> GraphModule:
        """The graph as a trainable module in eval mode, bit for bit as it was saved."""
        return _graph(self.path)

    @cached_property
    def plans(self) -> tuple[Mapping[str, Any], ...]:
        """What each step decided, as data: `method`, `settings`, `plan`."""
        return _plans(self.path)


@dataclass(frozen=True)
class Bundle:
    """An evidence bundle whose hashes were right: what a verdict rests on, and the files to repeat it with."""

    path: Path
    manifest: Mapping[str, Any]

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """What was decided and measured."""
        return dict(read_json(self.path / EVIDENCE_FILE))

    @cached_property
    def contenders(self) -> dict[str, Exported]:
        """Role -> the file that was raced and scored."""
        from trimtab.runtimes.evaluate import Exported

        return {
            role: Exported(one["runtime"], one["precision"], self.path / CONTENDERS_FOLDER / role)
            for role, one in self.manifest["contenders"].items()
        }


def load_bundle(path: str | Path) -> Bundle:
    """Open an evidence bundle, or the one of a run that has ended, after checking every byte of it.

    Raises:
        ArtifactError: there is none, it is of another format, or not what was written.
    """
    path = Path(path)
    path = path / BUNDLE if (path / BUNDLE).is_dir() else path
    manifest = _checked(path)
    if manifest["kind"] != BUNDLE:
        noun = WORDS[manifest["kind"]][0]
        raise ArtifactError(
            f"{path} is {'an' if noun[0] in 'aeiou' else 'a'} {noun} and holds nothing to repeat a verdict with. Give "
            f"the run's folder, or its folder {BUNDLE}/, which `trimtab optimize` writes beside the artifact."
        )
    return Bundle(path, manifest)


def evidence_of(path: str | Path) -> dict[str, Any]:
    """The evidence of a run that has ended, of a bundle or of an artifact; every byte is checked first.

    Raises:
        ArtifactError: it has none, or is not what was written.
    """
    path = Path(path)
    inner = next((path / name for name in (BUNDLE, ARTIFACT) if (path / name).is_dir()), path)
    if _checked(inner)["kind"] == MODEL:
        raise ArtifactError(f"{inner} is a saved model, which nobody judged: it has no evidence. Give a run's folder.")
    return dict(read_json(inner / EVIDENCE_FILE))


def load(path: str | Path) -> Loaded | Saved:
    """Open an artifact or a saved model, after checking every byte of it against its hashes.

    Raises:
        ArtifactError: it is missing, of another format, or not what was written.
    """
    path = Path(path)
    manifest = _checked(path)
    if manifest["kind"] == BUNDLE:
        raise ArtifactError(
            f"{path} is an evidence bundle: `trimtab verify` repeats what it claims. Load the artifact beside it."
        )
    if manifest["kind"] == MODEL:
        return Saved(path, manifest)
    evidence = read_json(path / EVIDENCE_FILE)
    artifact = Artifact(
        path=str(path),
        name=manifest["name"],
        runtime=manifest["runtime"],
        precision=manifest["precision"],
        verdict=cattrs.structure(evidence["verdict"], Verdict),
        evidence=evidence,
        hashes=manifest["files"],
    )
    return Loaded(artifact, manifest)


def load_artifact(path: str | Path) -> Loaded:
    """As `load`, for what needs a runtime's file or a verdict.

    Raises:
        ArtifactError: it is no artifact, or as for `load`.
    """
    loaded = load(path)
    if isinstance(loaded, Saved):
        raise ArtifactError(
            f"{path} is a saved model, not an artifact: it has no runtime's file and no verdict. "
            "Use its graph in Python, tt.load(...).graph, or make an artifact of your model with `trimtab optimize`."
        )
    return loaded


def _checked(path: Path) -> dict[str, Any]:
    """The manifest of a folder in which every file is what it was."""
    manifest = _manifest(path)
    noun, made = WORDS[manifest["kind"]]
    present = {str(file.relative_to(path)) for file in _files(path)} - {MANIFEST_FILE}
    for name in sorted(present ^ manifest["files"].keys()):
        state = "is missing" if name in manifest["files"] else "was added"
        raise ArtifactError(f"{path / name} {state}: the {noun} is not what {made}. Copy it again from its source.")
    for name, digest in manifest["files"].items():
        if sha256(path / name) != digest:
            raise ArtifactError(
                f"{path / name} has changed since it {made} (its SHA-256 is not the manifest's). "
                f"Copy the {noun} again from its source, or make it anew."
            )
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = dict(read_json(path / MANIFEST_FILE))
    except OSError as error:
        raise ArtifactError(
            f"{path} is no artifact and no saved model: it has no readable {MANIFEST_FILE}. "
            "Give the folder that `optimize` printed, or the one that `save` wrote."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path / MANIFEST_FILE} is damaged: {error}. Copy it again from its source.") from error
    if manifest.get("format") != FORMAT or manifest.get("kind", ARTIFACT) not in WORDS:
        what = f"format {manifest.get('format')!r} and kind {manifest.get('kind', ARTIFACT)!r}"
        raise ArtifactError(
            f"{path} has {what}; this trimtab reads format {FORMAT} and the kinds {', '.join(WORDS)}. Make it anew."
        )
    if manifest.pop("sha256", None) != _own_hash(manifest):
        raise ArtifactError(
            f"{path / MANIFEST_FILE} has changed since it was written. Copy the whole folder again from its source."
        )
    # Artifacts from before models could be saved do not say what they are.
    return {"kind": ARTIFACT, **manifest}


def _graph(folder: Path) -> GraphModule:
    from trimtab.graph.save import load_graph

    return load_graph(folder)


def _plans(folder: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(read_json(folder / PLANS_FILE))


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
