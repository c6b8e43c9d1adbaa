"""What is declared twice agrees: bounds, lock file, versions, the packaged KNOWN and its card, rules and captions."""

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import know

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


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert know.__version__ == PROJECT["version"] == citation["version"]
    assert citation["license"] == PROJECT["license"]
    assert re.search(r"^## (\S+)", changelog, flags=re.M)[1] == know.__version__


def test_the_networks_that_ship_are_small_those_of_the_settings_and_described_by_their_cards(monkeypatch):
    from benchmarks.metatraining import card
    from benchmarks.suite import family, load_shipped
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
            assert (folder / "README.md").read_text(encoding="utf-8") == card(known)
            assert known.facts["data"] == read_json(folder / "facts.json")["data"]
            assert not {family(data) for data in known.facts["data"]} & set(group.without)


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
    return {m[1]: m[0] for text in texts for m in re.finditer(r"^rule (\w+):\n(?:(?: .*)?\n)*", text, flags=re.M)}


def test_every_rule_that_runs_something_has_an_environment_and_a_log():
    rules = _rules()
    assert {"data", "forget", "metaset", "metatrain", "transfer", "publish", "figures", "all"} <= rules.keys()
    for name, text in rules.items():
        runs = bool(re.search(r"^    (shell|run|script|notebook|wrapper|output):", text, flags=re.M))
        kept = [bool(re.search(rf"^    {key}:", text, flags=re.M)) for key in ("conda", "log", "shell")]
        assert kept == [runs] * 3, name
        assert not runs or re.search(r'conda:\s+"\.\./environment\.yml"', text), name
        assert not runs or "> {log} 2>&1" in text, name


def test_every_figure_has_a_caption_and_every_caption_a_figure():
    scripts = {path.stem for path in REPOSITORY.glob("paper_figures/[!_]*.py")} - {"style"}
    captions = {path.stem: path.read_text(encoding="utf-8") for path in REPOSITORY.glob("workflow/captions/*.rst")}
    assert set(captions) == scripts
    assert all(text.strip() for text in captions.values())


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
    published = {"runs", "pilots", "trajectories", "metatraining", "meta_linear", "landscape"}
    published |= {"steps", "movement", "responses"}
    assert {f"results/smoke/{table}.csv" for table in published} <= committed.keys()
    assert {
        f"results/smoke/{name}" for name in ("README.md", "suite.json", "metrics.json", "figures")
    } <= committed.keys()
    for name in ("provenance.json", "cost.csv"):  # they differ between two runs of the same code
        assert not any(f"results/smoke/{name}".startswith(path) for path in committed)
