"""Cross-entropy of a linear layer over chosen rows: masked words over the vocabulary, masked regions over classes.

    loss = sum_m logsumexp_v(z[m]) - z[m, labels[m]],    z[m] = W hidden[rows[m]] + bias

Layouts, all contiguous:
    hidden          [Q, H]
    rows            [M] int64 rows of hidden, or None: hidden's own rows one by one. A negative one, -q, is no row:
                    q is then a row to which nothing is added, a different one each where time matters
    weight, bias    [V, H], [V]
    labels          [M] int64; -1: no row, whatever else stands there
    loss            [] float32

The logits without bias are one product of cuBLAS, in the type of the weight; there is no float32 copy of them. (With
the bias, PyTorch would copy it over all logits before the product, as their rows are padded.) One kernel adds the bias,
reads them once for the softmax' normaliser and once more, from the cache, to put the loss' gradient in their place:
softmax minus one at the label. Backward is two products with that. A kernel that kept logits on the multiprocessor
would compute a third product of this size again; writing and reading 16 bits a logit is cheaper. Rows of logits are
padded to a multiple of 64, since a product whose rows begin at odd places (30,522 words!) leaves the fast path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from imagebert_kernels.backend import uses_kernels
from imagebert_kernels.checks import check_tensor, must

_ALIGNED = 64


@triton.jit
def classification_softmax(
    logits,  # [M, PADDED], of which COLUMNS are real; the loss' gradient takes their place, zeros that of the others
    bias,  # [PADDED], the rest as the logits': read 16 bytes at a time, beyond the last column too
    labels,  # [M]
    losses,  # [M] float32
    COLUMNS: tl.constexpr,  # V
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,  # columns in one turn
):
    m = tl.program_id(0).to(tl.int64)
    logits += m * PADDED
    column = tl.arange(0, BLOCK)
    label = tl.load(labels + m)
    if label < 0:
        for start in tl.range(0, PADDED, BLOCK):
            tl.store(logits + start + column, tl.zeros([BLOCK], logits.dtype.element_ty), mask=start + column < PADDED)
        tl.store(losses + m, 0.0)
    else:
        chosen = tl.load(logits + label).to(tl.float32) + tl.load(bias + label).to(tl.float32)
        # Each place of a block has a maximum and a sum of its own: nothing is exchanged before the end.
        highest = tl.full([BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, PADDED, BLOCK):
            inside = start + column < PADDED
            z = tl.load(logits + start + column, mask=inside, other=0.0).to(tl.float32)
            z += tl.load(bias + start + column, mask=inside, other=0.0).to(tl.float32)
            z = tl.where(start + column < COLUMNS, z, float("-inf"))
            higher = tl.maximum(highest, z)
            # A place beyond the last column has no logit at all: minus infinity less itself is no number.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(highest - shift) + tl.exp(z - shift)
            highest = higher
        top = tl.max(highest, 0)
        rest = tl.log(tl.sum(total * tl.exp(highest - top), 0))
        for start in tl.range(0, PADDED, BLOCK):
            inside = start + column < PADDED
            z = tl.load(logits + start + column, mask=inside, other=0.0).to(tl.float32)
            z += tl.load(bias + start + column, mask=inside, other=0.0).to(tl.float32)
            # In this order: logits far from zero keep their digits.
            grad = tl.exp(z - top - rest) - tl.where(start + column == label, 1.0, 0.0)
            grad = tl.where(start + column < COLUMNS, grad, 0.0)
            tl.store(logits + start + column, grad.to(logits.dtype.element_ty), mask=inside)
        tl.store(losses + m, top - chosen + rest)


def tiling(columns: int) -> dict[str, int]:
    """Constants and options of the launch for `columns` classes."""
    padded = -(-columns // _ALIGNED) * _ALIGNED
    block = min(triton.next_power_of_2(columns), 4096)
    return {"COLUMNS": columns, "PADDED": padded, "BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


# ------------------------------------------------------------------------------------------------- PyTorch's operator


@torch.library.custom_op(
    "imagebert::classification_loss",
    mutates_args=(),
    schema="(Tensor hidden, Tensor? rows, Tensor weight, Tensor bias, Tensor labels) -> (Tensor, Tensor)",
)
def _forward(hidden, rows, weight, bias, labels):  # type: ignore[no-untyped-def]
    grads = _gradients(labels, weight)
    losses = hidden.new_empty(len(labels), dtype=torch.float32)
    if len(labels):
        torch.mm(_chosen(hidden, rows), weight.T, out=grads[:, : len(weight)])
        padded = F.pad(bias, (0, grads.shape[1] - len(bias)))
        with torch.cuda.device_of(weight):
            classification_softmax[(len(labels),)](grads, padded, labels, losses, **tiling(len(weight)))
    return losses.sum(), grads


@_forward.register_fake
def _(hidden, rows, weight, bias, labels):  # type: ignore[no-untyped-def]
    return hidden.new_empty((), dtype=torch.float32), _gradients(labels, weight)


def _gradients(labels: Tensor, weight: Tensor) -> Tensor:
    """Memory for logits and their gradients [M, V and some more]."""
    return weight.new_empty(len(labels), tiling(len(weight))["PADDED"])


def _chosen(hidden: Tensor, rows: Tensor | None) -> Tensor:
    return hidden if rows is None else hidden[rows.abs()]


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden, rows, weight, _, _ = inputs
    ctx.save_for_backward(hidden, rows, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_loss, _grad_gradients):  # type: ignore[no-untyped-def]
    hidden, rows, weight, padded = ctx.saved_tensors
    grads = padded[:, : len(weight)]
    # As for the rows' beginnings: a product along 30,520 words, and one along the two that are left.
    even = len(weight) // 8 * 8
    for_rows = grads[:, :even] @ weight[:even] + grads[:, even:] @ weight[even:]
    for_hidden = (for_rows * grad_loss).to(hidden.dtype)
    if rows is not None:
        for_hidden = torch.zeros_like(hidden).index_add_(0, rows.abs(), for_hidden)
    factors = (_chosen(hidden, rows) * grad_loss).to(hidden.dtype)
    for_weight = torch.empty_like(weight)
    torch.mm(grads[:, :even].T, factors, out=for_weight[:even])
    torch.mm(grads[:, even:].T, factors, out=for_weight[even:])
    for_bias = (grads.sum(0, dtype=torch.float32) * grad_loss).to(weight.dtype)
    return for_hidden, None, for_weight, for_bias, None


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def classification_loss_reference(
    hidden: Tensor, rows: Tensor | None, weight: Tensor, bias: Tensor, labels: Tensor
) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type."""
    logits = F.linear(_chosen(hidden, rows), weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)


