"""The page to browse: one file that holds every run, needs nothing else, and works in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pytest
from planted_results import records, write_results

from benchmarks.report import browse
from benchmarks.report.folders import load_all
from benchmarks.report.publish import check, write_pages
from know.errors import KnowError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def html(published):
    return (published / "index.html").read_text(encoding="utf-8")


def data(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.S)[1])


class Tables(HTMLParser):
    """The rows of every section, as texts of their cells."""

    def __init__(self, html: str):
        super().__init__()
        self.sections, self.cell = {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self.rows = self.sections[attrs["data-cell"], attrs["data-policy"]] = []
        elif tag == "tr" and "data-group" in attrs:
            self.rows.append([])
        elif tag == "td" and self.sections and self.rows:
            self.cell = []

    def handle_data(self, text):
        if self.cell is not None:
            self.cell.append(text)

    def handle_endtag(self, tag):
        if tag == "td" and self.cell is not None:
            self.rows[-1].append("".join(self.cell).strip())
            self.cell = None


def test_every_fine_tune_of_every_suite_is_in_the_page(published, html):
    held = data(html)
    for one in load_all(published):
        rows = [
            (cell, policy, arm, trajectory, accuracy)
            for cell, policies in held[one.name].items()
            for policy, here in policies.items()
            for arm, own in here["arms"].items()
            for trajectory, accuracies in zip(here["trajectories"], own["runs"], strict=True)
            for accuracy in accuracies
        ]
        columns = ["cell", "policy", "arm", "trajectory"]
        expected = one.runs[columns].assign(accuracy=(100 * one.runs["accuracy"]).round(2))
        found = pd.DataFrame(rows, columns=expected.columns)
        order = list(expected.columns)
        pd.testing.assert_frame_equal(
            found.sort_values(order).reset_index(drop=True), expected.sort_values(order).reset_index(drop=True)
        )


def test_without_javascript_every_arm_stands_in_a_table_with_the_numbers_of_the_records(published, html):
    sections = Tables(html).sections
    for one in load_all(published):
        for (cell, policy), rows in one.summary.groupby(["cell", "policy"]):
            by_arm = rows.set_index("arm")
            table = sections[f"{one.name}|{cell}", policy]
            assert {row[0].removesuffix(" †") for row in table} == set(by_arm.index)
            for row in table:
                own = by_arm.loc[row[0].removesuffix(" †")]
                assert row[1] == f"{own['accuracy']:.2f}"
                assert (row[2] == "") == (row[0] == "naive")
                if row[2]:
                    assert float(row[2]) == pytest.approx(own["difference"], abs=0.0051)
                    limits = [float(each) for each in row[3].strip("[]").split(",")]
                    assert limits == pytest.approx([own["low"], own["high"]], abs=0.0051)


def test_at_a_glance_every_cell_of_evidence_has_its_differences_at_each_rate(published, html):
    (two,) = [one for one in load_all(published) if one.name == "two"]
    views = re.findall(r"<details.*?</details>", html, flags=re.S)
    assert len(views) == two.summary["policy"].nunique()
    for view, (_, rows) in zip(views, two.summary.groupby("policy", sort=False), strict=True):
        assert view.count("data-cell") == 0
        assert len(re.findall(r"<th><a ", view)) == rows["cell"].nunique() == 1
        ((cell, policy),) = re.findall(r'href="#cell=([^&"]*)&amp;policy=(\w+)"', view)
        assert (unquote(cell), policy) in Tables(html).sections
        assert {policy} == set(rows["policy"])
        by_arm = rows.set_index("arm")
        for label, arm in (("ours ×2", "known_x2"), ("TaskVector ×2", "linear_x2")):
            (cell,) = re.findall(rf"<td>{label}</td><td>.*?<br>(.*?)</td>", view)
            found = [float(value) for value in re.findall(r"[-+][\d.]+", cell)]
            assert found == pytest.approx(by_arm.loc[arm, ["difference", "low", "high"]].tolist(), abs=0.0051)
        assert "<td>WNN ×2</td><td></td>" in view  # it was not run


def test_a_page_that_grows_too_large_is_refused(published, monkeypatch):
    monkeypatch.setattr(browse, "LIMIT", 1000)
    with pytest.raises(KnowError, match="1,000 are its limit"):
        check(published)


def test_the_page_needs_nothing_else(html):
    assert not re.search(r"https?://|<link|<img|<script src|@import|url\(", html)
    assert all(not target.startswith("/") for target in re.findall(r'href="([^"]*)"', html))


def test_a_title_cannot_bring_markup_into_the_page(tmp_path):
    write_results(tmp_path / "one", records(), title="a <b>bold</b> </script> title")
    write_pages(tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    assert html.count("</script>") == 2


@pytest.fixture
def dom(published, tmp_path):
    """A function: the page as a browser has made it, at an address and after a script has acted on it."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")

    def loaded(address: str = "", script: str = "") -> str:
        page = tmp_path / "index.html"
        html = (published / "index.html").read_text(encoding="utf-8")
        page.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=2000",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command = [BROWSER, *options, "--dump-dom", f"file://{page}{address}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return loaded


