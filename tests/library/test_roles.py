"""Roles of tensors go by what they are; what no method takes is refused, or left alone if asked."""

import pytest
import torch
from snapshot_files import base, normal, predict_to

import know
from know.errors import KnowError
from know.roles import reasons, roles

# roles by meaning

ROLES = {
    "weight": ((3, 8), "fc"),
    "bias": ((3,), "bias"),
    "stem.weight": ((8, 3, 7, 7), "fc"),
    "mix.weight": ((8, 8, 1, 1), "fc"),
    "row.weight": ((8, 8, 1, 3), "fc"),
    "attention.in_proj_weight": ((24, 8), "fc"),
    "attention.in_proj_bias": ((24,), "bias"),
    "LayerNorm.gamma": ((8,), "norm"),
    "LayerNorm.beta": ((8,), "norm"),
    "ln.g": ((8,), "norm"),
    "ln.b": ((8,), "norm"),
    "sublayer.a_2": ((8,), "norm"),
    "sublayer.b_2": ((8,), "norm"),
    "rms.scale": ((8,), "norm"),
    "group.weight": ((1, 8, 1, 1), "norm"),
    "group.bias": ((1, 8, 1, 1), "norm"),
    "picture.weight": ((8, 4, 4), "norm"),
    "picture.bias": ((8, 4, 4), "norm"),
    "block.gamma_1": ((8,), "norm"),
    "block.ls1.gamma": ((8,), "norm"),
    "act.weight": ((8,), "norm"),
    "clip.logit_scale": ((), "buffer"),
    "swin.logit_scale": ((3, 1, 1), "norm"),
    "vit.cls_token": ((1, 1, 8), "fc"),
    "vit.pos_embed": ((1, 5, 8), "fc"),
    "rotary.inv_freq": ((8,), "buffer"),
    "attn.causal_mask": ((1, 1, 5, 5), "buffer"),
    "word.weight": ((50, 8), "fc"),
    "lstm.weight_ih_l0": ((32, 8), "fc"),
    "lstm.weight_hh_l0": ((32, 8), "fc"),
    "lstm.bias_ih_l0": ((32,), "bias"),
    "wn.weight_g": ((8, 1), "norm"),
    "wn.weight_v": ((8, 4), "fc"),
    "new_wn.parametrizations.weight.original0": ((8, 1, 1, 1), "norm"),
    "new_wn.parametrizations.weight.original1": ((8, 4, 3, 3), "conv"),
    "sn.weight_orig": ((8, 4, 3, 3), "conv"),
    "sn.weight_u": ((8,), "buffer"),
    "sn.weight_v": ((36,), "buffer"),
    "new_sn.parametrizations.weight.original": ((8, 4), "fc"),
    "new_sn.parametrizations.weight.0._u": ((8,), "buffer"),
    "vq.embed": ((8, 16), "buffer"),
    "vq.cluster_size": ((16,), "buffer"),
    "wave.weight": ((8, 4, 3), "fc"),
    "volume.weight": ((8, 4, 3, 3, 3), "fc"),
    "depthwise.weight": ((8, 1, 3, 3), "conv"),
    "unet.mid_block.attn.to_out.0.weight": ((8, 8), "fc"),
    "unet.mid_block.attn.to_out.0.bias": ((8,), "bias"),
    "unet.time_embedding.linear_1.weight": ((8, 4), "fc"),
    "normals_head.weight": ((3, 8), "fc"),
    "normals_head.bias": ((3,), "bias"),
    "one_output.weight": ((1, 8), "fc"),
    "one_output.bias": ((1,), "bias"),
    "own.W": ((8, 4), "fc"),
    "own.b": ((8,), "bias"),
    "linear_qkv.layer_norm_weight": ((8,), "norm"),
    "linear_qkv.layer_norm_bias": ((8,), "norm"),
    "linear_qkv.weight": ((8, 8), "fc"),
    "ln1.w": ((8,), "norm"),
    "ln1.b": ((8,), "norm"),
    "q_norm.gamma": ((4, 1, 8), "norm"),
    "cross.attn_gate": ((8,), "norm"),
    "cross.alpha_cross_attn": ((1, 1, 1, 8), "norm"),
    "bn.var": ((8,), "buffer"),
    "codebook.embed_sum": ((16, 8), "buffer"),
    "router.e_score_correction_bias": ((8,), "buffer"),
    "norm_proj.weight": ((8, 8), "fc"),
    "norm_head.weight": ((50, 8), "fc"),
    "bn_conv.weight": ((8, 8, 3, 3), "conv"),
    "sagan.weight_bar": ((8, 8), "fc"),
    "sagan.weight_u": ((8,), "buffer"),
}


def test_roles_go_by_what_a_tensor_is():
    state = {name: torch.empty(shape) for name, (shape, _) in ROLES.items()}
    expected = {name: role for name, (_, role) in ROLES.items()}
    assert roles(state) == expected
    assert roles({**state, "index": torch.arange(9).view(3, 3)}) == {**expected, "index": "buffer"}
    assert all(reason for _, reason in reasons(state).values())


def test_real_modules_have_the_roles_of_their_kind():
    from torch.nn.utils import parametrizations as new

    model = torch.nn.ModuleDict(
        {
            "wn": new.weight_norm(torch.nn.Linear(4, 8)),
            "sn": new.spectral_norm(torch.nn.Conv2d(3, 8, 3)),
            "gru": torch.nn.GRU(4, 8),
            "prelu": torch.nn.PReLU(8),
            "norm": torch.nn.LayerNorm((4, 8)),
            "attention": torch.nn.MultiheadAttention(8, 2),
            "up": torch.nn.ConvTranspose2d(3, 8, 3),
        }
    )
    found = roles(model.state_dict())
    assert {name for name, role in found.items() if role == "norm"} == {
        *("wn.parametrizations.weight.original0", "prelu.weight", "norm.weight", "norm.bias"),
    }
    assert {name for name, role in found.items() if role == "buffer"} == {
        *("sn.parametrizations.weight.0._u", "sn.parametrizations.weight.0._v"),
    }
    assert found["sn.parametrizations.weight.original"] == found["up.weight"] == "conv"


