"""Worker processes: the same answers for any number of them, errors come home, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.workers import workers
from know.errors import KnowError

PLACES = Path(__file__).parent, Path(__file__).parents[2]


def threads_and_square(number: int) -> tuple[int, int]:
    return torch.get_num_threads(), number**2


def refuse(number: int) -> int:
    raise KnowError(f"no {number}")


def wait_forever(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


@pytest.fixture(scope="module", params=[1, 2])
def each(request):
    """The `map` over that many processes. Several tests share the processes, since each has to import torch."""
    with workers(request.param) as each:
        yield each


def test_answers_come_in_order_and_with_the_threads_of_this_process(each):
    assert list(each(threads_and_square, range(4))) == [(torch.get_num_threads(), n) for n in (0, 1, 4, 9)]


def test_what_a_worker_raises_is_raised_here(each):
    with pytest.raises(KnowError, match="no 3"):
        list(each(refuse, [3]))


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_workers import wait_forever\n"
        "from benchmarks.workers import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(2) as each:\n"
        "        list(each(wait_forever, [sys.argv[1]]))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    (tmp_path / "seen").mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "seen"), *map(str, PLACES)])
    try:
        _until(lambda: list((tmp_path / "seen").iterdir()))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    children = [int(path.name) for path in (tmp_path / "seen").iterdir()]
    _until(lambda: not any(map(_alive, children)))


def _until(reached, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)
