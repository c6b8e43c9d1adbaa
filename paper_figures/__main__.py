"""Draw figures in one process, from csv files alone.

python -m paper_figures results/<suite> [figure ...]     all that the suite lists, or those that are named
python -m paper_figures results                          what all suites say together, and what compute buys
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report.claims import CLAIMS
from know.cli import main_of, new_app
from know.errors import KnowError, unknown
from know.files import read_json
from paper_figures._style import save

app = new_app("Draw figures from csv files alone.")

HERE = Path(__file__).parent
FRONT = {"_pooled": "figures/pooled", "_evidence": "figures/evidence", "_compute": "explored/compute"}
"""Scripts that look at all results, and the file of each in that folder."""


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="A suite's folder in results/, or results/ itself for what all say.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Scripts in paper_figures/, such as landscape; default: all that the suite lists."),
    ] = None,
) -> None:
    """Draw the figures of a suite, or those of all results together, in one process."""
    scripts = {path.stem for path in HERE.glob("[!_]*.py")}
    if strange := sorted(set(names or ()) - scripts):
        raise unknown("figure", strange[0], scripts)
    if names or (folder / "suite.json").is_file():
        suite = read_json(folder / "suite.json")
        places = {name: (folder, folder / "figures" / name) for name in names or suite["figures"]}
        if suite["name"] in CLAIMS.core and not names:
            results = folder.parents[suite["name"].count("/")]
            places |= {script: (results, results / FRONT[script]) for script in ("_pooled", "_evidence")}
    elif (folder / "explored").is_dir():
        places = {script: (folder, folder / place) for script, place in FRONT.items()}
    else:
        raise KnowError(f"{folder} is neither the folder of a published suite nor that of all results")
    for script, (read, stem) in places.items():
        save(importlib.import_module(f"paper_figures.{script}").draw(read), stem.parent, stem.name)
        print(f"{script.strip('_')}: {stem}.svg")


if __name__ == "__main__":
    main_of(app, "python -m paper_figures")
