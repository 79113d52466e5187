"""Put what a finished run printed and measured into both READMEs, and a picture of its report into docs/images.

    scripts/make_readme runs/fashion

Nothing in the marked part is typed: it is the evidence of that run, as the command line shows it.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

import trimtab as tt
from trimtab.report import words
from trimtab.report.terminal import summary

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
PICTURE = "docs/images/report.png"
BEGIN, END = "<!-- demo -->", "<!-- /demo -->"
COLUMNS = 100
VIEW = {"width": 1280, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
# Where the last card ends that ends above that line: a picture that cuts through a chart looks broken.
BOTTOM = """
const ends = [...document.querySelectorAll('section')].map((part) => part.getBoundingClientRect().bottom);
return Math.ceil(Math.max(...ends.filter((end) => end <= arguments[0]))) + 18;
"""
HIGHEST = 1500
MOST_BYTES = 400_000
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")


def demo(evidence: Mapping[str, Any]) -> str:
    """The marked part: what the command printed, then where and how often it was measured."""
    if any(Path(path).is_absolute() for path in evidence["paths"].values()):
        raise SystemExit(
            f"The run's folder was given as an absolute path ({evidence['paths']['artifact']}), which means nothing to "
            "a reader. Run the demo again with a relative one, e.g. --run runs/fashion."
        )
    printed = f"$ {evidence['reproduce']['command']}\n{said(evidence)}"
    return f"```text\n{printed}\n```\n\n```text\n{measured(evidence)}\n```"


def said(evidence: Mapping[str, Any]) -> str:
    """What the terminal shows at the end of the run."""
    console = Console(file=io.StringIO(), width=COLUMNS, color_system=None, force_terminal=False)
    with console.capture() as captured:
        summary(evidence, console=console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def measured(evidence: Mapping[str, Any]) -> str:
    """Machine, versions, and n and spread of every figure."""
    machine, target, verdict = evidence["machine"], evidence["target"], evidence["verdict"]
    drop, gain, minimise = verdict["drop"], verdict["gain"], evidence["goal"]["minimise"]
    features = ", ".join(machine["features"])
    rows = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {words.size(machine['memory_bytes'])} ({features})"),
        ("versions", ", ".join(f"{k} {v}" for k, v in {"Python": machine["python"], **evidence["versions"]}.items())),
        ("setting", f"batch size {target['batch_size']}, threads {target['threads']}, one process for each file"),
    ]
    for row in evidence["rows"]:
        rows.append(
            (row["name"], f"latency {spread(row['latency'])}, peak memory {words.size(row['memory']['value'])}")
        )
    rows += [
        (
            f"gain in {minimise}",
            f"{gain['value']:.2f}× [{gain['low']:.2f}, {gain['high']:.2f}], n = {gain['n']} paired blocks",
        ),
        (
            evidence["task"]["metric"],
            f"{drop['diff']:+.4f} [{drop['low']:+.4f}, {drop['high']:+.4f}], n = {drop['n']:,} paired samples, "
            f"{100 * drop['confidence']:g} % one-sided; {drop['method']}",
        ),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(fold(name.ljust(width), text) for name, text in rows)


def spread(latency: Mapping[str, Any]) -> str:
    """A median with its 95 % interval."""
    low, high = (words.significant(latency[end]) for end in ("low", "high"))
    return f"{words.milliseconds(latency['value'])} [{low}, {high}], n = {latency['n']:,}"


def fold(head: str, text: str) -> str:
    """`head` and `text`, broken between words at COLUMNS, further lines indented under the text."""
    lines, line = [], head
    for word in text.split(" "):
        if len(line) + len(word) + 1 > COLUMNS and line.strip() != head.strip():
            lines.append(line.rstrip())
            line = " " * len(head)
        line += word + " "
    return "\n".join([*lines, line.rstrip()])


def inserted(readme: str, part: str) -> str:
    """`readme` with `part` between the markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"Expected {BEGIN} and {END} once each in the README.")
    return re.sub(f"(?s){BEGIN}.*{END}", lambda _: f"{BEGIN}\n{part}\n{END}", readme)


def photograph(page: Path) -> bytes:
    """The top of `page` as a PNG, light, in as many colours as fit the size limit."""
    browser, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver_path:
        raise SystemExit("The picture needs a browser: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = browser
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(driver_path))
        try:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", VIEW)
            features = [{"name": "prefers-color-scheme", "value": "light"}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.get(page.resolve().as_uri())
            clip = {"x": 0, "y": 0, "width": VIEW["width"], "scale": 1}
            clip["height"] = driver.execute_script(BOTTOM, HIGHEST)
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        finally:
            driver.quit()
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    for colours in (None, 256, 64):
        file = io.BytesIO()
        (picture if colours is None else picture.quantize(colours)).save(file, "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            return file.getvalue()
    raise SystemExit(f"The picture has {file.tell():,} bytes even in 64 colours; {MOST_BYTES:,} are allowed.")


def main(arguments: list[str]) -> None:
    """Rewrite both READMEs and the picture."""
    if len(arguments) != 1:
        raise SystemExit("usage: scripts/make_readme RUN_FOLDER")
    run = Path(arguments[0])
    part = demo(tt.load(run / "artifact").artifact.evidence)
    texts = {ROOT / name: inserted((ROOT / name).read_text(encoding="utf-8"), part) for name in READMES}
    picture = photograph(run / "report.html")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    (ROOT / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / PICTURE).write_bytes(picture)
    print(f"wrote {', '.join(READMES)} and {PICTURE} ({len(picture):,} bytes)")


if __name__ == "__main__":
    main(sys.argv[1:])
