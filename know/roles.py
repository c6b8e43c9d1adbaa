"""What a tensor is for a prediction: a kernel, a matrix, a bias, normalisation, or a buffer.

docs/roles.md has the same rules as one table.
"""

from __future__ import annotations

import fnmatch
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from know.errors import KnowError, unknown

if TYPE_CHECKING:  # pages that name roles are made without torch
    from torch import Tensor

Role = Literal["conv", "fc", "bias", "norm", "buffer", "skip"]
PREDICTED: tuple[Role, ...] = ("conv", "fc", "bias")
"""Roles that methods predict. The authors' script predicts no normalisation parameter, and neither do we."""
TABLES = re.compile(
    r"(running|moving|ema|sqrt|posterior)_\w+|(pixel_|image_)?(mean|std|var)|(min|max)_val|x_(min|max)|\w*scaling_factor"
    r"|num_batches_tracked|cluster_(size|usage)|embed_(avg|sum)|embedding_avg|w_avg|e_score_correction_bias|inv_freq"
    r"|freqs|freqs_cis|(cos|sin)(_cached)?|position_ids|relative_position_index|relative_coords_table|\w*mask"
    r"|masked_bias|betas|alphas|(log_one_minus_)?alphas_\w+|sigmas|window|fb|mel_filters|anchors?|anchor_grid|strides?"
    r"|zero_points?"
)
"""Names of tensors that no optimiser trains: statistics, tables of positions, masks, schedules, filters, anchors."""
FACTORS = re.compile(
    r"gamma(_?\d+)?|lambda\w*|layer_?scale\w*|ls\d*|alpha(_\w+)?|(\w+_)?gates?(_(attn|mlp|ffn|msa))?|temp(erature)?|tau"
    r"|slope|(\w+_)?scale|gain|g|a_2|D|A_log|resweight|rezero|init_values|affine_weight"
    r"|(\w+_)?(norm|ln|rms)(_?\d+)?_(weight|scale|g|w)"
)
"""Names of what multiplies the output of a layer: scales of normalisation, LayerScale, gates, temperatures."""
SUMMANDS = re.compile(r"bias|beta|shift|offset|b|b_2|affine_bias|(\w+_)?(norm|ln|rms)(_?\d+)?_(bias|b)")
"""Names of what is added after a factor."""
ROWS = re.compile(r"\w*(token|pos_?emb|position_emb|embed|query|queries|latents?|registers?|codebook)\w*")
"""Names of learned rows: class, mask and register tokens, positions, queries."""
NORM_LAYER = re.compile(r"(\w+_)?((layer|batch|group|instance|rms)_?norm|norm|ln|bn|gn)(_?\d+)?", re.IGNORECASE)
CODES = re.compile(r"qweight|qzeros|weight_packed|w_q|weight_quantized|qidxs|dense_weights|\w+_blocks", re.IGNORECASE)
CARRIER = re.compile(r"weight|_data|data|codes|w|indices", re.IGNORECASE)
"""Names under which codes may stand that are recognised by their companions."""
COMPANIONS = re.compile(
    r"(\w*_)?(scales?|scale_inv|scb|absmax|zeros|zero_points?|qzeros|quant_map|quant_state\w*|weight_format|centroids)"
    r"|biases|g_idx|su|sv|wscale",
    re.IGNORECASE,
)
"""Names of what stands beside the codes of quantised weights."""
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
ADAPTER = re.compile(
    r"(^|[._])(lora_([AB]|up|down|mid|embedding_[AB]|magnitude_vector|E)|lora\.(up|down)|hada_w\d\w*|lokr_w\d\w*|ia3_l"
    r"|b?oft_[rRsS]|vera_lambda_\w)(\.|$)"
)


def roles(
    state: Mapping[str, Tensor], given: Mapping[str, str] | None = None, *, buffers: Sequence[str] = ()
) -> dict[str, Role]:
    """Role of every tensor by shape and name: the paper's rule, for any architecture.

    conv: kernels of 3x3. fc: every other tensor with two axes or more (linear, 1x1 and 7x7 kernels, embeddings).
    norm: scales and shifts of a layer without a matrix, and other factors of a channel. bias: other vectors. buffer:
    what no optimiser trains, by dtype or name, and those named in `buffers`.

    given: pattern of names (as in a shell: head.*) to role, instead of the rule; "skip" leaves a tensor alone. The last
    pattern that fits counts. KnowError for a pattern that fits no tensor, and for a tensor that cannot be predicted.
    """
    return {name: role for name, (role, _) in reasons(state, given, buffers=buffers).items()}


