# From data to run records. Every job is one process on one thread; Snakemake fills the cores.

# What stands beside the project decides about arms that ask the authors' networks, where the suite has such arms.
AUTHORS = hashes() if SUITE.arms.methods != "all" or SUITE.arms.also else {}
learnt = functools.cache(
    lambda length: [os.path.relpath(SUITE.known_folder(Path(WORK), length) / file) for file in LEARNT]
)
# A suite looks through all of its cells for each of these; a job asks only its own.
CELL, CELLS_OF = {cell.slug: cell for cell in SUITE.cells}, {}
for one in CELL.values():
    CELLS_OF.setdefault(one.origin.slug, []).append(one)
cell_of = lambda slug: CELL.get(slug) or SUITE.cell(slug)
of_origin = lambda ask, slug: ask(
    SimpleNamespace(cells=CELLS_OF[slug], forgetting=SUITE.forgetting), CELLS_OF[slug][0].origin
)
META = SUITE.metatraining.model_dump(mode="json") if SUITE.metatraining else {"shards": 0}


rule data:
    output:
        f"{WORK}/data.json",
    params:
        suite=NAME,
        code=code_hash("benchmarks.data:load"),
        datasets=SUITE.datasets,
    log:
        f"{WORK}/logs/data.log",
    benchmark:
        f"{WORK}/benchmarks/data.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks data --suite {params.suite} > {log} 2>&1"


rule forget:
    input:
        rules.data.output,
    output:
        f"{WORK}/trajectories/{{origin}}/manifest.json",
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.trajectories:make_origin"),
        settings=lambda wildcards: of_origin(Suite.forgetting_of, wildcards.origin).model_dump(mode="json"),
        pretraining=SUITE.pretraining.model_dump(mode="json"),
        trajectories=lambda wildcards: SUITE.trajectory_ids + of_origin(Suite.tracks, wildcards.origin),
        references=SUITE.arms.references,
    log:
        f"{WORK}/logs/forget/{{origin}}.log",
    benchmark:
        f"{WORK}/benchmarks/forget/{{origin}}.tsv"
    threads: SUITE.processes
    resources:
        **ON_GPU,
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks forget --suite {params.suite} --origin {wildcards.origin} --processes {threads} > {log} 2>&1"


rule metaset:
    input:
        rules.data.output,
    output:
        f"{WORK}/metaset/{{shard}}/manifest.json",
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.metaset:make_metaset"),
        settings=META,
    log:
        f"{WORK}/logs/metaset/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/metaset/{{shard}}.tsv"
    priority: 2  # KNOWN waits for it, and every cell waits for KNOWN
    resources:
        **ON_GPU,
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks metaset --suite {params.suite} --shard {wildcards.shard} > {log} 2>&1"


rule metatrain:
    input:
        expand(rules.metaset.output, shard=range(META["shards"])),
    output:
        expand(f"{WORK}/known/{{{{length}}}}/{{file}}", file=LEARNT),
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.metatraining:fit_known"),
        settings=META,
    log:
        f"{WORK}/logs/metatrain/{{length}}.log",
    benchmark:
        f"{WORK}/benchmarks/metatrain/{{length}}.tsv"
    priority: 1
    resources:
        **ON_GPU,
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks metatrain --suite {params.suite} --length {wildcards.length} > {log} 2>&1"


rule transfer:
    input:
        lambda wildcards: f"{WORK}/trajectories/{cell_of(wildcards.cell).origin.slug}/manifest.json",
        lambda wildcards: learnt(cell_of(wildcards.cell).length),
    output:
        runs=f"{WORK}/transfers/{{cell}}/runs.csv",
        pilots=f"{WORK}/transfers/{{cell}}/pilots.csv",
        choice=f"{WORK}/transfers/{{cell}}/choice.json",
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.transfer:run_cell"),
        settings=[SUITE.transfer.model_dump(mode="json"), SUITE.arms.model_dump_json()],
        trajectories=SUITE.trajectory_ids,
        authors=AUTHORS,
    log:
        f"{WORK}/logs/transfer/{{cell}}.log",
    benchmark:
        f"{WORK}/benchmarks/transfer/{{cell}}.tsv"
    threads: SUITE.processes
    priority: 1  # the longest jobs first, so that no core is left with one at the end
    resources:
        **ON_GPU,
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks transfer --suite {params.suite} --cell {wildcards.cell} --processes {threads} > {log} 2>&1"


rule landscape:
    input:
        f"{WORK}/trajectories/{SUITE.cells[0].origin.slug}/manifest.json",
        learnt(SUITE.cells[0].length),
    output:
        f"{WORK}/landscape.csv",
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.landscape:make_landscape"),
    log:
        f"{WORK}/logs/landscape.log",
    benchmark:
        f"{WORK}/benchmarks/landscape.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks landscape --suite {params.suite} > {log} 2>&1"


rule inspect:
    input:
        expand(rules.forget.output, origin=[origin.slug for origin in SUITE.origins]),
        *map(learnt, SUITE.lengths),
    output:
        expand(f"{WORK}/inspection/{{table}}.csv", table=INSPECTED),
    params:
        suite=NAME,
        code=code_hash("benchmarks.inspection:inspect_suite"),
        settings=SUITE.arms.model_dump(mode="json"),
        trajectories=SUITE.trajectory_ids,
        authors=AUTHORS,
    log:
        f"{WORK}/logs/inspect.log",
    benchmark:
        f"{WORK}/benchmarks/inspect.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks inspect --suite {params.suite} > {log} 2>&1"


# Alone on the machine, since it measures times; see `benchmarks.cost`.
rule cost:
    input:
        rules.data.output,
        *map(learnt, SUITE.lengths),
    output:
        f"{WORK}/cost_by_arm.csv",
    params:
        suite=NAME,
        device=SUITE.device,
        code=code_hash("benchmarks.cost:measure"),
        settings=[part.model_dump(mode="json") for part in (SUITE.pretraining, SUITE.forgetting, SUITE.arms)],
        authors=AUTHORS,
    log:
        f"{WORK}/logs/cost.log",
    benchmark:
        f"{WORK}/benchmarks/cost.tsv"
    threads: 1024  # scaled down to all there are
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks cost --suite {params.suite} > {log} 2>&1"
