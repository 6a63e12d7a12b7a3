"""The loops of attacks: they resume, save, count, check and tell how far they are.

An attack that runs its rounds by :func:`rounds`, or by :func:`descend`, which is written on it,
resumes to the same bits without another line. What it does between two loops is done again when
it resumes, so it must be the same each time: from the streams of the blocks, or from nothing.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.goal import Goal, Rows
from mibench.store import Payload, State, Work, check_finite, frozen, restore


def rounds(
    state: State,
    advance: Callable[[int], Tensor | None],
    count: int,
    goal: Goal,
    work: Work,
    *,
    result: Callable[[], Payload] | None = None,
    until: Callable[[], bool] | None = None,
    show: Callable[[], Float[Tensor, "s n c h w"]] | None = None,
    what: str = "a latent",
    every: int = 50,
) -> Payload:
    """Runs ``advance(0)``, ``advance(1)``, … and returns what is left.

    Args:
        state: All that ``advance`` changes but the streams of the blocks: tensors and modules
            in place, plain values by assignment to this dict.
        advance: Takes the number of the round; may return a tensor that has to be finite.
        count: The greatest number of rounds.
        goal: What is reconstructed; its streams are saved along.
        work: Where the state is saved and the rounds are counted.
        result: Returns what is left, at the end; by default the state's tensors.
            When a later loop is resumed this one is not run again, and this is what it returns.
        until: Asked before each round whether to stop.
        show: Returns the images that would count if the attack ended now, (samples, classes,
            c, h, w) in [0, 1], and asks the target nothing; called without gradients where
            ``goal.marks`` are passed. What it draws is drawn again afterwards.
        what: Names the tensor that is checked, for the message.
        every: The number of rounds between two checks and reports of progress.

    Raises:
        FloatingPointError: If what ``advance`` returned is not finite.
    """
    streams: State = {str(i): stream for i, stream in enumerate(goal.streams)}

    def run() -> Payload:
        done = 0
        moments: list[Payload] = []
        if (saved := work.load()) is not None:
            restore(state, saved["state"])
            restore(streams, saved["streams"])
            done = saved["rounds"]
            moments = saved.get("moments", [])

        def everything() -> Payload:
            return {"state": frozen(state), "streams": streams, "rounds": done, **kept()}

        def kept() -> Payload:
            return {"moments": moments} if moments else {}

        while done < count and not (until is not None and until()):
            value = advance(done)
            done += 1
            work.steps += 1
            passed = sum(work.queries >= mark * len(goal.labels) for mark in goal.marks)
            if show is not None and passed > _passed([*goal.moments, *moments]):
                images = _shown(show, goal, work)
                moments.append({"passed": passed, "asked": work.queries, "images": images})
            if (tell := done % every == 0 or done == count) and value is not None:
                check_finite(value, f"{what} after step {done}")
            work.save(everything)
            if tell:
                work.progress(work.steps, max(goal.planned, work.steps - done + count))
        left = result() if result is not None else _tensors(state)
        ends = {i: s.get_state() for i, s in streams.items()}
        return {"left": left, "streams": ends, **kept()}

    ended = work.part("loop", run)
    restore(streams, ended["streams"])
    goal.moments.extend(ended.get("moments", []))
    left: Payload = ended["left"]
    return left


def _passed(moments: list[Payload]) -> int:
    """Returns how many marks the last of the moments has passed."""
    return moments[-1]["passed"] if moments else 0


@torch.no_grad()
def _shown(show: Callable[[], Tensor], goal: Goal, work: Work) -> Float[Tensor, "s n c h w"]:
    """Returns what ``show`` does, as float16; no stream has moved afterwards."""
    before = [stream.get_state() for stream in goal.streams]
    with torch.random.fork_rng([work.device] if work.device.type == "cuda" else []):
        images = show().half()
    for stream, state in zip(goal.streams, before, strict=True):
        stream.set_state(state)
    return images


def descend(
    moving: Float[Tensor, "..."],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Rows], Tensor],
    steps: int,
    goal: Goal,
    work: Work,
    *,
    latents: Callable[[], Tensor] | None = None,
    copies: int | None = None,
    after: Callable[[], object] | None = None,
    looks: int = 1,
    beside: State | None = None,
    show: Callable[[], Float[Tensor, "s n c h w"]] | None = None,
) -> None:
    """Moves a tensor down the gradient of a loss of images, all classes and copies at once.

    Args:
        moving: What the optimiser moves, a leaf, (copies, classes, ...) unless ``latents`` says
            otherwise.
        optimizer: Moves it.
        loss: Takes rows of latents, (n, ...), and the rows' labels and blocks; returns the loss
            of each, shape (n,). Losses are averaged over a block and summed over blocks.
        steps: How many.
        goal: What is reconstructed.
        work: Where to save state, count and report.
        latents: Returns the latents (copies, classes, ...) of a step, where they are not
            ``moving`` itself; gradients flow through it.
        copies: How many images of each class a step computes; by default ``len(moving)``.
        after: Called after each step, without gradients.
        looks: As how many images one is computed, where the loss looks at it in several ways.
        beside: What else the loss or ``after`` change, in place, and what is left of it.
        show: As :func:`rounds` takes it.
    """
    parts = goal.rows(len(moving) if copies is None else copies).parts(
        looks * torch.Size(goal.shape).numel()
    )
    beside = beside or {}

    def advance(_: int) -> Tensor:
        z = moving if latents is None else latents()
        gradient = _gradient(z.flatten(0, 1), parts, loss).view_as(z)
        if latents is not None:
            (gradient,) = torch.autograd.grad(z, moving, gradient)
        moving.grad = gradient
        optimizer.step()
        if after is not None:
            with torch.no_grad():
                after()
        return moving

    state = {"moving": moving, "optimizer": optimizer, **beside}
    left = rounds(state, advance, steps, goal, work, show=show)
    for name, value in {"moving": moving, **beside}.items():
        if isinstance(value, Tensor):
            value.data.copy_(left[name])


def _gradient(
    z: Tensor, parts: list[tuple[slice, Rows]], loss: Callable[[Tensor, Rows], Tensor]
) -> Tensor:
    """Returns the gradient at z, (n, ...), of the blocks' mean losses, summed."""
    gradients: list[Tensor] = []
    for place, rows in parts:
        leaf = z[place].detach().requires_grad_()
        total = (loss(leaf, rows) * rows.weights).sum()
        gradients += torch.autograd.grad(total, leaf)
    return torch.cat(gradients)


def _tensors(state: State) -> Payload:
    """Returns copies of the state's tensors."""
    return {k: v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)}