def reasons(
    state: Mapping[str, Tensor],
    given: Mapping[str, str] | None = None,
    *,
    buffers: Sequence[str] = (),
    others: Collection[str] = (),
) -> dict[str, tuple[Role, str]]:
    """As `roles`, each with the reason. others: names that patterns may fit although `state` lacks them."""
    beside: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        layer, _, attribute = name.rpartition(".")
        beside.setdefault(layer, {})[attribute] = tensor
    found = {name: ("buffer", "a buffer of its module") for name in state.keys() & set(buffers)}
    found = {name: found.get(name) or _rule(name, tensor, beside) for name, tensor in state.items()}
    if not isinstance(given, Mapping | None):
        raise KnowError(f"roles must map patterns of names to roles, got a {type(given).__name__}")
    for pattern, role in (given or {}).items():
        if not isinstance(pattern, str):
            raise KnowError(f"roles must map patterns of names to roles, got the pattern {pattern!r}")
        if role not in typing.get_args(Role):
            raise unknown(f"role of {pattern!r}", str(role), typing.get_args(Role))
        names = _fitting(pattern, found)
        if not names and not _fitting(pattern, others):
            raise KnowError(f"no tensor fits the pattern {pattern!r}; --dry-run lists them")
        for name in names:
            if role in PREDICTED and not state[name].is_floating_point():
                raise KnowError(f"tensor {name!r} holds {state[name].dtype}, which no method takes")
            found[name] = role, "as asked"
    return found


def _fitting(pattern: str, names: Collection[str]) -> list[str]:
    """The names that a pattern fits; a name fits itself, also where it holds brackets or stars."""
    return [pattern] if pattern in names else fnmatch.filter(names, pattern)


def _rule(name: str, tensor: Tensor, layers: Mapping[str, Mapping[str, Tensor]]) -> tuple[Role, str]:
    """Role of one tensor and the reason. layers: the tensors of every layer, by attribute."""
    layer, _, attribute = name.rpartition(".")
    beside, kind = layers[layer], layer.rpartition(".")[2]
    shape, vector = tuple(tensor.shape), _is_vector(tensor)
    if not tensor.is_floating_point():
        return "buffer", "no floating-point numbers"
    if tensor.ndim == 0:
        return "buffer", "a single number"
    if TABLES.fullmatch(attribute):
        return "buffer", "statistics or a table, which no optimiser trains"
    if attribute in ("embed", "embedding", "codebook") and beside.keys() & {"cluster_size", "embed_avg"}:
        return "buffer", "a code book that is a running average"
    spectral = attribute in ("weight_u", "weight_v") and beside.keys() & {"weight_orig", "weight_bar"}
    if spectral or attribute in ("_u", "_v"):
        return "buffer", "power iteration of spectral normalisation"
    if (attribute == "weight_g" and "weight_v" in beside) or (attribute == "original0" and "original1" in beside):
        return "norm", "length of weight normalisation"
    weight, bias = (beside.get(key) for key in ("weight", "bias"))
    if attribute in ("weight", "bias") and weight is not None:
        alike = bias is not None and bias.shape == weight.shape
        if weight.ndim == 1 or alike or (bias is None and NORM_LAYER.fullmatch(kind)):
            return "norm", "scale or shift of a layer without a matrix"
    thin = vector or 1 in shape
    if FACTORS.fullmatch(attribute) and (thin or attribute == "A_log"):
        return "norm", "a factor: scale of a normalisation, LayerScale, or gate"
    matrix = any(each.is_floating_point() and not _is_vector(each) for each in beside.values())
    named = bool(re.search(r"(norm|ln|rms)(_?\d+)?_", attribute))
    if SUMMANDS.fullmatch(attribute) and vector and (named or (not matrix and any(map(FACTORS.fullmatch, beside)))):
        return "norm", "shift of a normalisation"
    if vector and tensor.ndim == 1 and NORM_LAYER.fullmatch(kind) and not matrix:
        return "norm", "scale or shift of a layer called norm"
    if ROWS.fullmatch(attribute) and not attribute.endswith("bias"):
        return "fc", "learned rows: tokens, positions or an embedding"
    if tensor.ndim == 1 or (vector and "bias" in attribute):
        return "bias", "a vector that is added"
    if tensor.ndim == 4 and shape[2:] == (3, 3):
        return "conv", "3x3 kernels" + (" of one channel each" if shape[1] == 1 else "")
    if tensor.ndim >= 3:
        return "fc", "kernels of another size; the network for conv has learnt 3x3 alone"
    return "fc", "a matrix"


