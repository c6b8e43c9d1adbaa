"""The numbers that people read first. Each is a link to its table, and the title of the link says what it is. Here
it is computed anew from the records, by none of the code that makes the pages.
"""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

REPOSITORY = Path(__file__).parents[2]
DOCS, RESULTS = REPOSITORY / "docs", REPOSITORY / "results"
PAGES = [*(DOCS / f"{name}.md" for name in ("FINDINGS", "DETAILS")), REPOSITORY / "README.md", RESULTS / "README.md"]
COUNTING = [REPOSITORY / "README.md", DOCS / "FINDINGS.md", DOCS / "DETAILS.md"]
"""Pages whose words say how many suites have been run."""
INTERVAL = r"[+-]?\d+\.\d+ \[[+-]?\d+\.\d+, [+-]?\d+\.\d+\]"
SHARE = r"\d+(?:\.\d)? %"
LINK = re.compile(rf'\[({INTERVAL}|{SHARE})\]\((\S+)\s+"([^"]+)"\)')
CORE = yaml.safe_load((REPOSITORY / "benchmarks/report/claims.yaml").read_text(encoding="utf-8"))["core"]


def numbers(page: Path) -> list[tuple[str, ...]]:
    """Of every number on a page: its text, the page that it links to, and what it is."""
    text = " ".join(page.read_text(encoding="utf-8").split())
    return [(shown, str((page.parent / link).resolve()), title) for shown, link, title in LINK.findall(text)]


def recomputed(link: Path, title: str) -> str:
    """The number that a link to a page of the results, of the networks that ship or of the exploration should show."""
    what, *axes = title.rsplit(", ", 3 if link.parent.name == "explored" else 2)
    if link.name == "CLAIMS.md":
        (better, worse), (policy, pooled) = what.split(" - "), axes
        assert pooled == "pooled"
        return signed(*mean_of(samples(link.parent, better, worse, policy)))
    if link.parent.name == "pretrained":
        skill = pd.read_csv(link.parent / "skill.csv").query("role == 'all'")
        values = skill.pivot(index=["network", "trajectory"], columns="arm")
        if axes == ["weight error"]:
            return "{:.3f} [{:.3f}, {:.3f}]".format(*mean_of(by_network(values["weight_error"][what])))
        assert axes == ["source"]
        better, worse = (100 * values["source_accuracy_recalibrated"][arm] for arm in what.split(" - "))
        return signed(*mean_of(by_network(better - worse)))
    if link.parent.name == "explored":
        kind, network, budget = axes
        networks = sorted(set(pd.read_csv(link)["network"])) if network == "all networks" else [network]
        pairs = [[explored(link, attempt, kind, each, budget) for attempt in what.split(" - ")] for each in networks]
        return signed(*mean_of([better - worse for better, worse in pairs]))
    what, policy, *cell = title.split(", ")
    if policy in ("step", "shrink", "linear"):  # of the weights' norm, or a part of the step
        steps, (predictor, _, factor) = pd.read_csv(link.parent / "steps.csv"), what.rpartition("_x")
        own = steps[(steps["predictor"] == predictor) & (steps["depth"] == math.log2(int(factor)))]
        share = 100 * own.loc[own["role"] == "all", policy].mean()
        return f"{share:.1f} %" if policy == "step" else f"{share:.0f} %"
    runs = pd.read_csv(link.parent / "runs.csv")
    (cell,) = cell or runs["cell"].unique()
    return signed(*mean_of([differences(runs[runs["cell"] == cell], *what.split(" - "), policy)]))


def explored(table: Path, attempt: str, kind: str, network: str, budget: str) -> pd.Series:
    """Accuracy in points by trajectory. kind: "source"; "target" is at the rate that is best for the others, and "one
    rate" at the rate that is best for all.

    theta_0 takes no budget, so its one value stands beside those of all.
    """
    budget = "forgetting" if attempt == "theta_0" else budget
    own = pd.read_csv(table).query("network == @network and budget == @budget and attempt == @attempt")
    if kind == "source":
        return 100 * own.set_index("trajectory")["source_accuracy"]
    by_rate = 100 * own.groupby(["trajectory", "learning_rate"])["validation_accuracy"].mean().unstack()
    if kind == "one rate":
        return by_rate[by_rate.mean().idxmax()]
    assert kind == "target"
    rates = {each: by_rate.drop(each).mean().idxmax() for each in by_rate.index}
    return pd.Series({each: by_rate.loc[each, rate] for each, rate in rates.items()})


def by_network(values: pd.Series) -> list[pd.Series]:
    return [own for _, own in values.groupby("network")]


