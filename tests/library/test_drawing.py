"""Drawings of an inspection: bars of the right length, the same bytes twice, and no figure without matplotlib."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from know.drawing import STYLE, draw_comparison, draw_inspection, draw_steps, save_figure
from know.verdict import Row


def test_a_bar_has_the_length_of_the_step_and_its_negative_part_lies_left_of_zero():
    table = pd.DataFrame({"label": ["a", "a", "b"], "step": [0.1, 0.3, 0.2], "shrink": [0.5, 0.5, 1.2]})
    axis = Figure().add_subplot()
    draw_steps(axis, table.assign(linear=[0.5, 0.5, -0.3], neither=[0, 0, 0.1]))
    ends = [(bar.get_y(), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches]
    places = sorted({y for y, *_ in ends})
    reached = [[end for y, *pair in ends if y == place for end in pair] for place in places]
    assert [round(end, 6) for part in reached for end in (min(part), max(part))] == [0, 0.2, -0.06, 0.26]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_a_bar_too_long_for_the_axis_keeps_its_parts_and_tells_its_step():
    table = pd.DataFrame({"label": list("abcde"), "step": [0.1, 0.1, 0.1, 0.1, 40.0], "shrink": 0.5, "linear": 0.5})
    axis = Figure().add_subplot()
    draw_steps(axis, table.assign(neither=0))
    longest = [bar.get_width() for bar in axis.patches if bar.get_y() == axis.patches[4].get_y()]
    assert longest[0] == longest[1] > 0.1
    assert axis.get_xlim()[1] < 1
    assert [text.get_text().strip() for text in axis.texts] == ["// 40"]


@pytest.fixture
def inspected(tmp_path) -> Path:
    """What `know inspect --out` writes, of two tensors; the second has a step of nothing."""
    folder = tmp_path / "inspected"
    folder.mkdir()
    head = "tensor,role,weights,step,shrink,linear,neither,shrink_by,linear_by"
    steps = ["w,fc,8,0.1,0.5,0.6,-0.1,0.05,0.2", "b,bias,2,0,,,,0,0"]
    steps += [f",{role},8,0.1,0.5,0.6,-0.1,," for role in ("fc", "all")]
    (folder / "steps.csv").write_text("\n".join([head, *steps, ""]))
    (folder / "movement.csv").write_text("role,difference,size,cosine\nfc,0,0.1,\nfc,1,0.1,0.5\nall,0,0.1,\nall,1,,\n")
    return folder


def test_an_inspection_is_drawn_the_same_twice(inspected, folder_bytes):
    assert draw_inspection(inspected)
    first = folder_bytes(inspected)
    assert {"inspection.svg", "inspection.png"} <= {Path(name).name for name in first}
    assert draw_inspection(inspected)
    assert folder_bytes(inspected) == first


def test_a_name_is_no_formula(inspected):
    steps = inspected / "steps.csv"
    steps.write_text(steps.read_text().replace("\nw,", "\na$\\frac$.w,"))
    assert draw_inspection(inspected)


def test_the_last_bits_of_a_layout_change_no_file(tmp_path, monkeypatch):
    """The layout may end on other last bits in another process; here they are made other ones."""
    whole = ConstrainedLayoutEngine.execute

    def noisy(engine, figure):
        made = whole(engine, figure)
        for axis in figure.axes:
            axis._set_position([side * (1 + 1e-15) for side in axis.get_position().bounds], which="original")
        return made

    def saved(name: str) -> bytes:
        with rc_context(STYLE):
            figure = Figure(layout="constrained")
            for axis in figure.subplots(2, 2).flat:
                axis.plot([0, 1], [0, 1])
                axis.set_xlabel("x")
            save_figure(figure, tmp_path / name)
        return (tmp_path / f"{name}.svg").read_bytes()

    first = saved("first")
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", noisy)
    assert saved("second") == first


def test_an_inspection_of_one_difference_is_drawn(inspected):
    (inspected / "movement.csv").write_text("role,difference,size,cosine\nfc,0,0.1,\nall,0,0.1,\n")
    assert draw_inspection(inspected)


def test_without_matplotlib_an_inspection_has_no_figure(inspected, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw_inspection(inspected)
    assert not list(inspected.glob("inspection.*"))


def test_a_comparison_is_drawn_at_its_differences_with_their_intervals_by_rate(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("know.drawing.save_figure", lambda figure, stem: drawn.append(figure))
    rows = [Row("theta_0", policy, 1e-3, False, 60.0, 0, 0, 0, 4, 0, "theta_0") for policy in ("today", "tuned")]
    for k, name in enumerate(("known_x2", "shrink_x8")):
        rows += [Row(name, p, 1e-3, False, 60, d, d - 2, d + 2, 4, 0) for p, d in (("today", k + 1), ("tuned", -k - 1))]
    draw_comparison(tmp_path, rows)
    (axis,) = drawn[0].axes
    for place, (label, sign) in enumerate((("at the rate of today", 1), ("each at its own best rate", -1))):
        (mark, _, (bar,)) = axis.containers[place]
        assert axis.containers[place].get_label() == label
        assert list(mark.get_xdata()) == [sign * 1, sign * 2]
        assert [tuple(segment[:, 0]) for segment in bar.get_segments()] == [
            (sign * d - 2, sign * d + 2) for d in (1, 2)
        ]
        assert [round(y) for y in mark.get_ydata()] == [0, 1]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["known_x2", "shrink_x8"]
