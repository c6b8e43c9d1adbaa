"""What is declared twice agrees: bounds, lock file, versions, the packaged KNOWN and its card, rules and captions.

And the library works alone, installed from a wheel beside the packages that it requires and no others.
"""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import know
from benchmarks.steps import INSPECTED

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *itertools.chain.from_iterable(EXTRAS.values())]
BOUNDS = {canonicalize_name(bound.name): bound for bound in map(Requirement, DECLARED)}


@pytest.fixture(scope="module")
def locked() -> dict[str, tuple[str, list[str]]]:
    """Name to version and hashes."""
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        line, *rest = entry.splitlines()
        name, version = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line).groups()
        hashes = [m[1] for m in (re.match(r"    --hash=sha256:([0-9a-f]{64})", other) for other in rest) if m]
        found[canonicalize_name(name)] = (version, hashes)
    return found


def test_conda_and_pip_have_the_same_bounds():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert [str(Requirement(line)) for line in packages["pip"]] == [str(bound) for bound in BOUNDS.values()]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")


def test_every_dependency_has_bounds_on_both_sides():
    tools = {"setuptools"}  # builds the package; its newest release must do
    for name, bound in BOUNDS.items():
        kinds = {specifier.operator for specifier in bound.specifier}
        assert kinds == ({">="} if name in tools else {">=", "<"}), name


def test_the_lock_holds_every_dependency_within_its_bounds(locked):
    for name, bound in BOUNDS.items():
        assert name in locked
        assert bound.specifier.contains(locked[name][0]), name


def test_every_package_of_the_lock_is_pinned_and_hashed(locked):
    for name, (version, hashes) in locked.items():
        assert hashes, name
        assert str(Version(version)) == version


def test_the_lock_names_no_index():
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|://|--(extra-)?index|--find-links|@ ", text)


LIBRARY = {"numpy", "pyyaml", "safetensors", "torch", "tqdm", "typer"}
OPTIONAL = {"h5py": "keras", "jinja2": None, "matplotlib": None, "numba": "fast", "scipy": "compare"}
"""Further packages that the library imports inside functions, and the extras that bring them."""


MODULES = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
"""Modules that have another name than their distribution."""


def imports(folder: str) -> set[tuple[str, str, bool]]:
    """Imports of other distributions in a folder: name of the file, distribution, whether at the top of the file."""
    own = {"know", "benchmarks", "paper_figures"}
    found = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in {name.partition(".")[0] for name in names} - own - set(sys.stdlib_module_names):
                    found.add((path.name, MODULES.get(name, name), node in tree.body))
    return found


def test_the_library_requires_six_packages_and_imports_others_only_inside_functions():
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == LIBRARY
    others = {each for each in imports("know") if each[1] not in LIBRARY}
    assert {name for _, name, _ in others} == set(OPTIONAL)
    assert {each for each in others if each[2]} == {("fast.py", "numba", True)}  # itself imported inside a function
    assert all(extra is None or Requirement(EXTRAS[extra][0]).name == name for name, extra in OPTIONAL.items())


@pytest.mark.parametrize("folder", ["benchmarks", "paper_figures", "examples"])
def test_what_the_benchmark_imports_is_declared(folder):
    declared = LIBRARY | {Requirement(line).name for line in EXTRAS["benchmark"]}
    speed = {"tensorflow", "tf_keras", "numba"}  # measured by benchmarks/speed where they are
    assert {name for _, name, _ in imports(folder)} <= declared | speed


def test_no_text_advises_to_install_what_the_package_index_calls_know():
    """That is another project; the texts name the package itself, or an extra of this checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    advice = re.compile(
        r"\b(install|add)( +-[\w-]+)* +['\"]?know(-prediction)?(\[|['\"`\s]|$)|know\[(fast|keras|slurm)", flags=re.M
    )
    kinds = (".py", ".md", ".yml", ".yaml", ".toml", ".sh", ".smk", ".cff", ".j2", ".rst", "")
    for name in filter(None, listed.stdout.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and path.suffix in kinds:
            text = path.read_text(encoding="utf-8", errors="replace")
            if path != Path(__file__):
                assert not advice.search(text), f"{name}: {advice.search(text)[0]}"
    for name in ("'know[keras]'", "know"):
        assert advice.search(f"pip install {name}")


def required_modules(names: set[str]) -> set[str]:
    """Top-level modules of distributions and of all that these require here, whatever the extras."""
    modules: dict[str, set[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            modules.setdefault(canonicalize_name(owner), set()).add(module)
    reached, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        try:
            required = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [canonicalize_name(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return set().union(*(modules.get(name, set()) for name in reached))


GUARD = """
import sys

ALLOWED = set({allowed}) | set(sys.stdlib_module_names) | {{"know", "__main__", "guard_of_packages"}}


