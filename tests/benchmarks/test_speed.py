"""The measurement of training runs, records what it should and makes its page; how fast it is, no test says."""

import json

import pytest

from benchmarks.speed import _table as table
from benchmarks.speed import training


def test_a_quick_run_has_a_row_for_every_contestant_and_keeps_the_other_device(tmp_path):
    training.main(["--quick", "--repeats", "2", "--threads", "1", "--out", str(tmp_path)])
    path = tmp_path / "training.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == ["cpu"]
    for case in [*found["cpu"]["cases"], found["cpu"]["stacked"]]:
        for times in case["seconds_per_image"].values():
            assert 0 < times["fastest"] <= times["median"] <= times["slowest"]
        assert 0 < case["work"]["float32"]["flop_forward"] < case["work"]["float32"]["flop"]
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    for label in (table.ARMS[name] for name in ("loop", "train", "step")):
        assert page.count(f"| {label} |") == len(found["cpu"]["cases"])
    assert all(f"| {label} |" in page for label in (table.ARMS["one"], "1", "2"))
    assert "no figures of a GPU yet" in page
    assert "--quick" in page.split("### On a CPU")[1]  # nobody takes these for real

    # as a GPU would leave it: precisions of its own, and no row lost when the CPU is measured again
    cpu = found["cpu"]
    gpu = json.loads(json.dumps(cpu))
    gpu["machine"]["accelerator"] = "some GPU"
    gpu["product"], gpu["rates"]["bfloat16"] = {"float32": "TF32", "bfloat16": "bfloat16"}, 1e15
    for case in [*gpu["cases"], gpu["stacked"]]:
        case["work"]["bfloat16"] = case["work"]["float32"]
    for case in gpu["cases"]:
        for name in table.ARMS.keys() - {"one"}:
            case["seconds_per_image"].setdefault(name, case["seconds_per_image"]["train"])
    path.write_text(json.dumps({"cpu": cpu, "cuda": gpu}), encoding="utf-8")
    training.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert json.loads(path.read_text(encoding="utf-8"))["cuda"] == gpu
    page = (tmp_path / "README.md").read_text(encoding="utf-8").split("### On a GPU")[1]
    assert "no figures" not in page
    assert all(f"| {label} |" in page for name, label in table.ARMS.items())


def test_what_an_image_costs():
    paper = training.work("resnet18_cifar", batch=128, size=4)
    assert paper["flop_forward"] / 2 == pytest.approx(2.07e9, rel=0.01)  # multiply-adds
    assert 2.9 < paper["flop"] / paper["flop_forward"] < 3  # the stem passes no gradient to the picture

    # the small network by hand: 3x3 convolutions 8-16-32-32 on sides 32, 16, 8, 4, then 64 and 10
    convolutions = (3 * 8 * 32**2, 8 * 16 * 16**2, 16 * 32 * 8**2, 32 * 32 * 4**2)
    linear = 32 * 2 * 2 * 64 + 64 * 10
    small = training.work("plaincnn", batch=10, size=4)
    assert small["flop_forward"] == 2 * (9 * sum(convolutions) + linear)
    outputs = 8 * 32**2 + 16 * 16**2 + 32 * 8**2 + 32 * 4**2 + 64 + 10
    weights = 9 * (3 * 8 + 8 * 16 + 16 * 32 + 32 * 32) + 8 + 16 + 32 + 32 + linear + 64 + 10
    assert small["bytes"] == 20 * outputs + 13 * 3 * 32**2 + 4 * weights
