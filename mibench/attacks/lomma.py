r"""LOMMA: GMI and KED-MI with a loss of logits and with students of the target.

Nguyen et al., *Re-thinking Model Inversion Attacks Against Deep Neural Networks*, CVPR 2023,
https://arxiv.org/abs/2304.01669. Per image, l^0 being the target and l^1, … its students,

.. math:: L_{id} = -\frac1M \sum_m l^m_y(x) + w \, \mathrm{mean}_d (Z^0(x) - \mu)^2

in place of the attacks' cross-entropy. The attacks keep their names, so they
meet the same starts. The loss is :class:`LogitMatching`, which ``Augmented`` gives students.
"""

from collections.abc import Sequence
from typing import Any

from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.losses import LogitMatching
from mibench.attacks.students import Augmented, Student
from mibench.roles import IdentityLoss


def lomma_gmi(students: Sequence[Student] = (Student(),), **fields: Any) -> GMI:  # noqa: ANN401
    """Returns GMI as LOMMA runs it: 2,400 steps.

    Args:
        students: Networks beside the target, three in the paper; none for the loss alone.
        fields: Other values of GMI's fields.
    """
    return GMI(**{"steps": 2400, "identity": identity(students), **fields})


def lomma_kedmi(students: Sequence[Student] = (Student(),), **fields: Any) -> KEDMI:  # noqa: ANN401
    """Returns KED-MI as LOMMA runs it: latents held in [-1, 1], log σ² from 1 on.

    Args:
        students: As :func:`lomma_gmi` takes them.
        fields: Other values of KED-MI's fields.
    """
    released = {"steps": 2400, "log_var": 1.0, "clip": 1.0, "identity": identity(students)}
    return KEDMI(**{**released, **fields})


def identity(students: Sequence[Student]) -> IdentityLoss:
    """Returns the identity loss, with the weight 1 of every released configuration."""
    return Augmented(LogitMatching(), tuple(students)) if students else LogitMatching()
