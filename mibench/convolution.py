"""Convolutions in bf16 on a CPU, done so that its matrix instructions gain the most.

The same mathematics as torch's. Maps and weights get their channels last in memory, for which
oneDNN has its quickest kernels. The gradient of weights over small maps is one matrix product:
oneDNN takes several times as long there, since its time grows with the weights.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROWS = 64
"""The greatest ratio of rows to channels at which the gradient of weights is one product."""

FEW_ROWS = 2
"""The greatest ratio of all images' pixels to channels at which a convolution is one product."""

SMALL_GROUP = 16
"""Channels below which a group is normalised in float32."""


class InBf16(TorchFunctionMode):
    """Inside, what torch computes of maps on a CPU is rounded to bf16 and computed here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own
        """Takes the place of some of torch's functions."""
        own = HERE.get(func)
        out = None if own is None else own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if out is None else out


def conv2d(x: Tensor, weight: Tensor, *how: Any, **named: Any) -> Tensor:  # noqa: ANN401
    """Returns ``F.conv2d`` of its arguments; in bf16 on a CPU by the means of this module."""
    out = _conv2d(x, weight, *how, **named) if x.dtype == torch.bfloat16 else None
    return F.conv2d(x, weight, *how, **named) if out is None else out


def conv_transpose2d(x: Tensor, weight: Tensor, *how: Any, **named: Any) -> Tensor:  # noqa: ANN401
    """Returns ``F.conv_transpose2d`` likewise."""
    out = _conv_transpose2d(x, weight, *how, **named) if x.dtype == torch.bfloat16 else None
    return F.conv_transpose2d(x, weight, *how, **named) if out is None else out


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401 - a number or two
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
    groups: int = 1,
) -> Tensor | None:
    return _convolved(x, weight, bias, stride, padding, dilation, False, 0, groups)


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    output_padding: Any = 0,  # noqa: ANN401
    groups: int = 1,
    dilation: Any = 1,  # noqa: ANN401
) -> Tensor | None:
    return _convolved(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,  # noqa: ANN401
    padding: Any,  # noqa: ANN401
    dilation: Any,  # noqa: ANN401
    transposed: bool,
    extra: Any,  # noqa: ANN401
    groups: int,
) -> Tensor | None:
    """Returns a convolution in bf16; None of one that is left to torch."""
    if isinstance(padding, str) or groups != 1 or x.dim() != 4 or x.device.type != "cpu":
        return None
    how = [_pair(stride), _pair(padding), _pair(dilation), transposed, _pair(extra), groups]
    if how[2] != [1, 1]:
        return None
    x, weight = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (x, weight))
    bias = None if bias is None else bias.to(torch.bfloat16)
    out: Tensor = _Convolution.apply(x, weight, bias, how)
    return out


def _pair(sides: Any) -> list[int]:  # noqa: ANN401
    return [sides, sides] if isinstance(sides, int) else list(sides)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Returns an instance normalisation as one of groups of one channel, half of its time.

    Of maps with channels last torch computes such groups fifty times as slowly as of others.
    """
    if running_mean is not None or not use_input_stats or x.dim() != 4 or x.device.type != "cpu":
        return None
    normed = F.group_norm(x.contiguous(), x.shape[1], weight, bias, eps)
    return normed.contiguous(memory_format=torch.channels_last)


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Returns a group normalisation of maps, computed in float32 where groups are small.

    There torch takes twice as long and more in bf16 with channels last.
    """
    small = x.dim() == 4 and x.shape[1] < SMALL_GROUP * num_groups
    if not small or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return None
    return F.group_norm(x.float(), num_groups, weight, bias, eps).bfloat16()


