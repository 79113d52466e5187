"""The section with samples: each as a picture, text or sound, and what both models answer."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from html import escape
from typing import Any

from trimtab.report.parts import Evidence, section


def examples(evidence: Evidence) -> str:
    """Samples with the answers before and after, those that changed first."""
    found = evidence["examples"]
    if not found:
        return ""
    ordered = sorted(found, key=lambda example: example["before"] == example["after"])
    changed = sum(example["before"] != example["after"] for example in found)
    wide = "" if all("png" in example and not _is_line(example["png"]) for example in found) else " wide"
    return section(
        "examples",
        "Answers before and after",
        f'<ul class="grid{wide}">{"".join(map(_example, ordered))}</ul>',
        f"Verify samples with the answers of the model as it came and of the chosen one. {changed} of the "
        f"{len(found)} shown changed; those come first, so this is no fair sample of all.",
    )


def _is_line(png: str) -> bool:
    """Whether a picture, a PNG in base64, is over twice as wide as high, as a line of writing."""
    try:
        width, height = struct.unpack(">II", base64.b64decode(png[:32])[16:24])  # where every PNG says them
    except (ValueError, struct.error):
        return False  # no PNG; the page shows its alternative text
    return bool(width > 2 * height)


def _example(example: Mapping[str, Any]) -> str:
    before, after = example["before"], example["after"]
    kind, tag, css = _change(example)
    mark = f'<span class="tag {css}">{tag}</span><br>' if tag else ""
    answer = f"{before} \N{RIGHTWARDS ARROW} {after}" if tag else after
    truth = f'<span class="truth">{escape(_truth(example, changed=bool(tag)))}</span>' if example["label"] else ""
    return (
        f'<li class="{"changed " + kind if tag else "same"}">{_sample(example)}'
        f"<p>{mark}{escape(answer)}{truth}</p></li>"
    )


def _change(example: Mapping[str, Any]) -> tuple[str, str, str]:
    """What became of the answer: a class for its frame, a word, a class for the word; empty if it is the same."""
    label, before, after = example["label"], example["before"], example["after"]
    if before == after:
        return "", "", ""
    if not label:
        worse = example.get("worse", True)
        return ("broken", "worse", "FAIL") if worse else ("mended", "better", "PASS")
    if label not in (before, after):
        return "other", "still wrong", "INCONCLUSIVE"
    return ("mended", "now right", "PASS") if after == label else ("broken", "now wrong", "FAIL")


def _truth(example: Mapping[str, Any], *, changed: bool) -> str:
    label = example["label"]
    return f"it is: {label}" if changed or label not in (example["before"], example["after"]) else "right"


def _sample(example: Mapping[str, Any]) -> str:
    name = escape(example["label"] or "a verify sample")
    if "text" in example:
        return f"<blockquote>{escape(example['text'])}</blockquote>"
    if "wav" in example:
        sound = f"data:audio/wav;base64,{escape(example['wav'])}"
        return f'<audio controls preload="none" aria-label="{name}" src="{sound}"></audio>'
    return f'<img src="data:image/png;base64,{escape(example["png"])}" alt="{name}" width="28" height="28">'
