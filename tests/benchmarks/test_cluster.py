"""What jobs ask a cluster for: in step with what was measured, more with every attempt, a GPU where one is used."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import cluster
from know.errors import KnowError

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY / cluster.TABLE
KINDS = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
PROFILE = REPOSITORY / "profiles" / "slurm"
TEXT = "".join((REPOSITORY / f"workflow/{name}.smk").read_text(encoding="utf-8") for name in ("compute", "publish"))
RULES = set(re.findall(r"^rule (\w+):\n(?:(?: .*)?\n)*?    shell:", TEXT, flags=re.M))


def requests(suite="smoke", device="cpu", site=None):
    return cluster.Requests(suite, device, site, TABLE)


def asked(found: dict, key: str, attempt: int = 1) -> int:
    return found[key]({}, attempt=attempt)


def test_every_request_follows_from_what_was_measured():
    assert KINDS
    for rules in KINDS.values():
        for entry in rules.values():
            measured = entry["seconds"], entry["peak_mb"]
            assert {key: entry[key] for key in ("minutes", "memory_mb")} == cluster.request(*measured)


@pytest.mark.parametrize(("seconds", "peak"), [(0, 0), (1, 1), (199, 700), (201, 7_000), (40_000, 90_000)])
def test_a_request_leaves_the_documented_room(seconds, peak):
    found = cluster.request(seconds, peak)
    assert 60 * found["minutes"] >= 3 * seconds
    assert found["memory_mb"] >= 1.5 * peak + cluster.OVERHEAD_MB
    assert found["minutes"] > 0


def test_the_table_has_the_longest_and_the_largest_job_of_a_kind():
    rows = [("cpu/a", "forget/x", 100, 900), ("cpu-wide/b", "forget/y", 300, 200), ("smoke", "forget/x", 7, 7)]
    measured = {}
    for suite, job, seconds, peak in rows:
        measured.setdefault(suite, []).append({"job": job, "seconds": seconds, "peak_memory_mb": peak})
    found = cluster.table(measured)
    assert found["cpu"]["forget"] == {"seconds": 300, "peak_mb": 900, **cluster.request(300, 900)}
    assert found["smoke"]["forget"]["seconds"] == 7


def test_the_table_knows_every_kind_of_suite_that_has_been_run():
    run = {
        path.parent.relative_to(REPOSITORY / "results").as_posix() for path in REPOSITORY.glob("results/**/cost.csv")
    }
    assert run
    for suite in run:
        with (REPOSITORY / "results" / suite / "cost.csv").open(encoding="utf-8", newline="") as handle:
            jobs = {row["job"].partition("/")[0] for row in csv.DictReader(handle)}
        assert jobs <= KINDS[cluster.kind(suite)].keys(), suite


def test_every_rule_that_runs_something_asks_for_something():
    assert {"data", "forget", "transfer", "publish", "figures"} <= RULES
    for suite in ("smoke", "cpu/resnet8", "never-run"):
        found = requests(suite)
        for rule in RULES:
            assert asked(found.of(rule), "runtime") > 0
            assert asked(found.of(rule), "mem_mb") > 0
    assert {rule for rule in RULES if f'ASK.of("{rule}")' in TEXT} == RULES


@pytest.mark.parametrize(("key", "most"), [("runtime", "minutes"), ("mem_mb", "memory_mb")])
def test_every_attempt_asks_for_twice_as_much_up_to_the_most_of_the_site(key, most):
    found = requests("cpu/resnet8").of("transfer")
    assert [asked(found, key, attempt) / asked(found, key) for attempt in (1, 2)] == [1, 2]
    limit = asked(found, key) * 3
    found = requests("cpu/resnet8", site={"most": {most: limit}}).of("transfer")
    assert [asked(found, key, attempt) for attempt in (2, 3, 9)] == [limit * 2 // 3, limit, limit]


def test_a_suite_of_no_measured_kind_asks_for_the_most_of_any():
    found = requests("never/run")
    for rule in ("forget", "transfer"):
        assert asked(found.of(rule), "runtime") == max(rules[rule]["minutes"] for rules in KINDS.values())
        assert asked(found.of(rule), "mem_mb") == max(rules[rule]["memory_mb"] for rules in KINDS.values())


def test_what_trains_networks_asks_for_a_gpu_where_the_suite_has_one():
    site = {"partitions": {"cpu": "slow", "gpu": "fast"}, "gpu": "gpu:large:1"}
    for device, gpu in (("cpu", set()), ("cuda", set(cluster.GPU_RULES)), ("cuda:0", set(cluster.GPU_RULES))):
        found = requests(device=device, site=site)
        for rule in RULES:
            one = found.of(rule)
            assert one["slurm_partition"] == ("fast" if rule in gpu else "slow")
            assert one.get("gres") == ("gpu:large:1" if rule in gpu else None)
    assert set(cluster.GPU_RULES) < RULES


def test_small_jobs_share_submissions_on_a_cluster_only():
    assert {requests("smoke").group(rule) for rule in RULES - {"data", "cost"}} == {None}
    on_cluster = requests("smoke", site={})
    assert on_cluster.group("metaset") == on_cluster.group("metatrain") == "meta"
    assert requests("cpu/resnet8", site={}).group("transfer") is None
    alone = cluster.Requests("smoke", "cpu", {}, TABLE, alone=True)
    assert {alone.group(rule) for rule in RULES - {"data", "cost"}} == {None}


@pytest.mark.parametrize("site", [{"partition": {}}, {"partitions": {"tpu": "x"}}, {"most": {"hours": 1}}])
def test_a_key_that_does_not_exist_is_refused(site):
    with pytest.raises(KnowError, match="unknown key"):
        requests(site=site)


def test_the_profile_is_whole_and_names_no_site():
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text(encoding="utf-8"))
    site = yaml.safe_load((PROFILE / "cluster.yaml").read_text(encoding="utf-8"))["cluster"]
    assert profile["executor"] == "slurm"
    assert (PROFILE / profile["configfile"]).is_file()
    assert profile["retries"] > 0
    assert profile["keep-going"] is True
    assert set(profile["group-components"]) <= set(cluster.GROUPS.values())
    assert set(site) == set(cluster.SITE)
    assert site["partitions"] == {"cpu": "", "gpu": ""}
    assert site["gpu"] == cluster.SITE["gpu"]
    assert not {"account", "slurm_account", "qos"} & set(profile)


def test_requests_are_no_reason_to_make_anything_anew():
    """Snakemake records inputs, code and params of a job; requests stand in none of them."""
    for block in re.findall(r"^    params:\n(?:        .*\n)+", TEXT, flags=re.M):
        assert "ASK" not in block
        assert "resources" not in block


def test_the_table_is_made_by_its_script(tmp_path):
    for name in ("results/smoke/cost.csv", "workflow/resources.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    script = REPOSITORY / "benchmarks" / "resources.py"
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True)
    made = yaml.safe_load((tmp_path / "workflow/resources.yaml").read_text(encoding="utf-8"))
    with (REPOSITORY / "results/smoke/cost.csv").open(encoding="utf-8", newline="") as handle:
        assert made == cluster.table({"smoke": csv.DictReader(handle)})
