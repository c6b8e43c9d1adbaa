# From data to run records. Every job is one process on one thread; Snakemake fills the cores.


rule data:
    output:
        f"{WORK}/data.json",
    params:
        suite=NAME,
        code=code_hash("know.data"),
        datasets=SUITE.datasets,
    log:
        f"{WORK}/logs/data.log",
    benchmark:
        f"{WORK}/benchmarks/data.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m know data --suite {params.suite} > {log} 2>&1"


rule forget:
    input:
        rules.data.output,
    output:
        f"{WORK}/trajectories/{{origin}}/manifest.json",
    params:
        suite=NAME,
        code=code_hash("know.forgetting"),
        settings=[SUITE.pretraining.model_dump(mode="json"), SUITE.forgetting.model_dump_json()],
        trajectories=SUITE.trajectory_ids + SUITE.tracks,
    log:
        f"{WORK}/logs/forget/{{origin}}.log",
    benchmark:
        f"{WORK}/benchmarks/forget/{{origin}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m know forget --suite {params.suite} --origin {wildcards.origin} > {log} 2>&1"


rule metaset:
    input:
        rules.data.output,
    output:
        f"{WORK}/metaset/{{shard}}/manifest.json",
    params:
        suite=NAME,
        code=code_hash("know.metatrain"),
        settings=SUITE.metatraining.model_dump(mode="json"),
    log:
        f"{WORK}/logs/metaset/{{shard}}.log",
    benchmark:
        f"{WORK}/benchmarks/metaset/{{shard}}.tsv"
    priority: 2  # KNOWN waits for it, and every cell waits for KNOWN
    conda:
        "../environment.yml"
    shell:
        "python -m know metaset --suite {params.suite} --shard {wildcards.shard} > {log} 2>&1"


rule metatrain:
    input:
        expand(rules.metaset.output, shard=range(SUITE.metatraining.shards)),
    output:
        known=f"{WORK}/known/known.safetensors",
        history=f"{WORK}/known/history.csv",
        card=f"{WORK}/known/README.md",
    params:
        suite=NAME,
        code=code_hash("know.metatrain"),
        settings=SUITE.metatraining.model_dump(mode="json"),
    log:
        f"{WORK}/logs/metatrain.log",
    benchmark:
        f"{WORK}/benchmarks/metatrain.tsv"
    priority: 1
    conda:
        "../environment.yml"
    shell:
        "python -m know metatrain --suite {params.suite} > {log} 2>&1"


rule transfer:
    input:
        lambda wildcards: f"{WORK}/trajectories/{SUITE.cell(wildcards.cell).origin.slug}/manifest.json",
        rules.metatrain.output.known,
    output:
        runs=f"{WORK}/transfers/{{cell}}/runs.csv",
        pilots=f"{WORK}/transfers/{{cell}}/pilots.csv",
        choice=f"{WORK}/transfers/{{cell}}/choice.json",
    params:
        suite=NAME,
        code=code_hash("know.transfer"),
        settings=[SUITE.transfer.model_dump(mode="json"), SUITE.arms.model_dump_json()],
        trajectories=SUITE.trajectory_ids,
    log:
        f"{WORK}/logs/transfer/{{cell}}.log",
    benchmark:
        f"{WORK}/benchmarks/transfer/{{cell}}.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m know transfer --suite {params.suite} --cell {wildcards.cell} > {log} 2>&1"


rule landscape:
    input:
        f"{WORK}/trajectories/{SUITE.origins[0].slug}/manifest.json",
        rules.metatrain.output.known,
    output:
        f"{WORK}/landscape.csv",
    params:
        suite=NAME,
        code=code_hash("know.landscape"),
    log:
        f"{WORK}/logs/landscape.log",
    benchmark:
        f"{WORK}/benchmarks/landscape.tsv"
    conda:
        "../environment.yml"
    shell:
        "python -m know landscape --suite {params.suite} > {log} 2>&1"
