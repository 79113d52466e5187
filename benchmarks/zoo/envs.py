"""The environments of the benchmark: one for trimtab's half, one for the rival's, from pinned versions."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"
COMMON = ("numpy==2.4.6", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0", "pillow==13.0.0")
TRIMTAB = ("scipy", "cattrs", "safetensors", "plotly", "rich", "typer", "sympy")
MODELS = ("transformers==5.23.0",)
# Their metadata asks for torchvision, or for other versions of torch.
ALONE = {"trimtab": ("timm==1.0.31",), "torch_pruning": ("timm==1.0.31", "torch-pruning==1.6.1")}


def python_of(folder: Path, half: str) -> Path:
    """The interpreter of a half's environment under `folder`, which is made if it is missing or of other versions."""
    place = folder / half
    more = TRIMTAB if half == "trimtab" else ()
    wanted = "\n".join((TORCH, *COMMON, *more, *MODELS, *ALONE[half]))
    stamp, python = place / "pins.txt", place / "bin" / "python"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Making {place} (some minutes) ...", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    # torch first and alone: whatever comes after finds it there, and brings no other.
    subprocess.run([*install, TORCH], check=True)
    subprocess.run([*install, *pins, *COMMON, *more, *MODELS], check=True)
    subprocess.run([*install, "--no-deps", *ALONE[half]], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python
