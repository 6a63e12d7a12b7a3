"""Classes of equal score: no result may depend on how classes are numbered.

Equal scores count as if they stood in random order. What is counted is the mean over all such
orders; only an answer that must be one class is drawn. Scores that differ are ranked as they are.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def in_top(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], top: int = 1
) -> Float[Tensor, " n"]:
    """Returns the chance, 0 to 1, that each row's label is among its ``top`` largest logits.

    It is 1 or 0 where no other logit equals the label's, and 0 where the label's is NaN.
    """
    own = logits.gather(1, labels[:, None])
    ahead = (~(logits <= own)).sum(1)  # NaN is ahead of all, itself too
    equal = (logits == own).sum(1).clamp(min=1)
    return ((top - ahead).double() / equal).clamp(0, 1)


def votes(logits: Float[Tensor, "... k"]) -> Float[Tensor, "... k"]:
    """Returns each row's one vote: for its largest logit, in equal shares where several are."""
    first = (logits == logits.amax(-1, keepdim=True)).double()
    return first / first.sum(-1, keepdim=True)


def drawn(logits: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """Returns the class of each row's largest logit, on the logits' device.

    Where several are equal the global generator draws one of them; otherwise nothing is drawn.
    """
    first = logits == logits.amax(1, keepdim=True)
    answers = logits.argmax(1)
    tied = first.sum(1) > 1
    if tied.any():  # on the CPU: streams differ
        draws = torch.multinomial(first[tied].float().cpu(), 1)[:, 0]
        answers[tied] = draws.to(answers.device)
    return answers
