"""The experiment: what is run, in which order, and what comes out. `python -m benchmarks --help` lists the steps."""