def _is_vector(tensor: Tensor) -> bool:
    """Whether at most one axis is longer than 1; a matrix of one row is a matrix all the same."""
    return tensor.ndim == 1 or (tensor.ndim > 2 and sum(size > 1 for size in tensor.shape) <= 1)


def refuse_unpredictable(meta: Mapping[str, Tensor], role_of: Mapping[str, Role], odd: Mapping[str, str]) -> None:
    """KnowError for quantised weights, adapters, and tensors without plain values, unless they are skipped.

    odd: names of tensors that are not dense numbers, with what they are.
    """
    for name, what in odd.items():
        if role_of.get(name, "skip") != "skip":
            raise KnowError(f"tensor {name!r} is {what}, which no method takes; --skip {name!r} leaves it alone")
    left = [name for name, role in role_of.items() if role != "skip"]
    for name in left:
        if ADAPTER.search(name):
            raise KnowError(f"{name!r} belongs to a LoRA or similar adapter; {MERGE}")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in meta.items():
        layer, _, attribute = name.rpartition(".")
        layers.setdefault(layer, {})[attribute] = tensor
    quantised = {
        layer: what for name in meta if (what := _codes(name, meta, layers)) for layer in [name.rpartition(".")[0]]
    }
    for name in left if quantised else ():
        for layer, what in quantised.items():
            if name == layer or name.startswith((f"{layer}.", f"{layer}_")):
                raise KnowError(
                    f"the weights of {layer!r} are quantised ({what}): codes and their scales cannot be predicted. Save"
                    f" the snapshots dequantised, or leave the layer alone: --skip '{layer}*'"
                )


MERGE = (
    "its factors apart are not the update: merge the adapter into its model first (with peft: model.merge_and_unload())"
    ", save that model at every snapshot, and predict from those; --skip leaves an adapter alone"
)


def _codes(name: str, meta: Mapping[str, Tensor], layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """What makes a tensor codes of quantised weights; None if it is none."""
    layer, _, attribute = name.rpartition(".")
    dtype, ndim = str(meta[name].dtype).removeprefix("torch."), meta[name].ndim
    if dtype.startswith(("float8", "float4")):
        return f"{name} is {dtype}"
    whole = dtype in (*INTEGERS, "int64") and ndim >= 2
    if whole and CODES.fullmatch(attribute):
        return f"{name} holds codes"
    if ndim == 0 or dtype not in INTEGERS or not CARRIER.fullmatch(attribute):
        return None
    beside = [each for each in layers[layer] if each != attribute] + list(layers.get(name, ()))
    for other in beside:
        if COMPANIONS.fullmatch(other):
            return f"{name} holds codes, {other} belongs to them"
    return f"{name} is a matrix of {dtype}" if ndim == 2 and attribute == "weight" else None


def only_predicted(role_of: Mapping[str, Role]) -> dict[str, Role]:
    """Those of the names and roles that methods predict."""
    return {name: role for name, role in role_of.items() if role in PREDICTED}


def names_by_role(role_of: Mapping[str, Role]) -> dict[str, list[str]]:
    """Names of the tensors of each predicted role that has one, then of all that are predicted, as "all"."""
    named = {role: [name for name, own in role_of.items() if own == role] for role in PREDICTED}
    return {role: names for role, names in (*named.items(), ("all", list(only_predicted(role_of)))) if names}
