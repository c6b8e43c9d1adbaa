"""The networks that ship with the package: one meta-set, and a training per group and S (benchmarks/metatraining.yaml).

    snakemake --snakefile workflow/metatraining.smk --cores all        (or: make pretrained)

The meta-set lies in work/shipped/, the networks in know/pretrained/, under version control. Two more rules say how good
they are: variants of the meta-training, and skill on trajectories whose theta_{-1} is known.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.10")
sys.path.insert(0, str(Path(workflow.basedir).parent))
os.environ.update(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.getenv("PATH", ""))), OMP_NUM_THREADS="1")

from know import keras
from know.fingerprint import code_hash
from benchmarks.steps import LEARNT, NETWORKS, words
from benchmarks.store import versions
from benchmarks.suite import load_shipped, load_suite
from benchmarks.settings import variants

SHIPPED = load_shipped()
TRAINED = load_suite(SHIPPED.skill.suite)  # whose recipes make the trajectories of the rule `skill`
WORK = "work/shipped"
PLACES = [f"{name}/{length}" for name, group in SHIPPED.groups.items() for length in group.lengths]
VARIANTS = expand(f"{WORK}/variants/{{variant}}.csv", variant=variants(SHIPPED.metatraining))
SKILL = expand(f"{WORK}/skill/{{network}}.csv", network=SHIPPED.skill.networks)
PAGES = ["README.md", "variants.csv", "skill.csv", "windows.csv"]
SHARDS = expand(f"{WORK}/metaset/{{shard}}/manifest.json", shard=range(SHIPPED.metatraining.shards))


rule all:
    default_target: True
    input:
        SHARDS,
        expand("know/pretrained/{place}/{file}", place=PLACES, file=LEARNT),
        expand("know/pretrained/{file}", file=PAGES),


rule metaset:
    output:
        f"{WORK}/metaset/{{shard}}/manifest.json",
    params:
        code=code_hash("benchmarks.metaset:make_metaset"),
        libraries=versions(),
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
        update(expand("know/pretrained/{{group}}/{{length}}/{file}", file=LEARNT)),
    params:
        code=code_hash("benchmarks.metatraining:fit_known"),
        libraries=versions(),
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


rule variant:
    input:
        SHARDS,
    output:
        f"{WORK}/variants/{{variant}}.csv",
    params:
        code=code_hash("benchmarks.metatraining:fit_variant"),
        libraries=versions(),
        settings=SHIPPED.metatraining.model_dump(mode="json"),
    log:
        f"{WORK}/logs/variant/{{variant}}.log",
    benchmark:
        f"{WORK}/benchmarks/variant/{{variant}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks pretrained-variant --variant {wildcards.variant} > {log} 2>&1"


rule skill:
    input:
        expand("know/pretrained/{group}/5/{file}", group=SHIPPED.skill.group, file=NETWORKS),
    output:
        f"{WORK}/skill/{{network}}.csv",
        f"{WORK}/skill/{{network}}.movement.csv",
    params:
        code=code_hash("benchmarks.skill:measure"),
        libraries=versions(),
        settings=SHIPPED.skill.model_dump(mode="json"),
        trained=[part.model_dump(mode="json") for part in (TRAINED.pretraining, TRAINED.forgetting)],
        authors=keras.hashes(),
    log:
        f"{WORK}/logs/skill/{{network}}.log",
    benchmark:
        f"{WORK}/benchmarks/skill/{{network}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks pretrained-skill --network {wildcards.network} > {log} 2>&1"


rule page:
    input:
        SHARDS,
        VARIANTS,
        SKILL,
        expand("know/pretrained/{place}/facts.json", place=PLACES),
    output:
        update(expand("know/pretrained/{file}", file=PAGES)),
    params:
        code=code_hash("benchmarks.report.pretrained:publish"),
        words=words(),
        settings=SHIPPED.model_dump(mode="json"),
    log:
        f"{WORK}/logs/page.log",
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks pretrained-page > {log} 2>&1"
