"""Files: atomic writes and content hashes. Imports neither torch nor numpy.

Every file is written under a temporary name that carries the process and the thread, and then renamed, so a reader sees
the old content or the new one, never half of it, and two processes never share a temporary file.
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
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from know.errors import KnowError

PACKAGE = Path(__file__).parent
PRETRAINED = PACKAGE / "pretrained"
"""Networks that the package ships: GROUP/LENGTH/."""
MARK = ".know-unfinished"
"""File in every folder that this package has begun and may therefore remove or go on with. It holds a fingerprint."""


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else temporary
        if isinstance(error, BrokenPipeError) or not named.is_relative_to(temporary):
            raise  # of the block itself: another file that it reads, or the pipe that it tells the user by
        raise _cannot_write(path, error) from error
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
    What a killed process has left behind is removed by the next process that makes the same folder; a folder with
    files but without the mark of this package, or one whose process still runs, is left alone.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise KnowError(f"{out} exists already; name a new folder")
    for stray in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        if stray.is_dir() and not stray.is_symlink():  # empty where the process was killed before it set the mark
            with contextlib.suppress(KnowError), _owned(stray, out):
                shutil.rmtree(stray, ignore_errors=True)
    missing = [parent for parent in out.parents if not os.path.lexists(parent)]  # nearest first
    try:
        with atomic(out) as temporary, _owned(temporary, out):
            yield temporary
            if os.path.lexists(out):
                raise KnowError(f"{out} exists by now: another process has made it; name a new folder")
            (temporary / MARK).unlink()
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def resumable_folder(out: Path | str, fingerprint: str | Mapping[str, Any], *, replace: bool = False) -> Iterator[Path]:
    """Yield the working folder `<out>.partial`; when the block ends well it becomes `out`, in one rename.

    A kill leaves the working folder behind, and the next call with the same fingerprint (settings, data and code)
    continues in it. The folder carries a mark and a lock, so that nobody else's folder is touched and two processes
    never work in one. KnowError if it is not ours, was begun with another fingerprint, or is in use.

    fingerprint: a text, or JSON-serialisable values by what they are called in the error, which then says which of them
        differ. A folder in which nothing stands yet may be begun anew with another fingerprint.

    replace: start anew where the fingerprint is another one, and replace what stands at `out`, which stays intact until
        the end. Otherwise unfinished work is never removed, and `out` must be empty or not there.
    """
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    if not isinstance(fingerprint, str):
        fingerprint = json.dumps({what: digest(value) for what, value in fingerprint.items()}, sort_keys=True)
    with _owned(partial, out) as mark:
        begun = mark.read().decode()
        if begun and begun != fingerprint:
            if not replace and any(path.name != MARK and path.suffix != ".tmp" for path in partial.iterdir()):
                raise KnowError(
                    f"{partial} holds unfinished work of other settings{_differing(begun, fingerprint)}; go on with"
                    " those, remove it, or name another folder"
                )
            for path in partial.iterdir():
                if path.name != MARK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for stray in partial.rglob(".*.tmp"):  # what a killed process was writing
            shutil.rmtree(stray) if stray.is_dir() and not stray.is_symlink() else stray.unlink()
        if begun != fingerprint:  # else the mark stays as it is, since an empty one would fit any settings
            try:
                mark.truncate(0)
                mark.write(fingerprint.encode())
            except OSError as error:
                raise _cannot_write(out, error) from error
        yield partial
        try:
            if replace and out.exists():
                old = out.with_name(f".{out.name}.{os.getpid()}.old")
                os.replace(out, old)
                os.replace(partial, out)
                shutil.rmtree(old)
            elif out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise KnowError(f"{out} exists by now: another process has made it; the work is kept in {partial}")
            else:
                os.replace(partial, out)
        except OSError as error:
            raise _cannot_write(out, error) from error
        (out / MARK).unlink()


@contextlib.contextmanager
def _owned(folder: Path, out: Path) -> Iterator[BinaryIO]:
    """Make `folder`, or enter it if it carries our mark, and hold its lock; yields the mark, open and at its start.

    out: what is made in it, for errors.

    KnowError if the folder is somebody else's, or if another process holds the lock. The lock ends with the process.
    """
    mark = folder / MARK
    foreign = os.path.lexists(folder) and (folder.is_symlink() or not mark.is_file())
    if foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise KnowError(f"{folder} was not made by know, and its name is needed for work in progress; rename it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = mark.open("ab+", buffering=0)
    except OSError as error:
        raise _cannot_write(out, error) from error
    with handle:
        if not _lock(handle) or not mark.is_file() or not os.path.samestat(os.fstat(handle.fileno()), mark.stat()):
            raise KnowError(f"another process is working in {folder}; wait for it, or name another folder")
        handle.seek(0)
        yield handle


def _lock(handle: BinaryIO) -> bool:
    """Lock an open file for this process, without waiting; True where the system or file system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _cannot_write(path: Path, error: OSError) -> KnowError:
    return KnowError(f"cannot write {path}: {error.strerror or error}; check permission and free space")


def refuse_links_out(path: Path, folder: Path) -> None:
    """Raise KnowError if a file of a folder is a link that leaves it.

    What such a link points to may be private, and would be copied or published with the folder. A cache of Hugging
    Face, whose files are links to blobs/ beside snapshots/, counts as one folder.
    """
    folder, target = folder.resolve(), path.resolve()
    caches = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    if not any(map(target.is_relative_to, [folder, *caches])):
        raise KnowError(
            f"{path} is a link that leaves its folder; put the file itself there, or name that file instead"
        )


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


def sha256_file(path: Path | str) -> str:
    path = Path(path)
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise KnowError(f"cannot read {path}: {error.strerror}") from error


def _differing(begun: str, fingerprint: str) -> str:
    """What two fingerprints differ in, as far as they say what they are made of."""
    try:
        old, new = json.loads(begun), json.loads(fingerprint)
        differing = [what for what in sorted(old.keys() | new.keys()) if old.get(what) != new.get(what)]
    except (ValueError, AttributeError):
        return ", or of another version of know"
    return f" ({', '.join(differing)})"


def digest(value: object) -> str:
    """Short stable hash of a JSON-serialisable value (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def listing(place: Path) -> list[tuple[str, int, int]]:
    """Every file of a file or a folder, with its size in bytes and its time of change: whether somebody has written."""
    paths = sorted(place.rglob("*")) if place.is_dir() else [place]
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
