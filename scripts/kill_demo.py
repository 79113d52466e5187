"""Kill a run with SIGKILL at random moments, restart it each time, and compare its end with an undisturbed run's.

Where a run ends before the next kill, another begins in a fresh folder, until all kills have been made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEMO = f"{shlex.quote(str(Path(sys.executable).with_name('trimtab')))} optimize fashion --quiet --run {{folder}}"
EARLIEST_S = 0.5


@dataclass(frozen=True)
class Kill:
    """One kill: how long after the start, and the last step that the run had ended by then."""

    folder: Path
    after_s: float
    last: str
    steps: int


def ended(folder: Path) -> list[str]:
    """The steps that have ended, in order."""
    log = folder / "log.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split(" ended ", 1)[1] for line in lines if " ended " in line]


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own; what it says goes beside the run's folder."""
    words = shlex.split(command.replace("{folder}", shlex.quote(str(folder))))
    with folder.with_suffix(".out").open("ab") as said:
        return subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)


def finish(command: str, folder: Path) -> float:
    """Let the run end; returns the seconds it took."""
    started = time.monotonic()
    code = start(command, folder).wait()
    if not (folder / "artifact" / "evidence.json").exists():
        sys.exit(f"The run ended with code {code} and without an artifact; see {folder.with_suffix('.out')}")
    return time.monotonic() - started


def kills(command: str, home: Path, *, times: int, longest_s: float, seed: int) -> Iterator[Kill]:
    """Make all kills, one after the other."""
    moments = random.Random(seed)
    num_runs = made = 0
    while made < times:
        folder = home / f"killed-{num_runs}"
        after_s = moments.uniform(EARLIEST_S, longest_s)
        process = start(command, folder)
        try:
            process.wait(after_s)
            num_runs += 1
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            made += 1
            done = ended(folder)
            yield Kill(folder, after_s, done[-1] if done else "-", len(done))


def faults(folder: Path, word: str) -> list[str]:
    """What is wrong with a run that was killed and has ended."""
    own = verdict(folder)
    repeated = [name for name, count in Counter(ended(folder)).items() if count > 1]
    left = [str(path.relative_to(folder)) for path in folder.rglob(".*.part")]
    return [
        *([f"the verdict is {own}, undisturbed {word}"] if own != word else []),
        *(f"made again after it had ended: {name}" for name in repeated),
        *(f"left half-written: {name}" for name in left),
    ]


def verdict(folder: Path) -> str:
    """The word that the run ended in."""
    return str(json.loads((folder / "artifact" / "evidence.json").read_text())["verdict"]["word"])


def main() -> None:
    """Print a table of the kills and of what became of each run; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how many kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--home", type=Path, help="where the runs go (default: a temporary folder, which is kept)")
    parser.add_argument("--command", default=DEMO, help="what to run; {folder} stands for the run's folder")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="kill-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    seconds = finish(options.command, home / "undisturbed")
    word = verdict(home / "undisturbed")
    print(f"undisturbed: {word} after {seconds:.0f} s, {len(ended(home / 'undisturbed'))} steps; runs are in {home}")
    # Long enough that a run gets on between two kills, short enough that most of them meet it under way.
    longest_s = min(seconds, 20 + 4 * seconds / options.times)
    print(f"{'kill':>4}  {'after':>7}  {'run':<10}  {'steps':>5}  last step that had ended")
    folders: dict[Path, None] = {}
    made = kills(options.command, home, times=options.times, longest_s=longest_s, seed=options.seed)
    for place, kill in enumerate(made, start=1):
        folders[kill.folder] = None
        print(f"{place:>4}  {kill.after_s:>5.1f} s  {kill.folder.name:<10}  {kill.steps:>5}  {kill.last}", flush=True)
    wrong = 0
    for folder in folders:
        finish(options.command, folder)
        found = faults(folder, word)
        wrong += bool(found)
        print(f"{folder.name}: {verdict(folder)}, {len(ended(folder))} steps; {'; '.join(found) or 'as undisturbed'}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
