"""KNOW prediction: weights as if trained on more data, from a forgetting trajectory.

>>> import know
>>> trajectory = know.Trajectory.load("run/")
>>> better = know.predict(trajectory, method="known", depth=1)

Names are imported when first used, so that `import know` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from know.comparison import compare
    from know.errors import KnowError
    from know.forgetting import forget
    from know.known import Known
    from know.prediction import predict
    from know.subsets import nested_subsets
    from know.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = ["KnowError", "Known", "Trajectory", "compare", "forget", "nested_subsets", "predict"]

_HOME = {
    "Known": "know.known",
    "KnowError": "know.errors",
    "Trajectory": "know.trajectory",
    "compare": "know.comparison",
    "forget": "know.forgetting",
    "nested_subsets": "know.subsets",
    "predict": "know.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'know' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
