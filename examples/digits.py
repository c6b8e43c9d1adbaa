"""KNOW prediction from beginning to end on scikit-learn's digits, in a few seconds on a CPU. Needs scikit-learn.

    python examples/digits.py

trains a small network on half of the digits, makes the forgetting trajectory, predicts the weights "as if trained on
twice the data", and prints the test accuracy of both. The command line does the same with the function `setup`:

    know forget examples/digits.py:setup --out digits/
    know predict digits/ --out better_digits/

A prediction is meant as a start for fine-tuning on another task, so the two accuracies here say little about its worth.
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import know


def load() -> tuple[TensorDataset, TensorDataset]:
    """The source data D0, which is half of the digits, and the test data, a quarter of them."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) // 2], order[-len(order) // 4 :]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def fit(model: nn.Module, subset, epochs: int = 3, learning_rate: float = 1e-3) -> None:
    """Train on a subset. The order of the images depends on the size of the subset alone, so runs can be repeated."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(len(subset))
    for _ in range(epochs):
        for images, labels in DataLoader(subset, batch_size=64, shuffle=True, generator=order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def setup() -> tuple[nn.Module, TensorDataset, object]:
    """What `know forget` needs: the pretrained model (theta_0), the data that it was trained on, and `fit`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    train, _ = load()
    fit(model, train, epochs=10, learning_rate=3e-3)
    return model, train, fit


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the test images that the model gets right."""
    images, labels = load()[1].tensors
    return float((model(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    model, train, _ = setup()
    print(f"theta_0: test accuracy {accuracy(model):.3f}")
    with tempfile.TemporaryDirectory() as folder:
        trajectory = know.forget(model, train, fit, out=f"{folder}/run")  # on 1/2, 1/4, 1/8 and 1/16 of the data
        model.load_state_dict(know.predict(trajectory, depth=1))
    print(f"predicted, as if trained on twice the data: test accuracy {accuracy(model):.3f}")
