"""The experiment: what is run, in which order, and what comes out. `python -m benchmarks --help` lists the steps."""

from benchmarks.kernels import pin

pin()  # here, since every part of the experiment imports this package before torch
