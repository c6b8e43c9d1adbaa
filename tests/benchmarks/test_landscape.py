"""The plane of a trajectory: its axes are those of greatest variance, whatever the points are turned or moved by."""

import pandas as pd
import pytest
import torch

import know
from benchmarks import landscape
from benchmarks.data import load
from benchmarks.landscape import make_landscape, principal_plane
from benchmarks.networks import build


def test_points_of_a_plane_keep_their_distances_in_it():
    dice = torch.Generator().manual_seed(0)
    flat = torch.randn(9, 2, generator=dice).double() * torch.tensor([3.0, 1.0])
    turned, _ = torch.linalg.qr(torch.randn(40, 2, generator=dice).double())
    points = flat @ turned.T + torch.randn(40, generator=dice)
    axes, shares = principal_plane(points)
    torch.testing.assert_close(axes @ axes.T, torch.eye(2).double())
    torch.testing.assert_close(torch.cdist(points @ axes.T, points @ axes.T), torch.cdist(flat, flat))
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0).double())
    spread = (points @ axes.T).var(0)
    assert spread[0] > spread[1]
    torch.testing.assert_close(shares[0] / shares[1], spread[0] / spread[1])


def test_the_sign_of_an_axis_does_not_depend_on_the_library():
    points = torch.randn(6, 20, generator=torch.Generator().manual_seed(1)).double()
    axes, _ = principal_plane(points)
    mirrored, _ = principal_plane(points.flip(0))
    torch.testing.assert_close(axes, mirrored)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("finite", [True, False])
def test_a_prediction_that_is_not_finite_is_left_out(tmp_path, monkeypatch, hyper, overflowing, finite):
    """It ended the run of a suite, whose fine-tunes count it as an accuracy of 0."""
    monkeypatch.setattr(landscape, "SIZE", 3)
    data, dice = load("digits"), torch.Generator().manual_seed(0)

    def fit(model, subset):
        for parameter in model.parameters():
            parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=dice))

    facts = {"source": "digits", "network": "mlp", "track": "overflow", "trajectory": "t0"}
    model = build("mlp", data.shape, len(data.classes), seed=0)
    know.forget(model, [0] * 64, fit, out=tmp_path / "run", facts=facts)
    (hyper if finite else overflowing).save(tmp_path / "known" / "known.safetensors")
    make_landscape(tmp_path / "run", tmp_path / "known", out=tmp_path / "plane.csv")
    drawn = pd.read_csv(tmp_path / "plane.csv").groupby("kind")["label"].agg(list)
    assert drawn["snapshot"] == ["theta_4", "theta_3", "theta_2", "theta_1", "theta_0"]
    assert drawn.get("known", []) == (["x2", "x4", "x8"] if finite else [])
