r"""Kernel measures of dependence between the rows of two samples.

Equation numbers are those of Peng et al., KDD 2022, https://arxiv.org/abs/2206.05483. A
measure takes two Gram matrices of the same n samples, or stacks of them, and is zero when
either sample is constant. Everything n x n is done in float64: a Gaussian kernel as wide as
theirs is 1 up to a few thousandths, so float32 loses the part that matters.

Of the population quantities, COCO is Eq. (1) and HSIC Eqs (3) and (4); what is computed are
their estimators.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Samples: TypeAlias = Sequence[Float[Tensor, "n _"]]
Gram: TypeAlias = Float[Tensor, "*#b n n"]
Dependence: TypeAlias = Float[Tensor, "..."]


# Kernels ----------------------------------------------------------------------------------


def squared_distances(xs: Samples) -> Float[Tensor, "b n n"]:
    """Returns ‖x_i − x_j‖² of every sample, float64, at least 0, exactly 0 on the diagonal.

    Rows are centred and multiplied in float64, for rows that nearly repeat each other; the
    gradient takes one product in the precision of each sample.

    Args:
        xs: Samples of the same n objects, each of its own width.
    """
    distances: Tensor = _SquaredDistances.apply(*xs)
    return distances


class _SquaredDistances(torch.autograd.Function):
    """∂/∂x_i of Σ_ij g_ij ‖x_i − x_j‖² is 2 Σ_j (g_ij + g_ji)(x_i − x_j): one product."""

    @staticmethod
    def forward(ctx: Any, *xs: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        ctx.save_for_backward(*xs)
        wide = [x.double() for x in xs]
        G = linear_kernel([x - x.mean(0) for x in wide])
        squares = G.diagonal(dim1=1, dim2=2)
        D = (squares[:, :, None] + squares[:, None] - 2 * G).clamp(min=0)
        D.diagonal(dim1=1, dim2=2).zero_()
        return D

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        S = grads[0] + grads[0].mT
        S = S - torch.diag_embed(S.diagonal(dim1=1, dim2=2))
        W = 2 * (torch.diag_embed(S.sum(2)) - S)
        return tuple(
            w.to(x.dtype) @ (x - x.mean(0)) if needed else None
            for w, x, needed in zip(W, ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        )


def gaussian_kernel(xs: Samples, scale: float = 5.0) -> Float[Tensor, "b n n"]:
    r"""Gram matrices of the Gaussian kernel, Appendix C.

    .. math:: K_{ij} = \exp(-\|x_i - x_j\|^2 / 2\sigma^2), \quad \sigma = 5 \sqrt{d}
    """
    D = squared_distances(xs)
    widths = D.new_tensor([2 * scale**2 * x.shape[1] for x in xs])
    return (-D / widths[:, None, None]).exp()


def median_kernel(xs: Samples) -> Float[Tensor, "b n n"]:
    r"""Gram matrices of the Gaussian kernel with the median heuristic.

    .. math:: K_{ij} = \exp(-\|x_i - x_j\|^2 / \mathrm{median}_{k<l} \|x_k - x_l\|^2)

    Gretton et al., JMLR 2012. The median is a constant of the batch: no gradient flows
    through it. Where it is 0 (most rows equal), the kernel is that of width 1.
    """
    D = squared_distances(xs)
    above = torch.ones_like(D[0], dtype=torch.bool).triu(1)
    pairs = D.detach()[:, above].sort(1).values  # torch's median has no deterministic CUDA form
    median = pairs[:, (pairs.shape[1] - 1) // 2]
    return (-D / torch.where(median > 0, median, 1.0)[:, None, None]).exp()


def imq_kernel(xs: Samples) -> Float[Tensor, "b n n"]:
    r"""Gram matrices of the inverse multiquadric :math:`(1 + \|x_i - x_j\|^2)^{-1/2}`."""
    return (1 + squared_distances(xs)).rsqrt()


def linear_kernel(ys: Samples) -> Float[Tensor, "b n n"]:
    """Gram matrices Y Yᵀ, float64; the kernel for one-hot labels (Appendix C)."""
    return torch.stack([y @ y.T for y in map(torch.Tensor.double, ys)])


KERNELS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "gaussian": gaussian_kernel,
    "median": median_kernel,
    "imq": imq_kernel,
    "linear": linear_kernel,
}
"""Name → function of samples, each (n, d) with its own d, to their Gram matrices (b, n, n)."""


def center(K: Gram) -> Gram:
    """Returns HKH with H = I − 11ᵀ/n, in O(n²): rows, then columns, lose their mean."""
    K = K - K.mean(dim=-2, keepdim=True)
    return K - K.mean(dim=-1, keepdim=True)


# Measures ---------------------------------------------------------------------------------


def hsic(K: Gram, L: Gram) -> Dependence:
    r"""Empirical HSIC, Eq. (5); between X and Z_j it is Eq. (11a), between Z_j and Y (11b).

    .. math:: \mathrm{HSIC} = \frac{1}{(n-1)^2} \mathrm{Tr}(KHLH)

    Raises:
        ValueError: If n < 2.
    """
    n = _samples(K)
    return (center(K) * L).sum((-2, -1)) / (n - 1) ** 2


def nhsic(K: Gram, L: Gram, epsilon: float = 1e-5) -> Dependence:
    r"""Normalised HSIC, which the authors' released code calls HSIC.

    .. math:: \mathrm{Tr}(R_K R_L), \quad R_K = \tilde K (\tilde K + \epsilon n I)^{-1}

    The kernel form of Fukumizu et al., NeurIPS 2007, as in Ma et al., AAAI 2020,
    https://arxiv.org/abs/1908.01580. Between 0 and the smaller rank of the two centred
    matrices. The released code centres one side only, which gives the same trace.

    Args:
        K: Gram matrix of one sample.
        L: Gram matrix of the other.
        epsilon: Ridge; with a kernel this wide it is an effective hyper-parameter.

    Raises:
        ValueError: If n < 2.
    """
    ridge = epsilon * _samples(K)
    return (_shrunk(K, ridge) * _shrunk(L, ridge)).sum((-2, -1))


def _shrunk(K: Gram, ridge: float) -> Gram:
    """Returns R = K̃(K̃ + ridge·I)⁻¹ = I − ridge·(K̃ + ridge·I)⁻¹."""
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    K = center(K)
    inverse: Tensor = _Inverse.apply((K + K.mT) / 2 + ridge * eye)
    return eye - ridge * inverse


class _Inverse(torch.autograd.Function):
    """Inverse of positive definite matrices by Cholesky; its gradient takes two products.

    What has no such root, as after a divergence, gives NaN, which training reports.
    """

    @staticmethod
    def forward(ctx: Any, K: Tensor) -> Tensor:  # noqa: ANN401
        root, failed = torch.linalg.cholesky_ex(K)
        inverse: Tensor = torch.cholesky_inverse(root)
        inverse = inverse.masked_fill(failed[..., None, None] > 0, torch.nan)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        (inverse,) = ctx.saved_tensors
        gradient: Tensor = -inverse @ grads[0] @ inverse
        return gradient


def coco(K: Gram, L: Gram) -> Dependence:
    r"""Empirical constrained covariance, Eq. (2); Eq. (9a) for X and Z_j, (9b) for Z_j and Y.

    .. math:: \mathrm{COCO} = \frac{1}{n} \sqrt{\|\tilde K \tilde L\|_2}

    The norm is read as the largest singular value. The authors' released code takes the
    Frobenius norm instead; that is :func:`coco_frobenius`.

    Raises:
        ValueError: If n < 2.
    """
    norm: Tensor = torch.linalg.matrix_norm(center(K) @ center(L), ord=2)
    return _root(norm) / _samples(K)


def coco_frobenius(K: Gram, L: Gram) -> Dependence:
    r"""COCO with the Frobenius norm in Eq. (2), as the authors' released code computes it.

    .. math:: \frac{1}{n} \sqrt{\|\tilde K \tilde L\|_F}

    Raises:
        ValueError: If n < 2.
    """
    product = center(K) @ center(L)
    return _root(product.square().sum((-2, -1)), power=0.25) / _samples(K)


def kcca(K: Gram, L: Gram, kappa: float = 0.02) -> Dependence:
    r"""First regularised kernel canonical correlation, Bach & Jordan, JMLR 2002.

    .. math:: \max_{\alpha, \beta} \frac{\alpha^T \tilde K \tilde L \beta}
        {\|(\tilde K + \frac{n\kappa}{2} I) \alpha\| \, \|(\tilde L + \frac{n\kappa}{2} I) \beta\|}

    It is the largest singular value of R_K R_L with R = K̃(K̃ + nκ/2·I)⁻¹, in [0, 1); Peng et
    al. name it as a further choice.

    Args:
        K: Gram matrix of one sample.
        L: Gram matrix of the other.
        kappa: Regularisation κ.

    Raises:
        ValueError: If n < 2.
    """
    ridge = kappa * _samples(K) / 2
    norm: Tensor = torch.linalg.matrix_norm(_shrunk(K, ridge) @ _shrunk(L, ridge), ord=2)
    return norm


def _root(x: Tensor, power: float = 0.5) -> Tensor:
    """Returns x^power with gradient 0, not infinity, at 0: a constant sample is no error."""
    zero = x <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** power)


def _samples(K: Tensor) -> int:
    n = K.shape[-1]
    if n < 2:
        raise ValueError(f"a measure of dependence needs at least two samples, got {n}")
    return n


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hsic": hsic,
    "nhsic": nhsic,
    "coco": coco,
    "coco_frobenius": coco_frobenius,
    "kcca": kcca,
}
RIDGES = {"nhsic": "epsilon", "kcca": "kappa"}
"""Measure → the name of its ridge, for those that have one."""


def measure(name: str, ridge: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the named measure, with its ridge if it has one."""
    function = MEASURES[name]
    return partial(function, **{RIDGES[name]: ridge}) if name in RIDGES else function
