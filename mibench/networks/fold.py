"""Frozen networks made quick for attacks, which want gradients of their input alone.

The same functions up to rounding: batch normalisation goes into the layer before it, and on a
CPU what torch does slowly there is done another way.
"""

import copy
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mibench.networks.generators.dcgan import MinibatchDiscrimination
from mibench.precision import BF16, current

Module = TypeVar("Module", bound=nn.Module)

NARROW = 3
"""Most channels of images for which a convolution's gradient is quicker as product and fold."""
PACKED_ROWS = 64
"""Most rows for which a product is quicker with a matrix that is laid out for it."""


def quick(network: Module) -> Module:
    """Returns a copy that computes the same up to rounding, faster.

    Gradients flow to its input, once; its weights are constants.

    Args:
        network: A network in eval mode; it stays as it is.
    """
    network = copy.deepcopy(network).requires_grad_(requires_grad=False)
    modules = list(network.modules())
    on_cpu = all(p.device.type == "cpu" for p in network.parameters())
    pools = any(isinstance(m, nn.MaxPool2d) for m in modules)
    for parent in modules:
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            _fold(parent)
        for name, child in parent.named_children() if on_cpu else ():
            parent.register_module(name, _for_cpu(child, channels_last=pools))
        for name, child in parent.named_children() if current() == BF16 else ():
            if type(child) in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) and not _hooked(child):
                parent.register_module(name, InBoth(child))
    return network.requires_grad_(requires_grad=False)


def _fold(layers: nn.Sequential) -> None:
    """Puts batch normalisations, constant in eval mode, into the layers before them."""
    # Not named_children, which tells of a layer used twice, such as one ReLU, once only.
    for before, norm in pairwise(list(layers._modules.items())):
        (name, layer), (norm_name, bn) = before, norm
        # A subclass may do more than normalise.
        if type(bn) is not nn.BatchNorm1d and type(bn) is not nn.BatchNorm2d:
            continue
        assert isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d)
        if bn.running_mean is None:
            continue
        if bn.training or _hooked(layer) or _hooked(bn):
            continue
        if type(layer) is nn.Linear:
            layers.register_module(name, fuse_linear_bn_eval(layer, bn))
        elif type(layer) is nn.Conv2d:
            layers.register_module(name, fuse_conv_bn_eval(layer, bn))
        elif type(layer) is nn.ConvTranspose2d and layer.groups == 1:
            layers.register_module(name, fuse_conv_bn_eval(layer, bn, transpose=True))
        else:
            continue
        layers.register_module(norm_name, nn.Identity())


def _hooked(module: nn.Module) -> bool:
    """Whether something is called when the layer is, which another in its place would not."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _for_cpu(module: nn.Module, *, channels_last: bool) -> nn.Module:
    """Returns what takes a layer's place on a CPU.

    Max pooling is many times as fast with channels last in memory, instance normalisation
    slower, so a network gets that layout if it pools.
    """
    if _hooked(module):
        return module
    if type(module) is MinibatchDiscrimination and _can_pack(module.T.dtype):
        return PackedDiscrimination(module)
    if type(module) not in {nn.Conv2d, nn.ConvTranspose2d}:
        return module
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    if channels_last:
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        return module
    if isinstance(module, nn.Conv2d) and module.in_channels <= NARROW:
        return NarrowConv(module, channels_last=channels_last)
    if isinstance(module, nn.ConvTranspose2d) and module.out_channels <= NARROW:
        return NarrowTransposedConv(module)
    return module


def _transposed(
    x: Tensor, conv: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]
) -> Float[Tensor, "n c h w"]:
    """Returns the transposed convolution of ``x``.

    As one product whose columns are summed. In bf16, of colour images, oneDNN itself takes a third
    of the time, and sums in float32.
    """
    assert not isinstance(conv.padding, str)
    kernel, pad, stride = conv.kernel_size, conv.padding, conv.stride
    weight = conv.weight.to(x.dtype)
    if x.dtype == torch.bfloat16 and weight.shape[1] > 1:
        rules = zip(size, x.shape[2:], kernel, pad, stride, strict=True)
        extra = [side - ((n - 1) * s - 2 * p + k) for side, n, k, p, s in rules]
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, weight, None, tuple(stride), tuple(pad), tuple(extra))
    columns = weight.flatten(1).T @ x.flatten(2)
    return F.fold(columns, size, tuple(kernel), 1, tuple(pad), tuple(stride))


class InBoth(nn.Module):
    """A layer whose weights are at hand in bf16, where each call would round them anew."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.wide, self.narrow = layer, copy.deepcopy(layer).bfloat16()
        self.narrow.to(memory_format=torch.channels_last)  # as mibench.convolution reads them

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer makes, in bf16 where that is asked for."""
        layer = self.narrow if torch.is_autocast_enabled(x.device.type) else self.wide
        out: Tensor = layer(x)
        return out


class NarrowConv(nn.Module):
    """A convolution of images, whose gradient torch computes at a tenth of the matrix rate."""

    def __init__(self, conv: nn.Conv2d, *, channels_last: bool) -> None:
        super().__init__()
        self.conv = conv
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Returns the convolution."""
        out: Tensor = _NarrowConv.apply(x, self.conv)
        return out.contiguous(memory_format=self.layout)  # of one channel, torch can't tell


class _NarrowConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.conv, ctx.size = conv, x.shape[2:]
        out: Tensor = conv(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _transposed(grads[0], ctx.conv, ctx.size), None


class NarrowTransposedConv(nn.Module):
    """A transposed convolution that draws images."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Float[Tensor, "n d i j"]) -> Float[Tensor, "n c h w"]:
        """Returns the transposed convolution."""
        conv = self.conv
        assert not isinstance(conv.padding, str)
        rules = zip(
            x.shape[2:], conv.stride, conv.padding, conv.kernel_size, conv.output_padding,
            strict=True,
        )  # fmt: skip
        height, width = ((n - 1) * s - 2 * p + k + extra for n, s, p, k, extra in rules)
        drawn = _transposed(x, conv, (height, width))
        return drawn if conv.bias is None else drawn + conv.bias[:, None, None]


class PackedDiscrimination(MinibatchDiscrimination):
    """Minibatch discrimination that keeps its big matrix in oneDNN's own layout.

    A product of a few rows with it is all reading; laid out otherwise, torch first copies it.
    """

    def __init__(self, plain: MinibatchDiscrimination) -> None:
        nn.Module.__init__(self)
        self.T, self.out = plain.T, plain.out
        self.dtype = torch.bfloat16 if current() == BF16 else torch.float32
        pack = torch.ops.mkldnn._reorder_linear_weight
        T = self.T.data.to(self.dtype)
        self.packed = tuple(pack(t.contiguous(), PACKED_ROWS) for t in (T.T, T))

    def project(self, f: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """Returns f T."""
        if len(f) > PACKED_ROWS:
            return super().project(f)
        M: Tensor = _PackedProduct.apply(f.to(self.dtype), *self.packed)
        return M.float()


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, there: Tensor, back: Tensor) -> Tensor:  # noqa: ANN401
        ctx.back = back
        return _product(f, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return _product(grads[0], ctx.back), None, None


def _product(x: Tensor, packed: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, None, "none", [], "")
    return out


def _can_pack(dtype: torch.dtype) -> bool:
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ready = built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return ready and dtype == torch.float32
