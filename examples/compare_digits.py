"""Does a prediction help on another task? `know compare` on scikit-learn's digits, in under a minute on a CPU.

    python examples/compare_digits.py

makes the forgetting trajectory of a network that knows the digits 0 to 4, and compares fine-tuning to the digits 5 to 9
from theta_0, from predictions, and from theta_0 trained on for as many steps as the forgetting takes. The command line
does the same with the functions `setup` and `fine_tune`, and with `--beside further=FILE` for the last:

    know forget examples/compare_digits.py:setup --out digits_0_to_4/
    know compare digits_0_to_4/ --task examples/compare_digits.py:fine_tune --rates 1e-2,3e-3,3e-2,1e-1 --out compared/

Needs scikit-learn, scipy and matplotlib.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import know


def load(digits: range) -> TensorDataset:
    """Images of these digits, in a fixed random order; the labels begin at 0."""
    data = load_digits()
    images, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    rows = torch.isin(labels, torch.tensor(digits)).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return TensorDataset(images[rows], labels[rows] - digits.start)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))


def fit(model: nn.Module, subset, epochs: int = 3, learning_rate: float = 1e-3, seed: int = 0) -> None:
    """Train on a subset. The order of the images depends on its size and the seed, so runs can be repeated."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(len(subset) + seed)
    for _ in range(epochs):
        for images, labels in DataLoader(subset, batch_size=64, shuffle=True, generator=order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def setup() -> tuple[nn.Module, TensorDataset, object]:
    """What `know forget` needs: the pretrained model (theta_0), the data that it was trained on, and `fit`."""
    torch.manual_seed(0)
    model, train = network(), load(range(5))
    fit(model, train, epochs=10, learning_rate=3e-3)
    return model, train, fit


def fine_tune(checkpoint: Path, learning_rate: float, seed: int) -> tuple[float, float]:
    """Validation and test accuracy on the digits 5 to 9, after fine-tuning on 100 images with a new last layer."""
    model = network()
    model.load_state_dict(load_file(checkpoint))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model[-1].reset_parameters()
    images, labels = load(range(5, 10)).tensors
    order = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
    train, validation, test = order[:100], order[100:200], slice(500, None)
    fit(model, TensorDataset(images[train], labels[train]), epochs=10, learning_rate=learning_rate, seed=seed)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    return float(right[validation].double().mean()), float(right[test].double().mean())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trajectory = know.forget(*setup(), out=f"{folder}/run")
        model, train, _ = setup()
        fit(model, train, epochs=3)  # 3 epochs on 1/2, 1/4, 1/8 and 1/16 of the data are nearly as many steps
        further = Path(folder, "further.safetensors")
        save_file(model.state_dict(), further)
        out = Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/compared")
        know.compare(trajectory, fine_tune, [1e-2, 3e-3, 3e-2, 1e-1], out=out, beside={"further": further}, say=print)
        print((out / "README.md").read_text(encoding="utf-8"))
