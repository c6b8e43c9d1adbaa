"""The networks that ship with the package: one meta-set, and a training per group and S (benchmarks/metatraining.yaml).

    snakemake --snakefile workflow/metatraining.smk --cores all        (or: make pretrained)

The meta-set lies in work/shipped/, the networks in know/pretrained/, under version control.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.10")
sys.path.insert(0, str(Path(workflow.basedir).parent))
os.environ.update(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.getenv("PATH", ""))), OMP_NUM_THREADS="1")

from know.fingerprint import code_hash
from benchmarks.steps import LEARNT as NAMES
from benchmarks.suite import load_shipped

SHIPPED = load_shipped()
WORK = "work/shipped"
PLACES = [f"{name}/{length}" for name, group in SHIPPED.groups.items() for length in group.lengths]
SHARDS = expand(f"{WORK}/metaset/{{shard}}/manifest.json", shard=range(SHIPPED.metatraining.shards))


rule all:
    default_target: True
    input:
        SHARDS,
        expand("know/pretrained/{place}/{file}", place=PLACES, file=NAMES),


rule metaset:
    output:
        f"{WORK}/metaset/{{shard}}/manifest.json",
    params:
        code=code_hash("benchmarks.metaset:make_metaset"),
        settings=SHIPPED.metatraining.model_dump(mode="json"),
    log:
        f"{WORK}/logs/metaset/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/metaset/{{shard}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks pretrained-metaset --shard {wildcards.shard} > {log} 2>&1"


rule metatrain:
    input:
        SHARDS,
    output:
        update(expand("know/pretrained/{{group}}/{{length}}/{file}", file=NAMES)),
    params:
        code=code_hash("benchmarks.metatraining:fit_known"),
        settings=SHIPPED.metatraining.model_dump(mode="json"),
        without=lambda wildcards: SHIPPED.groups[wildcards.group].without,
    log:
        f"{WORK}/logs/metatrain/{{group}}.{{length}}.log",
    benchmark:
        f"{WORK}/benchmarks/metatrain/{{group}}.{{length}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks pretrained --group {wildcards.group} --length {wildcards.length} > {log} 2>&1"
