"""All figures of a suite in one process: `python -m paper_figures results/<suite> [output folder]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path, out: Path | None = None) -> None:
    sys.path.insert(0, str(HERE))  # the scripts also run by themselves, and import style.py from beside them
    from style import save

    for name in sorted(path.stem for path in HERE.glob("[!_]*.py")):
        module = importlib.import_module(name)
        if hasattr(module, "draw"):
            save(module.draw(folder), out or folder / "figures", name)
            print(f"{name}: {out or folder / 'figures'}/{name}.svg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