class Guard:
    \"\"\"Hides every package that the library does not require.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Guard())
"""
TRAINING = """
import torch


def setup():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3), range(64), fit


def fit(model, subset):
    with torch.no_grad():
        model.weight -= len(subset) / 1000
"""
COMMANDS = """
import sys
from pathlib import Path

import know
from know.cli import main

assert Path(know.__file__).is_relative_to(sys.prefix), know.__file__
for line in sys.argv[1:]:
    sys.argv = line.split()
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code or 0)
assert not {"pandas", "numba", "matplotlib", "h5py", "scipy", "sklearn", "benchmarks"} & sys.modules.keys()
"""


def test_the_library_works_from_a_wheel_beside_what_it_requires_and_nothing_else(tmp_path):
    source, env = tmp_path / "source", tmp_path / "env"
    shutil.copytree(REPOSITORY / "know", source / "know", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)

    def run(*command: object) -> str:
        outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run([str(c) for c in command], cwd=tmp_path, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    build = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_wheel('..'))"]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=True)
    wheel = tmp_path / done.stdout.splitlines()[-1]
    assert re.fullmatch(r"know_prediction-[\d.]+-py3-none-any\.whl", wheel.name)
    run(sys.executable, "-m", "venv", "--without-pip", env)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    run(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", env / "bin" / "python", wheel)
    (packages,) = env.glob("lib/python*/site-packages")
    (packages / "outside.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    guard = GUARD.format(allowed=json.dumps(sorted(required_modules(LIBRARY))))
    # not sitecustomize.py, of which some systems have one of their own that comes first
    (packages / "guard_of_packages.py").write_text(guard, encoding="utf-8")
    (packages / "guard_of_packages.pth").write_text("import guard_of_packages\n", encoding="utf-8")
    assert "import-keras" in run(env / "bin" / "know", "--help")
    (tmp_path / "training.py").write_text(TRAINING, encoding="utf-8")
    lines = [
        "know forget training.py:setup --out run",
        "know predict run --dry-run",
        "know predict run --out better",
        "know inspect run --depth 3 --out inspected",
        "know methods",
        "know methods shrink",
        "know import-keras . released.safetensors",
        "know compare run --task training.py:setup --rates 1,2 --out compared",
    ]
    said = run(env / "bin" / "python", "-c", COMMANDS, *lines)
    codes = [int(code) for code in re.findall(r"exit code (\d)", said)]
    assert codes == [0, 0, 0, 0, 0, 0, 2, 2], said
    assert "1 of 2 tensors would be predicted, 12 weights" in said
    assert "no figure: pip install matplotlib" in said
    assert "needs h5py: pip install h5py" in said
    assert "needs scipy and matplotlib: pip install scipy matplotlib" in said
    made = {str(path.relative_to(tmp_path / "better")) for path in (tmp_path / "better").iterdir()}
    assert made == {"model.safetensors", "know_config.yml", "README.md"}


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert know.__version__ == PROJECT["version"] == citation["version"]
    assert citation["license"] == PROJECT["license"]
    assert re.search(r"^## (\S+)", changelog, flags=re.M)[1] == know.__version__


def test_the_networks_that_ship_are_small_those_of_the_settings_and_described_by_their_cards(monkeypatch):
    from benchmarks.report.pretrained import card
    from benchmarks.settings import family
    from benchmarks.suite import load_shipped
    from know.files import PRETRAINED, read_json
    from know.known import Known

    monkeypatch.chdir(REPOSITORY)
    groups = load_shipped().groups
    assert {(path.parent.parent.name, int(path.parent.name)) for path in PRETRAINED.glob("*/*/facts.json")} == {
        (name, length) for name, group in groups.items() for length in group.lengths
    }
    index = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    for name, group in groups.items():
        assert f"`{name}`" in index
        for length in group.lengths:
            folder = PRETRAINED / name / str(length)
            models = sorted(folder.glob("*.safetensors"))
            assert [path.stem for path in models] == ["known", "meta_linear", "scaled"]
            assert all(path.stat().st_size < 200 * 1024 for path in models)
            known = Known.pretrained(name, length)
            assert (folder / "README.md").read_text(encoding="utf-8") == card(folder)
            assert known.facts["data"] == read_json(folder / "facts.json")["data"]
            assert not {family(data) for data in known.facts["data"]} & set(group.without)


def test_what_ships_is_what_the_rule_chooses_and_the_page_is_made_from_the_tables(monkeypatch):
    """Rules 27 and 29 of docs/RULES.md."""
    from benchmarks.report import pretrained
    from benchmarks.suite import load_shipped
    from know.files import PRETRAINED, read_json

    monkeypatch.chdir(REPOSITORY)
    folder, settings = PRETRAINED, load_shipped()
    chosen = pretrained.choice(pd.read_csv(folder / "variants.csv").query("part == 'selection'"))
    assert chosen == f"{settings.metatraining.loss}-{settings.metatraining.bias_penalty:g}"
    for path in folder.glob("*/*/facts.json"):
        made = read_json(path)["settings"]
        assert f"{made['loss']}-{made['bias_penalty']:g}" == chosen
    assert (folder / "README.md").read_text(encoding="utf-8") == pretrained.page(settings, folder)
    skill = pretrained.skill_of(settings.skill, folder)
    distance = skill["skill"].set_index("arm")["all"]
    found = (REPOSITORY / "docs" / "FINDINGS.md").read_text(encoding="utf-8")
    quoted = [
        *distance[["known_x2", "tail_average"]],
        *map(skill["verdict"]["accuracy"].get, ("known_x2", "tail_average")),
    ]
    assert all(number in " ".join(found.split()) for number in quoted)
    front = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    assert ("our KNOWN has no skill at r = 0.5" in front) != skill["verdict"]["skill"]  # rule 29
    assert ("has no skill at r = 0.5" in " ".join(front.split())) == (not skill["verdict"]["skill"])


def test_what_the_library_reads_from_its_folder_is_packaged():
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    data = {path.relative_to(REPOSITORY / "know") for path in (REPOSITORY / "know").rglob("*") if path.is_file()}
    data = {path for path in data if path.suffix != ".py" and path.parent.name != "__pycache__"}
    assert data
    assert all(any(path.match(pattern) for pattern in tool["package-data"]["know"]) for path in data)
    for folder in {path.parent for path in (REPOSITORY / "know").rglob("*.py")}:
        assert (folder / "__init__.py").is_file()  # setuptools finds no package without


def test_no_file_under_version_control_is_large():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    assert paths
    assert [path for path in paths if path.is_file() and path.stat().st_size > 2 * 2**20] == []


def _rules() -> dict[str, str]:
    texts = [
        path.read_text(encoding="utf-8") for path in [REPOSITORY / "Snakefile", *REPOSITORY.glob("workflow/*.smk")]
    ]
    pattern = r"^( *)rule ?(\w*):\n(?:(?:\1 .*)?\n)*"  # that of the loop over the list of jobs has no name here
    return {m[2]: m[0] for text in texts for m in re.finditer(pattern, text, flags=re.M)}


def test_every_rule_that_runs_something_has_an_environment_and_a_log():
    rules = _rules()
    assert {"", "publish", "figures", "all", "skill"} <= rules.keys()
    for name, text in rules.items():
        runs = bool(re.search(r"^ +(shell|run|script|notebook|wrapper|output):", text, flags=re.M))
        kept = [bool(re.search(rf"^ +{key}:", text, flags=re.M)) for key in ("conda", "log", "shell")]
        assert kept == [runs] * 3, name
        assert not runs or re.search(r'conda:\s+"\.\./environment\.yml"', text), name
        assert not runs or re.search("> {{?log}?} 2>&1", text), name


def test_every_figure_has_a_caption_and_every_caption_a_figure():
    scripts = {path.stem for path in REPOSITORY.glob("paper_figures/[!_]*.py")}
    captions = {path.stem: path.read_text(encoding="utf-8") for path in REPOSITORY.glob("workflow/captions/*.rst")}
    assert set(captions) == scripts
    assert all(text.strip() for text in captions.values())


def test_every_suite_of_the_comparison_is_a_versioned_stage(monkeypatch):
    from benchmarks.suite import suite_names

    monkeypatch.chdir(REPOSITORY)
    stages = yaml.safe_load((REPOSITORY / "benchmarks" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    listed = stages["suite"]["foreach"]
    assert set(listed.values()) == {
        name for name in suite_names() if name.startswith(("core/", "cells/", "ablations/", "gpu/"))
    }
    assert all(name.replace("/", "-") == stage for stage, name in listed.items())


def test_the_versioned_stages_track_what_the_workflow_publishes():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    tracked = {
        path: options
        for stage in stages.values()
        for kind in ("outs", "metrics", "plots")
        for entry in stage.get(kind, [])
        for path, options in entry.items()
    }
    assert all(options["persist"] for options in tracked.values())  # else a stage would delete finished work first
    committed = {path: options for path, options in tracked.items() if path.startswith("results/")}
    assert all(options["cache"] is False for options in committed.values())
    published = {"runs", "pilots", "trajectories", "landscape"}
    published |= set(INSPECTED)
    assert {f"results/smoke/{table}.csv" for table in published} <= committed.keys()
    assert {
        f"results/smoke/{name}" for name in ("README.md", "suite.json", "metrics.json", "figures", "known")
    } <= committed.keys()
    for name in ("provenance.json", "cost.csv"):  # they differ between two runs of the same code
        assert not any(f"results/smoke/{name}".startswith(path) for path in committed)
