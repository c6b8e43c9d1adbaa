"""Work that another suite has done already: finished trajectories and fine-tunes, taken over by their content.

No suite's name is in a seed, so an ablation often needs the very trajectories and the very fine-tunes of another suite.
Nothing is taken that settings, data, code or torch's version would have made differently; `KNOW_FORCE` takes nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.suite import Origin, Suite
from know.files import code_hash, digest, read_json, resumable_folder, write_json, write_text


def adopt_origin(settings: Suite, origin: Origin, work: Path, *, everywhere: Path, torch: str) -> Path | None:
    """Put trajectories that another suite has finished where `benchmarks.trajectories.make_origin` would make them.

    work: the suite's own folder, with the `data.json` of its data; everywhere: the folder of all suites' work.
    torch: its version. Files are linked where the file system can, else copied. Returns where they came from, or None
    if no suite has all trajectories on all tracks, made in the same way; the bytes are those that would be made.
    """
    out = work / "trajectories" / origin.slug
    if _forced() or not (work / "data.json").is_file():
        return None
    wanted = [f"{one}/{track}/manifest.json" for one in settings.trajectory_ids for track in settings.tracks(origin)]
    expected = {
        "code": code_hash("benchmarks.trajectories"),
        "source": origin.source,
        "network": origin.network,
        "data": read_json(work / "data.json")[origin.source]["sha256"],
        "pretraining": settings.pretraining.model_dump(mode="json"),
        "forgetting": settings.forgetting_of(origin).model_dump(mode="json"),
    }
    for place in _others(everywhere, f"trajectories/{origin.slug}/manifest.json", out):
        theirs = read_json(place)
        made = theirs.pop("trajectories")
        if theirs != expected or not made.keys() >= set(wanted):
            continue
        if any(read_json(place.parent / manifest)["torch"] != torch for manifest in wanted):
            continue
        with resumable_folder(out, digest([str(place), wanted])) as folder:
            for manifest in wanted:
                _link_files((place.parent / manifest).parent, (folder / manifest).parent)
            write_json(folder / "manifest.json", {**theirs, "trajectories": {name: made[name] for name in wanted}})
        return place.parent
    return None


def gather_memory(memory: Path, *, everywhere: Path) -> int:
    """Begin a cell's memory of fine-tunes with those of all cells and suites; returns how many it found.

    A memory that is there already is left alone. Only files of the code, torch and threads of the first that the
    present code wrote are taken; `benchmarks.finetune.Memory` empties what does not fit it.
    """
    if _forced() or memory.exists():
        return 0
    head, found = None, {}
    for place in _others(everywhere, f"memory/*{memory.suffix}", memory):
        lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or f'"{code_hash("benchmarks.finetune")}"' not in lines[0] or head not in (None, lines[0]):
            continue
        head = lines[0]
        found |= dict.fromkeys(line for line in lines[1:] if line.endswith("\n"))  # the last may be cut short
    if head:
        write_text(memory, head + "".join(found))
    return len(found)


def _others(everywhere: Path, pattern: str, own: Path) -> list[Path]:
    """What the folders of finished work hold, but for `own` and what lies in it."""
    return [path for path in sorted(everywhere.rglob(pattern)) if own not in (path, *path.parents)]


def _link_files(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        try:
            os.link(file, out / file.name)
        except OSError:  # another file system, or one without links
            shutil.copy2(file, out / file.name)


def _forced() -> bool:
    return bool(os.environ.get("KNOW_FORCE"))
