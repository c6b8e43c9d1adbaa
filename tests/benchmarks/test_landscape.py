"""The plane of a trajectory: its axes are those of greatest variance, whatever the points are turned or moved by."""

import torch

from benchmarks.landscape import principal_plane


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
