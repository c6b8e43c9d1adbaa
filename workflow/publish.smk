# From run records to committed tables, pages and figures: no torch, no data.
# `update`: a failing job leaves the committed files as they are.

KNOWN = [os.path.relpath(SUITE.known_folder(Path(WORK), length) / file) for length in SUITE.lengths for file in LEARNT]
TABLES = ("runs", "pilots", "trajectories", "landscape", *INSPECTED)
OF_KNOWN = expand(f"{RESULTS}/known/{{length}}/{{file}}", length=SUITE.lengths, file=TOLD) if SUITE.metatraining else []
FIGURE_SCRIPTS = figures((cell.length, cell.ratio) for cell in SUITE.cells)
FIGURES = expand(f"{RESULTS}/figures/{{figure}}.{{kind}}", figure=FIGURE_SCRIPTS, kind=("svg", "png"))

DRAWING = [code_hash("benchmarks.report.publish:publish"), code_hash("know.drawing")]
DRAWING = digest(DRAWING + [syntax(path) for path in sorted(Path("paper_figures").glob("*.py"))])


rule publish:
    input:
        files_of("forget", "transfer", "landscape", "inspect", "cost"),
        KNOWN,
    output:
        update(expand(f"{RESULTS}/{{table}}.csv", table=TABLES)),
        update(expand(f"{RESULTS}/{{file}}.json", file=("suite", "metrics"))),
        update(f"{RESULTS}/README.md"),
        update(OF_KNOWN),
        published=f"{WORK}/published.json",
    params:
        suite=NAME,
        code=code_hash("benchmarks.report.publish:publish"),
        words=words(),
        settings=SUITE.model_dump(mode="json"),
    log:
        f"{WORK}/logs/publish.log",
    conda:
        "../environment.yml"
    shell:
        "python -m benchmarks publish --suite {params.suite} > {log} 2>&1"


rule figures:
    input:
        expand(f"{RESULTS}/{{table}}.csv", table=TABLES),
    output:
        *[
            report(
                update(f"{RESULTS}/figures/{figure}.{kind}"),
                caption=f"captions/{figure}.rst",
                category="Figures",
                labels={"figure": figure.replace("_", " "), "format": kind},
            )
            for figure in FIGURE_SCRIPTS
            for kind in ("svg", "png")
        ],
    params:
        suite=suite_name(NAME),
        code=DRAWING,
    log:
        f"{WORK}/logs/figures.log",
    conda:
        "../environment.yml"
    shell:
        "python -m paper_figures results/{params.suite} > {log} 2>&1"


# Parts of the chain by name, for `dvc.yaml` and for people.
rule trajectories:
    input:
        files_of("forget"),


rule known:
    input:
        KNOWN,


rule transfers:
    input:
        files_of("transfer", "landscape", "inspect"),
