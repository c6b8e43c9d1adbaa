# From data to run records: every rule of the list in benchmarks/steps.py, one after the other. A job is one process on
# one thread, or one on each of several cores where its command can use them; Snakemake fills the cores.

STEPS = {step.name: step for step in steps(SUITE, Path(WORK))}
RULES = {rule: [step for step in STEPS.values() if step.rule == rule] for rule in MADE}
# KNOWN waits for the meta-set, and every cell for KNOWN; then the longest first, so that no core is left with one at the end.
PRIORITY = {"metaset": 2, "metatrain": 1, "transfer": 1}
TRAINING = ("forget", "metaset", "metatrain", "transfer")


def step_of(rule, wildcards):
    return STEPS["/".join((rule, *wildcards))]


def files_of(*rules):
    return [path.as_posix() for rule in rules for step in RULES[rule] for path in step.outputs]


def files_for(rule):
    return lambda wildcards: [path.as_posix() for need in step_of(rule, wildcards).needs for path in STEPS[need].outputs]


def command_of(rule):
    return lambda wildcards: list(step_of(rule, wildcards).command)


def settings_of(rule):
    return lambda wildcards: step_of(rule, wildcards).settings


for name, every in RULES.items():
    if not every:
        continue
    place = os.path.join(name, "{job}") if every[0].option else name

    rule:
        name:
            name
        input:
            files_for(name),
        output:
            [f"{WORK}/{made}" for made in MADE[name]],
        params:
            suite=NAME,
            device=SUITE.device,
            code=code_hash(CODE[name]),
            libraries=versions(),
            settings=settings_of(name),
            command=command_of(name),
        wildcard_constraints:
            job="|".join(re.escape(step.name.partition("/")[2]) for step in every),
        log:
            f"{WORK}/logs/{place}.log",
        benchmark:
            f"{WORK}/benchmarks/{place}.tsv"
        # what measures times has the machine for itself: 1024 is scaled down to all cores there are
        threads: 1024 if name == "cost" else max(step.processes for step in every) or 1
        priority: PRIORITY.get(name, 0)
        resources:
            **(ON_GPU if name in TRAINING else {}),
        conda:
            "../environment.yml"
        # a shell command is made when the job starts, after this loop: it must not use the loop's variables
        shell:
            "KNOW_PROCESSES={threads} python -m benchmarks {params.command} --suite {params.suite} > {log} 2>&1"