def differences(runs: pd.DataFrame, better: str, worse: str, policy: str) -> pd.Series:
    """In points, by trajectory, fine-tunes averaged. policy: of rates, or "source": accuracy before fine-tuning."""
    if policy == "source":
        column = "source_accuracy_recalibrated"
    elif "policy" in runs:
        column, runs = "accuracy", runs[runs["policy"] == policy]
    else:  # the first comparison
        column, runs = "accuracy", runs[runs["recipe"] == {"short": "published", "tuned": "tuned"}[policy]]
    means = runs.groupby(["trajectory", "arm"])[column].mean().unstack()
    return (100 * (means[better] - means[worse])).dropna()


def samples(results: Path, better: str, worse: str, policy: str) -> list[pd.Series]:
    """Differences by trajectory, one series for each source and network, over the informative cells of core."""
    found: dict[tuple[str, str], list[pd.Series]] = {}
    for suite in (suite for suite in CORE if (results / suite / "runs.csv").is_file()):
        runs, snapshots = (pd.read_csv(results / suite / f"{name}.csv") for name in ("runs", "trajectories"))
        runs = runs.query("track == 'overflow' and rate == 0.5 and length == 5 and share == 1 and policy == @policy")
        for _, own in runs.groupby("cell"):
            arms, (source, network) = set(own["arm"]), own[["source", "network"]].iloc[0]
            same = snapshots.query("source == @source and network == @network")
            if {better, worse} <= arms and informative(own, same, policy):
                found.setdefault((source, network), []).append(differences(own, better, worse, policy))
    return [pd.concat(own).groupby(level="trajectory").mean() for own in found.values()]


def informative(runs: pd.DataFrame, snapshots: pd.DataFrame, policy: str) -> bool:
    """Whether the data gap, the use of the source and the forgetting of a cell lie above 0."""
    table = snapshots[snapshots["trajectory"].isin(runs["trajectory"]) & (snapshots["track"] == "overflow")]
    at = [table[table["snapshot"] == k].set_index("trajectory") for k in (0, 1)]
    left_out = at[1]["left_out_accuracy_theta_0"] - at[1]["left_out_accuracy"]
    forgotten = left_out - (at[0]["test_accuracy"] - at[1]["test_accuracy"])
    gaps = [
        differences(runs, better, worse, policy) for better, worse in (("oracle_steps", "naive"), ("naive", "scratch"))
    ]
    return all(mean_of([gap])[1] > 0 for gap in [*gaps, forgotten])


def mean_of(samples: list[pd.Series]) -> tuple[float, float, float]:
    """Mean over samples that count equally, with its 95 % interval by Welch's degrees of freedom."""
    n = np.array([len(each) for each in samples])
    parts = np.array([each.var() for each in samples]) / n / len(samples) ** 2
    mean = float(np.mean([each.mean() for each in samples]))
    half = stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2 / (n - 1)).sum()) * math.sqrt(parts.sum())
    return mean, mean - half, mean + half


def signed(*values: float) -> str:
    mean, *ends = (round(float(value), 9) + 0.0 for value in values)
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(round(mean, 2) + 0.0, *ends)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_every_number_is_that_of_the_records(page):
    found = numbers(page)
    assert found
    wrong = {
        f"{title} ({link})": f"{shown}, and the records say {now}"
        for shown, link, title in found
        if shown != (now := recomputed(Path(link), title))
    }
    assert wrong == {}


@pytest.mark.parametrize("page", [PAGES[0], RESULTS / "README.md"], ids=lambda page: page.name)
def test_a_number_stands_on_the_page_that_it_links_to(page):
    lacking = [
        (shown, title, link)
        for shown, link, title in numbers(page)
        if link.endswith("CLAIMS.md") and shown not in Path(link).read_text(encoding="utf-8")
    ]
    assert lacking == []


COUNTS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.mark.parametrize("page", COUNTING, ids=lambda page: page.parent.name + "/" + page.name)
def test_the_words_count_the_suites_that_have_been_run(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    said = re.findall(r"(\w+) of (?:the )?twelve|of the (\w+) cells|all (\w+)(?: core)? cells", text)
    run = [suite for suite in CORE if (RESULTS / suite / "runs.csv").is_file()]
    assert {"".join(words) for words in said} == {COUNTS[len(run)]}
    tables = ([pd.read_csv(RESULTS / suite / f"{name}.csv") for name in ("runs", "trajectories")] for suite in run)
    seen = sum(informative(runs[runs["policy"] == "tuned"], snapshots, "tuned") for runs, snapshots in tables)
    assert set(re.findall(r"of the (\w+) informative cells", text)) == {COUNTS[seen]}


@pytest.mark.parametrize("page", COUNTING, ids=lambda page: page.parent.name + "/" + page.name)
def test_every_number_of_the_words_links_to_its_table(page):
    text = re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)  # commands have numbers of their own
    text = LINK.sub("", " ".join(text.split()))
    text = re.sub(r"\]\(\S+?\)", "]", text)  # the target of a link is no claim
    text = re.sub("r = 0.5|95 %|3.11 or newer", "", text)
    assert re.findall(rf"{INTERVAL}|[+-]?\d+\.\d+|{SHARE}", text) == []
