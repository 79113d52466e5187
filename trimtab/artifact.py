"""The folder that ships: the runtime's file, the graph and its weights, plans, evidence, and a hash of every byte.

    manifest.json          name, runtime, precision, inputs, labels, the SHA-256 of every other file and of itself
    sample.npy             a few inputs to try it with
    evidence.json          recipe, measurements, verdict, outcomes per sample, machine, versions
    plans.json             what each method decided
    graph.json, weights.safetensors
    runtime/               what the runtime loads

The hashes find damage and careless change; they are no signature against somebody who rewrites them all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cattrs
import numpy as np

from trimtab.core import Artifact, Precision, Target, Verdict
from trimtab.errors import ArtifactError, RuntimeMissing
from trimtab.files import read_json, sha256, write_array, write_json

if TYPE_CHECKING:
    from torch.fx import GraphModule

FORMAT = 1
MANIFEST_FILE = "manifest.json"
EVIDENCE_FILE = "evidence.json"
PLANS_FILE = "plans.json"
RUNTIME_FOLDER = "runtime"


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

    described = read_json(parts.graph_folder / GRAPH_FILE)
    shutil.copytree(parts.runtime_folder, folder / RUNTIME_FOLDER)
    for file in (GRAPH_FILE, WEIGHTS_FILE):
        shutil.copy2(parts.graph_folder / file, folder / file)
    for place, x in enumerate(parts.samples):
        write_array(folder / sample_name(place), x)
    write_json(folder / PLANS_FILE, parts.plans)
    write_json(folder / EVIDENCE_FILE, parts.evidence)
    manifest = {
        "format": FORMAT,
        "trimtab": parts.evidence["trimtab"],
        "name": parts.name,
        "runtime": parts.runtime,
        "precision": parts.precision,
        "threads": parts.target.threads,
        "inputs": described["inputs"],
        "labels": list(parts.evidence["task"]["labels"]),
        "files": {str(file.relative_to(folder)): sha256(file) for file in _files(folder)},
    }
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
        from trimtab.graph.save import load_graph

        return load_graph(self.path)

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


def load(path: str | Path) -> Loaded:
    """Open an artifact, after checking every byte of it against its hashes.

    Raises:
        ArtifactError: it is missing, of another format, or not what was written.
    """
    path = Path(path)
    manifest = _manifest(path)
    present = {str(file.relative_to(path)) for file in _files(path)} - {MANIFEST_FILE}
    for name in sorted(present ^ manifest["files"].keys()):
        state = "is missing" if name in manifest["files"] else "was added"
        raise ArtifactError(
            f"{path / name} {state}: the artifact is not what was measured. Copy it again from its source."
        )
    for name, digest in manifest["files"].items():
        if sha256(path / name) != digest:
            raise ArtifactError(
                f"{path / name} has changed since it was measured (its SHA-256 is not the manifest's). "
                "Copy the artifact again from its source, or make it anew."
            )
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


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = dict(read_json(path / MANIFEST_FILE))
    except OSError as error:
        raise ArtifactError(
            f"{path} is no artifact: it has no readable {MANIFEST_FILE}. Give the folder that `optimize` printed."
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{path / MANIFEST_FILE} is damaged: {error}. Copy the artifact again from its source."
        ) from error
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path} has format {manifest.get('format')!r}; this trimtab reads {FORMAT}. Make it anew.")
    if manifest.pop("sha256", None) != _own_hash(manifest):
        raise ArtifactError(
            f"{path / MANIFEST_FILE} has changed since it was written. Copy the artifact again from its source."
        )
    return manifest


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
