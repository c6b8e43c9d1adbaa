"""The whole workflow: data -> trajectories, meta-set -> KNOWN -> transfer -> tables and figures.

    snakemake --cores all                          the smoke suite (also: --use-conda)
    snakemake --cores all --config suite=cpu       another one from benchmarks/suites/

Everything made lives in work/<suite>/; the last rules publish into results/<suite>/. A rule re-runs when the part of the
suite it reads, or the code it can reach (`code_hash`), has changed; dates of files do not count.
"""

import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from snakemake.utils import min_version

min_version("9.10")
sys.path.insert(0, workflow.basedir)
# jobs run the Python that runs Snakemake (with --use-conda, that environment comes before it), one thread each
os.environ.update(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.getenv("PATH", ""))), OMP_NUM_THREADS="1")

from benchmarks.cluster import Requests
from know.files import code_hash, digest, syntax
from know.keras import hashes
from benchmarks.suite import Suite, load_suite

NAME = config.get("suite", "smoke")
SUITE = load_suite(NAME)
WORK = f"work/{NAME}"
RESULTS = f"results/{NAME}"
ASK = Requests(
    NAME,
    SUITE.device,
    config.get("cluster"),
    Path(workflow.basedir, "workflow/resources.yaml"),
    alone=Path(RESULTS, "failed.csv").is_file(),
)

# on a node of a cluster, a temporary folder for each job, which goes with it
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


# What failed for good stops nothing else; where the site wants it, the pages then show what is there and what is not.
onerror:
    said = [Path(file).read_text(encoding="utf-8") for file in ([log] if isinstance(log, str) else log or [])]
    if ASK.site["publish_incomplete"] and any("\nError in " in text for text in said):  # no mere Ctrl-C
        shell("python -m benchmarks publish --suite {NAME} --incomplete || true")