HERE: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    torch.conv_transpose2d: _conv_transpose2d,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
}


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: list[Any],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        # Unlike torch's own functions, this one is not told which gradients are wanted.
        ctx.before = weight.grad_fn
        stride, padding, _, transposed, _, _ = how
        if not transposed:
            sides = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
            i, j = ((side + 2 * zeros - k) // step + 1 for side, k, step, zeros in sides)
            if len(x) * i * j <= FEW_ROWS * len(weight):
                return _by_product(x, weight, bias, (i, j), stride, padding)
        out: Tensor = torch.ops.aten.convolution(x, weight, bias, *how)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        if ctx.before is not None:
            of_weight = of_weight and torch._C._will_engine_execute_node(ctx.before)
        stride, padding, _, transposed, _, _ = ctx.how
        g = grads[0].contiguous(memory_format=torch.channels_last)
        small, large = (x, g) if transposed else (g, x)
        rows, channels = small.numel() // small.shape[1], small.shape[1]
        last = not torch.is_grad_enabled()  # else the gradient is to have a gradient, by torch
        product = last and of_weight and rows <= ROWS * channels
        few = len(x) * x.shape[2] * x.shape[3] <= FEW_ROWS * x.shape[1]
        mirrored = last and of_x and few and not transposed and stride == [1, 1]
        dx, dw, _ = torch.ops.aten.convolution_backward(
            g, x, weight, None, *ctx.how,
            [of_x and not mirrored, of_weight and not product, False],
        )  # fmt: skip
        if product:
            dw = weight_gradient(small, large, weight.shape[2:], stride, padding)
        if mirrored:
            around = [k - 1 - zeros for k, zeros in zip(weight.shape[2:], padding, strict=True)]
            size = (x.shape[2], x.shape[3])
            dx = _by_product(g, _mirrored(weight), None, size, [1, 1], around)
        return dx, dw, g.sum((0, 2, 3)) if of_bias else None, None


def _by_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    stride: list[int],
    padding: list[int],
) -> Float[Tensor, "n a i j"]:
    """Returns a convolution, which gives maps of some size, as one product."""
    seen = windows(x, size, weight.shape[2:], stride, padding)
    matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    maps = F.linear(seen, matrix, bias)
    return maps.view(len(x), *size, len(weight)).permute(0, 3, 1, 2)


def _mirrored(weight: Float[Tensor, "a b k l"]) -> Float[Tensor, "b a k l"]:
    """Returns the weights by which the gradient of what a convolution took is one itself.

    Each pixel of the kernel is transposed alone: a fifth of the time of doing it at once.
    """
    a, b, k, l = weight.shape  # noqa: E741
    pixels = [weight[:, :, i, j].T for i in reversed(range(k)) for j in reversed(range(l))]
    return torch.stack(pixels, 1).view(b, k, l, a).permute(0, 3, 1, 2)


def weight_gradient(
    small: Float[Tensor, "n a i j"],
    large: Float[Tensor, "n b h w"],
    kernel: Any,  # noqa: ANN401
    stride: list[int],
    padding: list[int],
) -> Float[Tensor, "a b k l"]:
    """Returns the gradient of a convolution's weights as one product.

    Args:
        small: The gradient of what a convolution gave or, if it is transposed, what it took.
        large: What it took or, if it is transposed, the gradient of what it gave.
        kernel: (k, l).
        stride: By which the kernel moves over ``large``, two numbers.
        padding: Zeros on each side of ``large``, two numbers.
    """
    a, i, j = small.shape[1:]
    seen = windows(large, (i, j), kernel, stride, padding)
    product = small.permute(0, 2, 3, 1).reshape(-1, a).T @ seen
    return product.view(a, *kernel, large.shape[1]).permute(0, 3, 1, 2)


def windows(
    x: Float[Tensor, "n b h w"],
    size: tuple[int, int],
    kernel: Any,  # noqa: ANN401 - two numbers
    stride: list[int],
    padding: list[int],
) -> Float[Tensor, "rows seen"]:
    """Returns what a kernel sees at each of ``size`` places of each image.

    Rows are in the order of images, lines and pixels, columns in that of kernels whose channels
    are last.
    """
    (i, j), (k, l), (down, right), (top, left) = size, kernel, stride, padding  # noqa: E741
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    n, _, _, b = around.shape
    each, line, pixel, _ = around.stride()
    seen = around.as_strided((n, i, j, k, l * b), (each, down * line, right * pixel, line, 1))
    return seen.reshape(n * i * j, k * l * b)
