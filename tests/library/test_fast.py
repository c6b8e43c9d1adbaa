"""The compiled prediction: what it answers is what the plain module answers, whatever the cut, strides and threads."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_model import random_known

from know import known
from know.files import PRETRAINED
from know.known import Known, KnownNet, scale_windows

fast = known.compiled()
SHIPPED = sorted(PRETRAINED.glob("*/*/known.safetensors")) + sorted(PRETRAINED.glob("*/*/scaled.safetensors"))
needs_numba = pytest.mark.skipif(fast is None, reason="the compiled prediction needs numba")


def histories(count: int, length: int, noise: float = 0.1, seed: int = 0) -> torch.Tensor:
    """Weights of every size up to 2 that move by about `noise`."""
    dice = torch.Generator().manual_seed(seed)
    size = 2 * torch.rand(count, 1, generator=dice) ** 3 * torch.randn(count, 1, generator=dice).sign()
    return (size + noise * torch.randn(count, length, generator=dice)).clamp(-2, 2)


@torch.no_grad()
def exact(net: KnownNet, window: torch.Tensor) -> torch.Tensor:
    return copy.deepcopy(net).double()(window.double())


class Sums(torch.nn.Module):
    """A linear layer that adds its products one by one, in float32: which kernels torch has chosen changes nothing.

    seed: which order they are added in.
    """

    def __init__(self, layer: torch.nn.Linear, seed: int):
        super().__init__()
        self.layer = layer
        self.order = torch.randperm(layer.in_features, generator=torch.Generator().manual_seed(seed)).tolist()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        total = self.layer.bias.expand(len(inputs), -1)
        for k in self.order:
            total = total + inputs[:, k, None] * self.layer.weight[:, k]
        return total


@torch.no_grad()
def plainly(net: KnownNet, window: torch.Tensor, seed: int) -> torch.Tensor:
    """The answer in float32 without any library's matrix product, with sums in the order of that seed."""
    net = copy.deepcopy(net)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            net.set_submodule(name, Sums(layer, seed))
    return net(window)


@torch.no_grad()
def check(asked: Known) -> None:
    """Within 1e-6 for histories like those of weights; where float32 itself is off by more, as near as plain sums.

    Where histories jump by more than weights do, nearly every answer of these networks is at its bound or overflows.
    What overflows in float64 does so here too.
    """
    wild = torch.rand(2000, asked.length, generator=torch.Generator().manual_seed(1)) - 0.5
    for net in asked.nets.values():
        jumps = scale_windows(4 * wild, asked.scaling)[0]
        assert not fast.steps(net, jumps)[~exact(net, jumps).isfinite()].isfinite().any()
        for window in (histories(2000, asked.length), wild):
            inputs = scale_windows(window, asked.scaling)[0]
            answer, truth = fast.steps(net, inputs), exact(net, inputs)
            sums = torch.stack([plainly(net, inputs, seed) for seed in range(8)])  # which one is off most is chance
            assert window is wild or truth.isfinite().all()
            kept = truth.isfinite() & sums.isfinite().all(0)
            assert kept.double().mean() > 0.5
            ours, plain = (answer - truth)[kept].abs(), (sums - truth)[:, kept].abs()
            assert float(ours.mean()) < 2 * float(plain.mean())
            if window is not wild:
                assert float(ours.max()) < max(1e-6, 2 * float(plain.max()))


@pytest.fixture(scope="module")
def net() -> KnownNet:
    return Known.pretrained("general", 5).nets["conv"]


@needs_numba
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.with_suffix("").parts[-3:]))
def test_it_agrees_with_float64_for_the_networks_that_ship(path):
    check(Known.load(path))


@needs_numba
@pytest.mark.parametrize("model", ["released", "wnn"])
def test_it_agrees_with_float64_for_the_authors_networks(model):
    pytest.importorskip("h5py", reason="reading the authors' Keras files needs h5py")
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder:
        pytest.skip("KNOW_REFERENCE, the folder with the authors' released weights, is not set")
    check(Known.from_keras(Path(folder), model))


@needs_numba
@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 9])
def test_it_takes_histories_of_every_length(length):
    for asked in random_known(length, length).nets.values():
        window = histories(500, length, noise=1.0)
        torch.testing.assert_close(fast.steps(asked, window).double(), exact(asked, window), atol=1e-6, rtol=0)


@needs_numba
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 255, 256, 257, 1000])
def test_every_count_of_windows_gives_the_answers_of_each(net, count):
    window = histories(1000, 5)
    answer = fast.steps(net, window[:count])
    assert answer.shape == (count,)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, fast.steps(net, window)[:count])


