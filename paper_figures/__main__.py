"""All figures that a suite lists, in one process: `python -m paper_figures results/<suite> [output folder]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path, out: Path | None = None) -> None:
    sys.path.insert(0, str(HERE))  # the scripts also run by themselves, and import style.py from beside them
    from style import save

    from benchmarks.report.claims import CLAIMS
    from know.files import read_json

    suite = read_json(folder / "suite.json")
    for name in suite["figures"]:
        save(importlib.import_module(name).draw(folder), out or folder / "figures", name)
        print(f"{name}: {out or folder / 'figures'}/{name}.svg")
    if suite["name"] in CLAIMS.core:
        results = folder.parents[suite["name"].count("/")]
        save(importlib.import_module("_evidence").draw(results), out or results / "figures", "evidence")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