def seen(dom: str) -> list[tuple[str, str]]:
    found = re.findall(r'<section data-cell="([^"]*)" data-policy="([^"]*)"( hidden="")?>', dom)
    assert len(found) > 2
    return [(cell, policy) for cell, policy, hidden in found if not hidden]


def shown(dom: str) -> list[tuple[str, str]]:
    """Group and arm of the rows that are to be seen."""
    ((cell, policy),) = seen(dom)
    section = dom[dom.index(f'data-cell="{cell}" data-policy="{policy}"') :].partition("</section>")[0]
    rows = re.findall(r'<tr data-group="(\w+)"( hidden="")?><td>([^<]*)', section)
    return [(group, arm) for group, hidden, arm in rows if not hidden]


def test_a_browser_shows_one_cell_at_its_tuned_rate_or_what_the_address_asks_for(published, dom):
    ((first, policy),) = seen(dom())
    assert policy == "tuned"
    (other,) = {one.name for one in load_all(published)} - {first.partition("|")[0]}
    cell = f"{other}|{next(iter(next(one for one in load_all(published) if one.name == other).cells))}"
    asked = dom(f"#cell={cell}&policy=short&group=control")
    assert seen(asked) == [(cell, "short")]
    assert {group for group, _ in shown(asked)} == {"reference", "control"}


def test_a_link_of_an_overview_leads_to_its_cell_at_the_rate_of_the_overview(html, dom):
    cell, policy = re.search(r'<th><a href="#cell=([^&"]*)&amp;policy=(\w+)"', html).groups()
    assert policy == "short"
    assert seen(dom(script="document.querySelector('details th a').click();")) == [(unquote(cell), policy)]


def test_a_column_is_sorted_downwards_then_upwards_then_as_it_was(dom):
    def accuracies(script: str) -> list[float]:
        page = dom(script=script)
        section = page[page.index('data-policy="tuned"') :].partition("</section>")[0]
        return [float(text) for text in re.findall(r"data-arm=[^>]*>([\d.]+)<", section)]

    click = "document.querySelector('section:not([hidden]) th:nth-child(2) button').click();"
    before, down, up, again = (accuracies(click * times) for times in range(4))
    assert down == sorted(before, reverse=True) != before
    assert up == sorted(before)
    assert again == before
    assert shown(dom(script=3 * click)) == shown(dom())


def test_an_accuracy_opens_its_runs_beside_those_of_naive(published, dom):
    click = "document.querySelector('section:not([hidden]) a[data-arm=known_x2]').click();"
    opened = dom(script=click)
    dialog = opened[opened.index('<dialog id="runs"') :].partition("</dialog>")[0]
    assert dialog.startswith('<dialog id="runs" aria-labelledby="of" open="">')
    rows = [re.findall(r"<t[hd]>([^<]*)", row) for row in dialog.split("<tr>")[1:]]
    assert [text.partition(",")[0] for text in rows[0]] == ["trajectory", "naive", "known_x2"]
    ((place, policy),) = seen(opened)
    suite, _, cell = place.partition("|")
    (runs,) = (one.runs for one in load_all(published) if one.name == suite)
    runs = runs.set_index(["cell", "policy", "trajectory", "arm", "fine_tune"]).sort_index()["accuracy"]
    for name, *texts in rows[1:]:
        for arm, text in zip(("naive", "known_x2"), texts, strict=True):
            assert text == ", ".join(f"{100 * value:.2f}" for value in runs.loc[cell, policy, name, arm])
    assert {row[0] for row in rows[1:]} == set(runs.loc[cell, policy].index.get_level_values("trajectory"))
