"""Files: atomic writes and content hashes. Imports neither torch nor numpy.

Every file is written under a temporary name that carries the process id and then renamed, so a reader sees the old
content or the new one, never half of it, and two processes never share a temporary file.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from know.errors import KnowError

PACKAGE = Path(__file__).parent
PRETRAINED = PACKAGE / "pretrained"
"""Networks that the package ships: GROUP/LENGTH/."""


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise KnowError(f"cannot write {path}: {error.strerror or error}; check permission and free space") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; when the block ends well it becomes `out`, in one rename.

    `out` must not exist, neither then nor at the end: of two processes that make the same folder the later one fails.
    What a killed process has left behind is removed by the next process that makes the same folder.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise KnowError(f"{out} exists already; name a new folder")
    for stray in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        owner = stray.name.split(".")[-2]
        if stray.is_dir() and owner.isdecimal() and (int(owner) == os.getpid() or not _alive(int(owner))):
            shutil.rmtree(stray, ignore_errors=True)  # our own number belonged to a process before us, as in containers
    missing = [parent for parent in out.parents if not os.path.lexists(parent)]  # nearest first
    try:
        with atomic(out) as temporary:
            temporary.mkdir()
            yield temporary
            if os.path.lexists(out):
                raise KnowError(f"{out} exists by now: another process has made it; name a new folder")
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def write_text(path: Path | str, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KnowError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of 5,000 digits
        raise KnowError(f"{path} is not valid JSON ({error}); it is corrupt or truncated, make it again") from error


def write_csv(path: Path | str, rows: Iterable[dict], columns: list[str]) -> None:
    """Rows in the given order; floats as given by the caller (round first: versioned files carry fixed digits)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextlib.contextmanager
def resumable_folder(out: Path | str, fingerprint: str) -> Iterator[Path]:
    """Yield the working folder `<out>.partial`; when the block ends well it becomes `out`, in one rename.

    A kill leaves the working folder behind. The next call continues in it if its fingerprint (settings, data and code)
    is the same, and starts from nothing if not. What stood at `out` stays intact until then.
    """
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    mark = partial / "fingerprint"
    if partial.exists() and not (mark.is_file() and mark.read_text() == fingerprint):
        shutil.rmtree(partial)
    for stray in partial.rglob(".*.tmp"):  # what a killed process was writing
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    write_text(mark, fingerprint)
    yield partial
    mark.unlink()
    try:
        if out.exists():
            old = out.with_name(f".{out.name}.{os.getpid()}.old")
            os.replace(out, old)
            os.replace(partial, out)
            shutil.rmtree(old)
        else:
            os.replace(partial, out)
    except OSError as error:
        raise KnowError(f"cannot write {out}: {error.strerror or error}; check permission and free space") from error


def sha256_file(path: Path | str) -> str:
    path = Path(path)
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise KnowError(f"cannot read {path}: {error.strerror}") from error


def digest(value: object) -> str:
    """Short stable hash of a JSON-serialisable value (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
