"""The whole workflow: data -> trajectories, meta-set -> KNOWN -> transfer -> tables and figures.

    snakemake --cores all                          the smoke suite (also: --use-conda)
    snakemake --cores all --config suite=released  another one from benchmarks/suites/

Everything made lives in work/<suite>/; the last rules publish into results/<suite>/. A rule re-runs when the part of the
suite it reads, or the code it can reach (`code_hash`), has changed; dates of files do not count. The jobs are those of
benchmarks/steps.py.
"""

import os
import re
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.10")
sys.path.insert(0, workflow.basedir)
# jobs run the Python that runs Snakemake (with --use-conda, that environment comes before it), one thread each
os.environ.update(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.getenv("PATH", ""))), OMP_NUM_THREADS="1")

from benchmarks.steps import CODE, INSPECTED, LEARNT, MADE, TOLD, figures, steps, words
from benchmarks.store import versions
from benchmarks.suite import load_suite, suite_name
from know.errors import KnowError
from know.files import digest
from know.fingerprint import code_hash, syntax

NAME = config.get("suite", "smoke")
try:
    SUITE = load_suite(NAME)
except KnowError as error:
    sys.exit(f"know: error: {error}")
WORK = f"work/{suite_name(NAME)}"
RESULTS = f"results/{suite_name(NAME)}"
# What trains networks asks a cluster for a GPU where the suite computes on one; all other requests are the profile's.
ON_GPU = {"gres": config.get("gpu", "gpu:1")} if SUITE.device.startswith("cuda") else {}

# On a node of a cluster each job has a temporary folder of its own, which is removed with it.
shell.prefix(
    "set -euo pipefail; "
    'if [ -n "${{SLURM_JOB_ID:-}}" ]; then export TMPDIR="$(mktemp -d)"; trap \'rm -rf "$TMPDIR"\' EXIT; fi; '
)


include: "workflow/compute.smk"
include: "workflow/publish.smk"


rule all:
    default_target: True
    input:
        f"{WORK}/published.json",
        f"{RESULTS}/README.md",
        FIGURES,


# A job that has failed for good stops nothing else. Where the profile asks for it, the pages then show what is there.
onerror:
    said = [Path(file).read_text(encoding="utf-8") for file in ([log] if isinstance(log, str) else log or [])]
    if config.get("publish_incomplete") and any("\nError in " in text for text in said):  # not after Ctrl-C
        shell("python -m benchmarks publish --suite {NAME} --incomplete || true")
