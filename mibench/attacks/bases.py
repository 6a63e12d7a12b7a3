"""What attacks share by what they may do with the target."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mibench.attacks.goal import Rows
from mibench.attacks.views import identity_loss, payable, queries_per_image
from mibench.roles import Attack, IdentityLoss, View
from mibench.types import Access, Classifier, Images


class WhiteBox(Attack):
    """An attack that sees all of the target and follows its gradients.

    Attributes:
        identity: What makes a reconstruction the class's.
        views: The identity loss is the mean over these; without any, of the image as it is.
        augment: Views of the attack's own, in place of which ``views`` stand where there are any.
    """

    access: ClassVar[Access] = "white"
    identity: IdentityLoss
    views: tuple[View, ...] = ()
    augment: tuple[View, ...] = ()

    @property
    def queries_per_image(self) -> int:
        """Those about each of its views."""
        return queries_per_image(self.views or self.augment)

    def paid_steps(
        self, target: Classifier, steps: int, images: int, later: int = 0, reserved: int = 0
    ) -> int:
        """Returns how many of ``steps`` the answers that the target still gives pay for.

        Args:
            target: Limits its answers if it counts them.
            steps: Wanted.
            images: That a step asks about.
            later: That a step asks about of the classes whose turn has not come yet.
            reserved: Answers that are spent on other things, such as choosing where to start.

        Raises:
            ValueError: If they pay for none.
        """
        each = self.queries_per_image
        return payable(target, steps, images * each, later * each, reserved)

    def wrong(self, target: Classifier, x: Images, rows: Rows) -> Float[Tensor, " n"]:
        """Returns the identity loss of each image, the mean over the views."""
        views = self.views or self.augment
        return identity_loss(self.identity, views, target, x, rows.labels, rows.groups)


class BlackBox(Attack):
    """An attack that has the target's answers alone, and counts them.

    It says in ``access`` whether these are "scores" (probabilities) or "labels".
    """