QUANTISED = {
    "gptq": {"q.qweight": torch.zeros(4, 8, dtype=torch.int32), "q.scales": torch.ones(1, 8).half()},
    "bitsandbytes": {"q.weight": torch.zeros(16, 1, dtype=torch.uint8), "q.weight.absmax": torch.ones(4)},
    "llm.int8": {"q.weight": torch.zeros(4, 8, dtype=torch.int8), "q.SCB": torch.ones(4)},
    "fp8": {"q.weight": torch.zeros(4, 8).to(torch.float8_e4m3fn), "q.weight_scale_inv": torch.ones(1, 1)},
}


@pytest.mark.parametrize("layer", QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_are_refused_as_a_whole_or_left_alone(written, layer):
    def make(k):
        return {**base(k), **{n: t * (1 + k) if t.dtype == torch.float32 else t for n, t in layer.items()}}

    trajectory = written(make)
    with pytest.raises(KnowError, match=r"'q' are quantised.*--skip 'q\*'"):
        know.predict(trajectory)
    found = know.predict(trajectory, roles={"q*": "skip"})
    assert all(torch.equal(found[n].view(torch.uint8), t.view(torch.uint8)) for n, t in layer.items())


def test_integers_beside_a_scale_are_not_always_codes(written):
    def make(k):
        table = torch.zeros(9, 9, dtype=torch.int64)
        mask = {"attn.mask": torch.zeros(4, 4, dtype=torch.int32)}
        return {**base(k), **mask, "attn.relative_position_index": table, "attn.logit_scale": torch.ones(3, 1, 1) + k}

    assert torch.equal(know.predict(written(make))["attn.logit_scale"], torch.ones(3, 1, 1))


def test_an_adapter_is_refused_with_the_way_to_merge_it(written):
    def make(k):
        return {"model.q.lora_A.weight": normal(4, 8) * (1 + k), "model.q.lora_B.weight": normal(8, 4) * (1 + k)}

    with pytest.raises(KnowError, match="merge"):
        know.predict(written(make))
    assert roles({"flora_head.weight": torch.empty(3, 3)}) == {"flora_head.weight": "fc"}


@pytest.mark.parametrize(
    ("odd", "what"), [(torch.eye(3).to_sparse(), "sparse"), (torch.empty(3, device="meta"), "on the meta device")]
)
def test_tensors_without_plain_values_are_named_and_may_be_skipped(written, tmp_path, odd, what):
    trajectory = written(lambda k: {**base(k), "odd": odd}, ".pt")
    with pytest.raises(KnowError, match=f"'odd' is {what}.*--skip 'odd'"):
        know.predict(trajectory)
    predict_to(trajectory, tmp_path / "out", roles=(("odd", "skip"),))
    assert torch.load(tmp_path / "out/model.pt")["odd"].layout == odd.layout


def test_a_name_with_brackets_fits_itself(written):
    trajectory = written(lambda k: {**base(k), "l[0].w": torch.ones(2 + k, 2)})
    with pytest.raises(KnowError, match=r"--skip 'l\[0\]\.w' leaves it alone"):
        trajectory.roles()
    assert trajectory.roles({"l[0].w": "skip"}).keys() == {*base(0), "l[0].w"}


def test_extra_state_is_carried_over(written, tmp_path):
    trajectory = written(lambda k: {**base(k), "layer._extra_state": {"version": 3}}, ".pt")
    predict_to(trajectory, tmp_path / "out")
    assert torch.load(tmp_path / "out/model.pt")["layer._extra_state"] == {"version": 3}


def test_float64_keeps_its_digits_and_the_rounding_is_said(written, tmp_path):
    exact = normal(4, 8).double() + 1e-12
    trajectory = written(lambda k: {"fc.weight": exact * (1 + 1e-3 * k)})
    found = know.predict(trajectory, scale=0)["fc.weight"]
    assert torch.equal(found, exact)
    assert any("float64" in note for note in predict_to(trajectory, tmp_path / "out"))


OTHER_FORMATS = {
    "quanto": {"q.weight._data": torch.zeros(4, 8, dtype=torch.int8), "q.weight._scale": torch.ones(4, 1)},
    "mlx": {
        "q.weight": torch.zeros(4, 8, dtype=torch.uint32),
        "q.scales": torch.ones(4, 1),
        "q.biases": torch.ones(4, 1),
    },
    "integers alone": {"q.weight": torch.zeros(4, 8, dtype=torch.int8)},
    "fp8": {"q.weight": torch.zeros(4, 8).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_quantised_weights_of_earlier_snapshots_count_too(written, kind):
    def make(k):
        layer = OTHER_FORMATS[kind]
        plain = {name: tensor.float() for name, tensor in layer.items()}
        return {**base(k), **(layer if k else plain)}

    with pytest.raises(KnowError, match="quantised" if kind == "fp8" else "floating-point"):
        know.predict(written(make))


@pytest.mark.parametrize(
    "name", ["to_q.lora.up.weight", "l.vera_lambda_b", "l.oft_R.weight", "l.lora_embedding_A", "l.hada_w1_a"]
)
def test_adapters_of_all_kinds_are_refused(written, name):
    with pytest.raises(KnowError, match="merge the adapter"):
        know.predict(written(lambda k: {**base(k), name: normal(4, 4) * (1 + k)}))
