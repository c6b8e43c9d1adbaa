"""The pages: each is a function of the files in results/, and the front page of those in know/pretrained/ too, so that
`python -m benchmarks report --check` can compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.report import claim_tables, tables
from benchmarks.report.browse import index_page
from benchmarks.report.claims import CLAIMS
from benchmarks.report.evidence import DIVERGED_NOTE, OTHERS_NOTE, POLICIES, SEEN_NOTE, Evidence, Verdict, gates
from benchmarks.report.folders import Published
from benchmarks.report.pretrained import card, skill_of
from benchmarks.report.statistics import CONFIDENCE, FEW
from benchmarks.report.template import fill
from benchmarks.suite import SHIPPED, load_shipped, load_suite, suite_names
from know.files import PRETRAINED

COMMON = {
    "noise": tables.NOISE,
    "seen_note": SEEN_NOTE,
    "others_note": OTHERS_NOTE,
    "diverged_note": DIVERGED_NOTE,
    "few": FEW,
    "confidence": 100 * CONFIDENCE,
}
"""What several templates say."""


def suite_pages(published: Published) -> dict[str, str]:
    """The pages of one suite by the name of their file in its folder: README.md, and cards of its own KNOWN."""
    cards = sorted(path.parent for path in published.folder.glob("known/*/facts.json"))
    named = {(folder / "README.md").relative_to(published.folder).as_posix(): card(folder) for folder in cards}
    return {"README.md": suite_page(published), **named}


def suite_page(published: Published) -> str:
    """README.md of one suite, in Markdown."""
    settings, lost = published.settings, published.lost
    inspected = "inspect" not in lost
    return fill(
        "suite.md.j2",
        **COMMON,
        suite=settings,
        lost=lost,
        n=int(published.summary["n"].max()),
        cells=[_cell(published, cell) for cell in published.cells],
        described=tables.described(settings),
        steps=tables.steps(published) if inspected else None,
        movement=tables.movement(published) if inspected else None,
        placebo=tables.placebo(published) if inspected else None,
        cards={length: _card_of(published, length) for length in sorted(published.runs["length"].unique())},
    )


def _card_of(published: Published, length: int) -> str:
    """The path, from the page of a suite, of the card of the KNOWN that it asks."""
    group = published.settings["known"]
    above = "../" * (1 + len(Path(published.name).parts))
    return f"{above}know/pretrained/{group}/{length}/README.md" if group else f"known/{length}/README.md"


def _cell(published: Published, cell: str) -> dict:
    reasons: dict[str, list[str]] = {}
    for arm, reason in published.settings["unavailable"].get(cell, {}).items():
        reasons.setdefault(reason, []).append(arm)
    runs = published.cells[cell]
    passed = {policy: gates(published, cell, policy) for policy in POLICIES if policy in set(runs["policy"])}
    return {
        "title": tables.cell_title(runs.iloc[0]),
        "table": tables.arms_of_cell(published, cell),
        "unavailable": reasons,
        "gates": tables.gates_of_cell(passed),
    }


def front_pages(results: Sequence[Published]) -> dict[str, str]:
    """The pages that look at all suites together, by the name of their file. The core suites stand first."""
    evidence = Evidence(results)
    results = sorted(results, key=lambda one: one.name not in CLAIMS.core)
    return {
        "README.md": front_page(results, evidence),
        "CLAIMS.md": claims_page(evidence),
        "COST.md": cost_page(results),
        "index.html": index_page(results, evidence),
    }


def front_page(results: Sequence[Published], evidence: Evidence) -> str:
    """README.md of all results: what was found, the verdicts, and every cell in one line."""
    described = (PRETRAINED / "skill.csv").is_file() and SHIPPED.is_file()  # elsewhere than in a checkout it is not
    skill = skill_of(load_shipped().skill, PRETRAINED) if described else {"skill": None}
    return fill(
        "front.md.j2",
        **COMMON,
        **skill,
        run=bool(evidence.suites),
        pictured=bool(evidence.suites & set(CLAIMS.core)),
        found=claim_tables.found(evidence),
        waiting=evidence.waits_for(),
        verdicts=claim_tables.front(evidence),
        cells=tables.every_cell(results),
        judging=sorted({suite for claim in CLAIMS.claims for suite in claim.suites or ()}),
        suites=results,
    )


def claims_page(evidence: Evidence) -> str:
    """CLAIMS.md: what every claim is judged by."""
    claims = []
    for claim in CLAIMS.claims:
        contrasts, finding = evidence.contrasts(claim), evidence.claim(claim)
        policies = ("short", "paper", "tuned") if finding.verdict is Verdict.AT_PAPERS_RATE else ("tuned",)
        policies = policies if claim.controls_of else ()
        claims.append(
            {
                "name": claim.name,
                "asked": claim.asked,
                "table": claim_tables.contrasts(evidence, claim) if contrasts else None,
                "said": claim_tables.said(finding),
                "in_distribution": any(contrast.better.arm in evidence.marked for contrast in contrasts),
                "controls": {policy: claim_tables.controls(evidence, claim, policy) for policy in policies},
                "rates": {policy: claim_tables.rates_of_the_grid(evidence, claim, policy) for policy in policies},
            }
        )
    return fill(
        "claims.md.j2",
        policies=POLICIES,
        rules=CLAIMS,
        diverged_note=DIVERGED_NOTE,
        cells=claim_tables.cells(evidence),
        waiting=evidence.waits_for(),
        primary=claim_tables.primary(evidence, CLAIMS.families[0]),
        finalists=claim_tables.finalists(evidence),
        beside=claim_tables.beside(evidence),
        finite=claim_tables.where_finite(evidence),
        of_finalists=claim_tables.primary(evidence, CLAIMS.families[1]),
        claims=claims,
        ablations=claim_tables.ablations(evidence),
        cost_verdict=evidence.cost,
        dear=claim_tables.dear(evidence),
        planned={name: title for name, title in _titles().items() if name not in evidence.suites},
    )


@cache
def _titles() -> dict[str, str]:
    """Titles by name of the suites that are evidence."""
    suites = {name: load_suite(name) for name in suite_names()}
    return {name: suite.title.partition(": ")[2] or suite.title for name, suite in suites.items() if suite.evidence}


def cost_page(results: Sequence[Published]) -> str:
    """COST.md: what every arm costs before fine-tuning, suite by suite, and what the run took."""
    suites = []
    for one in results:
        jobs = one.table("cost")
        run = {} if jobs is None or jobs.empty else {"jobs": jobs}
        suites.append({"title": one.settings["title"], "name": one.name, "arms": tables.costs_of_arms(one), **run})
    return fill("cost.md.j2", paper=CLAIMS.paper, suites=suites)
