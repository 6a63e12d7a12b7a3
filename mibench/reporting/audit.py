"""What an audit comes to, in plain words."""

from collections.abc import Sequence

from mibench.benchmarks.row import Row
from mibench.evaluation.significance import LEVEL
from mibench.reporting.cautions import weaknesses
from mibench.reporting.results import Entry, Results

FLOOR = "MI-Face"
NO_PROOF = (
    "A low number is no proof of privacy: these attacks were short and their priors small, and an "
    "attacker with more time, better public images or another attack may recover more. A high "
    "number says what the evaluation classifier sees, not what a person sees: look at the picture."
)


def verdict(results: Results, left_out: Sequence[str] = ()) -> str:
    """Returns a paragraph: what was recovered, how sure that is, and what it does not show.

    Args:
        results: Of the attacks that were run.
        left_out: Names of attacks for which there was no time.
    """
    there = [label for label, count in results.found.items() if count]
    scores = {k: results.entries[k]["attack_acc"].mean or 0.0 for k in there}
    strongest = max(there, key=lambda label: scores[label])
    cell = results.table.rows[strongest]
    entry = results.entries[strongest]["attack_acc"]
    tried = [Row.of(label).attack for label in there]
    attack = Row.of(strongest).attack
    classes, samples = cell.trials.classes, cell.trials.samples
    some = "all" if classes == results.classes else f"{classes} of the"
    control = results.controls.get(strongest, Entry())
    sentences = [
        f"{_listed(tried)} tried to rebuild images of {some} {results.classes} classes, and the "
        f"evaluation classifier, which is right about {results.evaluator or 0:.1f} % of the test "
        "images, judged what came out.",
    ]
    if left_out:
        sentences.append(f"For {_listed(left_out)} the budget was too short.")
    if len(tried) > 1:
        sentences.append(f"The attack that recovered most was {attack}.")
    sentences.append(
        f"The evaluation classifier recognises the attacked class in {scores[strongest]:.1f} % of "
        f"the {classes * samples} reconstructions of {attack}{_span(entry)}."
    )
    if control.mean is not None:
        sentences.append(
            f"Of as many samples of its prior, drawn without asking the model, it "
            f"recognises {control.mean:.1f} %; a blind guess gets "
            f"{100 / (results.classes or 1):.1f} %."
        )
    sentences.append(_sureness(control, attack, tried))
    sentences += [f"But {why}." for why in weaknesses(results, strongest)]
    return " ".join([*sentences, NO_PROOF])


def _sureness(control: Entry, attack: str, names: Sequence[str]) -> str:
    """Returns whether an attack found more than its control, of those that were tried."""
    tried = len(names)
    if control.contrast is None:
        return "Nothing was measured beside it, so nothing shows that the attack worked."
    test = control.contrast.test
    span = test.interval
    if test.diff <= 0:
        p = 1.0
    elif test.p is None:  # differences that all agree: a test of signs
        p = 2.0**-span.n
    else:
        p = test.p / 2
    p = min(1.0, p * tried)
    sure = f"over {span.n} classes, p = {p:.2g}"
    sure += f" after correction for {tried} attacks" * (tried > 1)
    if span.low is not None and span.high is not None:
        sure = f"95 % interval {span.low:.1f} to {span.high:.1f}, {sure}"
    difference = (
        f"The difference between {attack} and its prior is {test.diff:+.1f} points ({sure})"
    )
    if p <= LEVEL:
        return (
            f"{difference}: the model gives away something of what the images of its classes look "
            "like."
        )
    if set(names) == {FLOOR}:
        return (
            f"{difference}, which is not significant. {FLOOR} has no prior and seldom finds "
            "anything, so this says nothing about the model: give the audit more time."
        )
    return (
        f"{difference}, which is not significant: these attacks do not show that the model gives "
        "anything away."
    )


def _span(entry: Entry) -> str:
    span = entry.identities
    if span is None or span.low is None:
        return ""
    return f" (95 % interval over classes {span.low:.1f} to {span.high:.1f} %)"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
