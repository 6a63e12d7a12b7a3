"""The command check: a user's components, held to what their roles promise."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.shared import refusing

if TYPE_CHECKING:
    from mibench.running.checks import Check, Trial

SLOW = 20.0
"""Seconds of computing for one check after which a note says how to make the component smaller."""


@click.command()
@click.argument("file", type=options.anywhere)
def check(file: Path) -> None:
    """Check that your own components keep their promises.

    FILE defines attacks, defenses, releases, priors, networks, views or identity losses. Each
    promise prints one line: "ok", "FAIL" with what is wrong and what to change, or "--" with the
    reason why it was not checked. They run on small drawn images with the values in the class's
    `small`, in about a minute. FILE is executed, several times. The exit status is 1 if a check
    fails.

    Example: mibench check my_attack.py
    """
    from mibench.running.checks import own_components, role_of, trial_of
    from mibench.running.userfile import load_user_file

    with refusing():
        classes = list(own_components(load_user_file(file)))
        if not classes:
            raise ValueError(
                f"{file} defines no class that derives from Attack, Defense, Release, PriorSpec, "
                "NetworkSpec, View or IdentityLoss of mibench, so there is nothing to check"
            )
    failures = 0
    for cls in classes:
        role, _, checks = role_of(cls)
        click.echo(f"{cls.__name__} ({role})")
        failures += _component(trial_of(cls, file), checks)
    if failures:
        click.echo(f"{failures} checks failed" if failures > 1 else "1 check failed", err=True)
        sys.exit(1)


def _component(trial: "Trial", checks: "tuple[Check, ...]") -> int:
    """Prints a line for each check as soon as it is done; returns how many failed.

    Where the first fails, the component does not run, and the others cannot be checked.
    """
    from mibench.running.checks import BrokenPromiseError, NotCheckedError

    failures = 0
    for number, promise in enumerate(checks, 1):
        if sys.stderr.isatty():
            click.echo(f"  {number} of {len(checks)}: {promise.title} ...\r", err=True, nl=False)
        begun = time.process_time()
        try:
            with trial.guarded():
                promise.run(trial)
        except BrokenPromiseError as error:
            verdict, failures = f"FAIL  {promise.title}: {error}", failures + 1
        except NotCheckedError as error:
            verdict = f"--    {promise.title}: {error}"
        else:
            verdict = f"ok    {promise.title}"
        if sys.stderr.isatty():
            click.echo("\033[K", err=True, nl=False)
        click.echo(f"  {verdict}")
        if (seconds := time.process_time() - begun) > SLOW:
            click.echo(
                f"note: this check computed for {seconds:.0f} s; write smaller values into "
                f'{trial.cls.__name__}, such as small: ClassVar[dict[str, Any]] = {{"steps": 5}}',
                err=True,
            )
        if failures and number == 1:
            if others := len(checks) - 1:
                click.echo(f"  --    {others} more: not checked, since it does not run")
            break
    return failures
