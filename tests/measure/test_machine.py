from __future__ import annotations

import json
import subprocess
import sys

from trimtab.measure.machine import cpu, stamp, versions


def test_stamp_is_json_and_names_the_machine() -> None:
    found = json.loads(json.dumps(stamp(), allow_nan=False))
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["os"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_features_come_from_x86_and_arm() -> None:
    x86 = "processor: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx512_bf16 amx_int8 sse\n\nprocessor: 1\nflags: fpu\n"
    assert cpu(x86) == ("Xeon", ["avx512_bf16", "amx_int8"])
    assert cpu("Features\t: fp asimd asimddp i8mm") == ("", ["asimd", "asimddp", "i8mm"])
    assert cpu("") == ("", [])


def test_versions_leave_out_what_is_not_installed() -> None:
    found = versions(["numpy", "no-such-package-anywhere"])
    assert list(found) == ["numpy"]


def test_versions_import_nothing() -> None:
    code = "import sys; from trimtab.measure.machine import versions; versions(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
