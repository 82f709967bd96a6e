"""Checks that no code of a higher instruction set can run on a lower machine.

usage: check_symbols.py BUILD_DIR

Every kernel object may define one global symbol (its table) and no weak one: the linker merges weak symbols
across objects, and a copy compiled for AVX-512 could then serve everybody. Objects that are compiled for
the baseline may not touch ymm or zmm registers.
"""

import re
import subprocess
import sys
from pathlib import Path

WIDE = re.compile(r"%[yz]mm\d")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(build):
    problems = []
    kernels = 0
    objects = sorted(Path(build).rglob("*.o"))
    if not objects:
        sys.exit(f"check_symbols: no object files under {build}")
    for path in objects:
        parts = "/".join(path.parts)
        level = re.search(r"gs_([a-z0-9]+)(?:_[a-z]+)?\.dir", parts)
        if level:
            kernels += 1
            tables, weak = [], []
            for line in run("nm", "--defined-only", str(path)).splitlines():
                kind, name = line.split()[-2:]
                if kind in "WVuwv":
                    weak.append(name)
                elif kind.isupper() and kind not in "UN":
                    tables.append(name)
            if weak:
                problems.append(f"{path.name} ({level[1]}): weak symbols {weak[:4]}")
            if len(tables) != 1 or level[1] not in tables[0] or "kernels" not in tables[0]:
                problems.append(
                    f"{path.name} ({level[1]}): global symbols {tables[:4]}, expected one table"
                )
        if level is None or level[1] == "base":
            wide = len(WIDE.findall(run("objdump", "-d", "--no-show-raw-insn", str(path))))
            if wide:
                problems.append(f"{path.name}: {wide} uses of ymm or zmm in code for the baseline")
    print(f"check_symbols: {len(objects)} objects, {kernels} of kernels, {len(problems)} problems")
    for p in problems:
        print("  " + p)
    sys.exit(1 if problems or not kernels else 0)


if __name__ == "__main__":
    main(sys.argv[1])
