"""The examples of docs/your_own_training.md run as they stand, each section in a folder and a namespace of its own."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from small_model import call

import know

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_training.md").read_text(encoding="utf-8")
SECTIONS = {text.splitlines()[0]: text for text in PAGE.split("\n## ")[1:]}
NEEDS = {"Lightning": ["lightning"], "Hugging Face Trainer": ["transformers", "accelerate"]}
GOES_ON = {
    "A placebo": "Your training function",
    "Further training, to compare with": "Your training function",
    "Your own loop": "Your training function",
    "Then": "Lightning",
}
"""Sections that go on with the names of another."""


EXAMPLES = [
    ("Your training function", "forgotten"),
    ("A placebo", "beside"),
    ("Further training, to compare with", "forgotten"),
    ("Your own loop", "recorded"),
    ("Your own loop", "arrays"),
    pytest.param("Hugging Face Trainer", "trainer", marks=pytest.mark.slow),
    pytest.param("Then", "lightning", marks=pytest.mark.slow),  # with the section on Lightning before it
]


def run(section: str, space: dict) -> dict:
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", SECTIONS[section], flags=re.M | re.S):
        if language == "python":
            exec(compile(block, f"{section} in docs/your_own_training.md", "exec"), space)
            continue
        for line in block.strip().splitlines():
            assert call(*shlex.split(line)[1:]) == 0, line
    return space


@pytest.mark.parametrize(("section", "folder"), EXAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_an_example_makes_a_trajectory_that_can_be_predicted(tmp_path, monkeypatch, section, folder):
    for package in NEEDS.get(section, []) + NEEDS.get(GOES_ON.get(section), []):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    script = {"__name__": "__main__"}
    space = run(GOES_ON[section], script) if section in GOES_ON else script
    run(section, space)
    trajectory = know.Trajectory.load(folder)
    assert trajectory.fractions == (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    for one, other in zip(trajectory.states, trajectory.states[1:], strict=False):
        assert any(not torch.equal(one[name], other[name]) for name in one)  # every step did train
    answer = know.predict(trajectory)
    assert any(not torch.equal(answer[name], trajectory.theta_0[name]) for name in answer)


def test_every_section_with_an_example_is_run():
    run = {getattr(each, "values", each)[0] for each in EXAMPLES}
    run |= {GOES_ON[section] for section in run & GOES_ON.keys()}
    assert {section for section, text in SECTIONS.items() if "```python" in text} == run