def classification_loss(
    hidden: Float[Tensor, "Q H"],
    rows: Int[Tensor, " M"] | None,
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"],
    labels: Int[Tensor, " M"],
) -> Float[Tensor, ""]:
    """Computes the cross-entropy of a linear layer over chosen rows, summed over the rows.

    Args:
        hidden: Hidden states, [Q, H].
        rows: The rows of `hidden` that are classified, [M]; negative ones are no rows. None takes all rows one by one.
        weight: The weight of the linear layer, [V, H] for V classes.
        bias: The bias of the linear layer, [V].
        labels: The class of each row, [M]; -1 leaves a row out.

    Returns:
        The sum as a float32 scalar. Without any row it is a zero that still has gradients.

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride. Values are not checked.
    """
    name = "classification_loss"
    must(name, weight.dim() == 2, "the shape of weight", tuple(weight.shape), "[V, H]")
    check_tensor(name, "hidden", hidden, "Q, H", (None, weight.shape[1]), weight)
    check_tensor(name, "bias", bias, "V", (len(weight),), weight)
    if rows is not None:
        check_tensor(name, "rows", rows, "M", (None,), weight, torch.int64)
    masked = len(hidden if rows is None else rows)
    check_tensor(name, "labels", labels, "M", (masked,), weight, torch.int64)
    if not uses_kernels(weight):
        return classification_loss_reference(hidden, rows, weight, bias, labels)
    loss: Tensor = _forward(hidden, rows, weight, bias, labels)[0]
    return loss