@needs_numba
def test_strides_do_not_matter(net):
    window = histories(3000, 5)
    expected = fast.steps(net, window)
    wide = torch.zeros(6000, 11)
    wide[::2, 1::2] = window
    for laid in (window.T.contiguous().T, wide[::2, 1::2], wide.T.contiguous().T[::2, 1::2]):
        assert not laid.is_contiguous()
        assert torch.equal(laid, window)
        assert torch.equal(fast.steps(net, laid), expected)
    still = window[:, :1].expand(-1, 5)
    assert torch.equal(fast.steps(net, still), fast.steps(net, still.contiguous()))


@needs_numba
def test_neither_threads_nor_cuts_change_a_bit(net, monkeypatch):
    window = histories(5000, 5)
    expected = fast.steps(net, window)
    for cut in (1, 3, 500, 777, 2048):
        some = window if cut > 3 else window[:100]
        assert torch.equal(torch.cat([fast.steps(net, part) for part in some.split(cut)]), expected[: len(some)])
    order = torch.randperm(len(window), generator=torch.Generator().manual_seed(0))
    assert torch.equal(fast.steps(net, window[order]), expected[order])
    for piece in (1000, 64, 257):
        monkeypatch.setattr(fast, "PIECE", piece)
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert torch.equal(fast.steps(net, window), expected)


@needs_numba
@torch.no_grad()
def test_windows_that_are_extreme_get_the_plain_answer(net):
    window = histories(600, 5)
    ordinary = fast.steps(net, window)
    extreme = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e30, 1001.0])
    rows = torch.arange(0, 600, 100)
    window[rows, torch.arange(6) % 5] = extreme
    answer = fast.steps(net, window)
    torch.testing.assert_close(answer[rows], net(window[rows]), atol=0, rtol=0, equal_nan=True)
    others = torch.ones(600, dtype=bool).index_fill(0, rows, False)
    assert torch.equal(answer[others], ordinary[others])


@needs_numba
@torch.no_grad()
def test_an_exponential_that_overflows_gets_the_plain_answer(net):
    """Weights and windows are moderate, the exponents are not: the plain answers are +-1 or NaN."""
    steep = copy.deepcopy(net)
    steep.values.rate.weight.mul_(30)
    window = 3 * histories(500, 5)
    answer, plain = fast.steps(steep, window), steep(window)
    lost = ~steep.double()(window.double()).abs().lt(0.999)
    assert 0 < int(lost.sum()) < 500
    torch.testing.assert_close(answer[lost], plain[lost], atol=1e-6, rtol=0, equal_nan=True)
    assert torch.equal(answer.isnan(), plain.isnan())


@needs_numba
@torch.no_grad()
@pytest.mark.parametrize("value", [1e30, -1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["values.first.bias", "differences.rate.weight", "out.bias"])
def test_a_network_that_is_extreme_is_asked_as_it_is(net, layer, value):
    broken = copy.deepcopy(net)
    broken.get_parameter(layer).fill_(value)
    window = histories(300, 5)
    torch.testing.assert_close(fast.steps(broken, window), broken(window), atol=0, rtol=0, equal_nan=True)


# where it is used


@needs_numba
@pytest.mark.parametrize("model", ["known", "scaled", "wnn"])
def test_large_windows_are_left_to_it_and_answered_alike(models, model, monkeypatch):
    asked, calls = models[model], []
    monkeypatch.setattr(known, "LARGE", 1000)
    monkeypatch.setattr(fast, "steps", lambda net, window, steps=fast.steps: calls.append(1) or steps(net, window))
    window = histories(1000, 5)
    answer = asked.residual(window, "fc")
    assert calls
    calls.clear()
    plain = asked.residual(window, "fc", chunk=16384)
    torch.testing.assert_close(answer, plain, atol=1e-6, rtol=0)
    assert torch.equal(asked.residual(window[:999], "fc"), asked.residual(window[:999], "fc", chunk=16384))
    assert not calls


def test_without_numba_the_answer_is_the_plain_one(hyper, monkeypatch):
    window = histories(1000, 5)
    monkeypatch.setattr(known, "LARGE", 1000)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "know.fast", raising=False)
    monkeypatch.delattr("know.fast", raising=False)
    assert known.compiled() is None
    assert torch.equal(hyper.residual(window, "conv"), hyper.residual(window, "conv", chunk=16384))


def test_numba_is_imported_only_when_it_is_needed():
    code = "import sys, know, know.cli, know.known; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
