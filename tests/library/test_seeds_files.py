"""Seeds are the same everywhere; files are written whole or not at all; the code fingerprint sees only code."""

import ast
import contextlib
import os

import pytest

from know import files
from know.errors import KnowError
from know.files import (
    MARK,
    atomic,
    new_folder,
    read_json,
    resumable_folder,
    sha256_file,
    write_csv,
    write_json,
    write_text,
)
from know.seeds import stream

# seeds


def test_stream_is_what_committed_results_were_made_with():
    assert stream("source", "digits", 0) == 1886807458465333142
    assert stream("source", "digits", 0, 0.5, None) == 5515530546894560294


def test_streams_of_different_names_differ():
    words = ["source", "target", "digits", "digits:0-4", "", "t1", "t11", "1", "11"]
    names = [(a,) for a in words] + [(a, b) for a in words for b in words]
    names += [(a, b, c) for a in words for b in words for c in words]
    assert len({stream(*n) for n in names}) == len(names)  # ("t1", "1") is neither ("t11",) nor ("t", "11")


def test_stream_depends_on_the_order_of_names_and_fits_a_torch_seed():
    assert stream("a", "b") != stream("b", "a")
    assert all(0 <= stream("x", i) < 2**63 for i in range(200))


# atomic writes


def test_atomic_keeps_the_old_content_if_the_block_raises(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with contextlib.suppress(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_shows_readers_the_old_content_until_the_end(tmp_path):
    path = tmp_path / "sub" / "table.csv"
    write_text(path, "old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert str(os.getpid()) in temporary.name
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_removes_a_temporary_folder_too(tmp_path):
    with contextlib.suppress(RuntimeError), atomic(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(KnowError, match=r"cannot write .*file/below"):
        write_text(tmp_path / "file" / "below", "text")


def test_of_two_processes_that_make_one_new_folder_the_later_one_fails_and_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "out"

    def make() -> None:
        with new_folder(out) as folder:
            (folder / "mine").touch()
            out.mkdir()  # another process has finished meanwhile

    with pytest.raises(KnowError, match="a/out exists by now"):
        make()
    with pytest.raises(KnowError, match="a/out exists already"):
        make()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert list(out.iterdir()) == []


def test_a_new_folder_that_fails_leaves_no_parents_and_clears_what_a_killed_process_left(tmp_path):
    own = f".out.{os.getpid()}.1.tmp"  # in containers a process often has the number of the one that was killed
    for name in (".out.999999999.7.tmp", ".out.5.5.tmp", ".out.6.6.tmp", own):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.999999999.7.tmp" / "thesis.txt").touch()
    for name in (".out.5.5.tmp", own):  # the sixth was killed before it set its mark
        (tmp_path / name / MARK).touch()
    with contextlib.suppress(RuntimeError), new_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").touch()
    names = {path.name for path in tmp_path.rglob("*")}
    # what has files and no mark is somebody else's
    assert names == {"out", "mine", ".out.999999999.7.tmp", "thesis.txt"}


# resumable folders


def interrupt(out, fingerprint, name, **options):
    with contextlib.suppress(KeyboardInterrupt), resumable_folder(out, fingerprint, **options) as folder:
        (folder / name).write_text(name)
        raise KeyboardInterrupt


def test_unfinished_work_of_another_fingerprint_is_kept_unless_it_may_be_replaced(tmp_path):
    out = tmp_path / "out"
    interrupt(out, "old settings", "first")
    with pytest.raises(KnowError, match=r"out\.partial holds unfinished work of other settings"):
        enter(out, "new settings")
    assert (tmp_path / "out.partial" / "first").read_text() == "first"
    with resumable_folder(out, "new settings", replace=True) as folder:
        assert not (folder / "first").exists()
        (folder / "second").touch()
    assert [p.name for p in out.iterdir()] == ["second"]


def test_unfinished_work_says_what_it_was_begun_with_otherwise(tmp_path):
    begun = {"rates": [0.1, 0.2], "seeds": 4, "the weights": "abc"}
    interrupt(tmp_path / "out", begun, "first")
    interrupt(tmp_path / "out", dict(reversed(begun.items())), "second")
    assert (tmp_path / "out.partial" / "first").exists()
    with pytest.raises(KnowError, match=r"of other settings \(rates, the weights\); go on with those"):
        enter(tmp_path / "out", {**begun, "rates": [0.1], "the weights": "abd"})


def test_a_folder_in_which_nothing_was_kept_may_be_begun_with_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", "old"):
        raise KeyboardInterrupt
    enter(tmp_path / "out", "new")
    assert (tmp_path / "out").is_dir()


def test_the_mark_is_not_written_again_since_a_write_that_fails_would_leave_it_empty(tmp_path):
    interrupt(tmp_path / "out", "old settings", "first")
    mark = tmp_path / "out.partial" / MARK
    os.utime(mark, ns=(1, 1))
    interrupt(tmp_path / "out", "old settings", "second")
    assert mark.stat().st_mtime_ns == 1


def enter(out, fingerprint, **options):
    with resumable_folder(out, fingerprint, **options):
        pass


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_without_our_mark_is_left_alone(tmp_path, replace):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(KnowError, match=r"out\.partial was not made by know"):
        enter(tmp_path / "out", "any", replace=replace)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "years of work"


def test_a_link_in_place_of_the_working_folder_is_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MARK).touch()
    (tmp_path / "out.partial").symlink_to(tmp_path / "other")
    with pytest.raises(KnowError, match="was not made by know"):
        enter(tmp_path / "out", "any")


def test_of_two_that_work_in_one_folder_the_later_one_is_told(tmp_path):
    with resumable_folder(tmp_path / "out", "same") as folder:
        (folder / "first").touch()
        with pytest.raises(KnowError, match="another process is working"):
            enter(tmp_path / "out", "same")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first"]


def test_what_appears_at_the_place_meanwhile_is_kept(tmp_path):
    out = tmp_path / "out"

    def make() -> None:
        with resumable_folder(out, "any") as folder:
            (folder / "ours").touch()
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(KnowError, match=r"exists by now.*out\.partial"):
        make()
    assert [p.name for p in out.iterdir()] == ["theirs"]
    assert (tmp_path / "out.partial" / "ours").exists()


def test_an_old_result_stays_intact_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    with resumable_folder(out, "old") as folder:
        (folder / "old").touch()
    interrupt(out, "new", "half", replace=True)
    assert [p.name for p in out.iterdir()] == ["old"]
    with resumable_folder(out, "new", replace=True) as folder:
        (folder / "new").touch()
        assert [p.name for p in out.iterdir()] == ["old"]
    assert sorted(p.name for p in out.iterdir()) == ["half", "new"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_killed_process_was_writing_does_not_reach_the_result(tmp_path):
    out = tmp_path / "out"
    interrupt(out, "same", "first")
    (tmp_path / "out.partial" / ".second.99999.tmp").write_text("half")  # a kill -9 inside `atomic`
    with resumable_folder(out, "same"):
        pass
    assert [p.name for p in out.iterdir()] == ["first"]


# formats


def test_json_has_the_same_bytes_whatever_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": {"p": [0.1], "q": None}})
    write_json(tmp_path / "b", {"y": {"q": None, "p": [0.1]}, "x": 1})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    assert read_json(tmp_path / "a") == {"x": 1, "y": {"p": [0.1], "q": None}}


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert read_json(tmp_path / "a") == {"x": 1}


def test_csv_has_the_same_bytes_whatever_the_order_of_keys(tmp_path):
    write_csv(tmp_path / "a", [{"x": 1, "y": 0.5}, {"x": 2, "y": None}], ["x", "y"])
    write_csv(tmp_path / "b", [{"y": 0.5, "x": 1}, {"y": None, "x": 2}], ["x", "y"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"x,y\n1,0.5\n2,\n"
    with pytest.raises(ValueError, match="z"):
        write_csv(tmp_path / "a", [{"x": 1, "z": 3}], ["x", "y"])


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(KnowError, match=r"manifest\.json"):
        read_json(path)


def test_the_package_has_no_relative_imports_which_the_fingerprint_would_miss():
    for path in files.PACKAGE.rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in imports), path


def test_the_error_of_another_file_is_not_that_of_the_one_that_is_written(tmp_path):
    def write(path, read):
        with atomic(path) as temporary:
            temporary.write_bytes(read.read_bytes())

    with pytest.raises(FileNotFoundError, match="nothing"):
        write(tmp_path / "out", tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(KnowError, match=r"cannot write .*out"):
        write(tmp_path / "file/deeper/out", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
