"""Table 5 of Peng et al., KDD 2022, without its faces: which of BiDO's two terms does what."""

from mibench.benchmarks.cell import Setting, Trials
from mibench.benchmarks.tables import avatars, digits
from mibench.benchmarks.tables.base import Table, versus
from mibench.defenses import BiDO, Recipe
from mibench.evaluation import Protocol
from mibench.roles import Attack, Defense

COCO, HSIC = (1, 50), (0.05, 0.5)


def ablation(
    name: str,
    images: str,
    setting: Setting,
    attack: Attack,
    trials: Trials,
    protocol: Protocol,
    recipe: Recipe,
    neither: Defense,
    notes: tuple[str, ...],
) -> Table:
    """Returns KED-MI against BiDO's terms, one by one and together."""
    terms: dict[str, Defense] = {
        "neither": neither,
        "COCO, X only": BiDO("coco_frobenius", lambda_x=COCO[0], lambda_y=0),
        "COCO, Y only": BiDO("coco_frobenius", lambda_x=0, lambda_y=COCO[1]),
        "COCO, both": BiDO("coco_frobenius", *COCO),
        "HSIC, X only": BiDO("nhsic", lambda_x=HSIC[0], lambda_y=0),
        "HSIC, Y only": BiDO("nhsic", lambda_x=0, lambda_y=HSIC[1]),
        "HSIC, both": BiDO("nhsic", *HSIC),
    }
    defenses = {label: (recipe, defense) for label, defense in terms.items()}
    return Table(
        name=name,
        caption=f"Ablation of BiDO against KED-MI on {images}.",
        source="Table 5, Peng et al. 2022",
        rows=versus(setting, attack, trials, protocol, defenses, "KED-MI"),
        columns=("accuracy", "attack_acc"),
        notes=(
            f"The weights are those of {name.partition('-')[2]}. neither: no defense, which is "
            "what BiDO of weight zero is under one recipe.",
            *notes,
        ),
    )


TABLE5_DIGITS = ablation(
    "table5-digits",
    "16x16 digits",
    digits.SETTING,
    *digits.ATTACKS["KED-MI"],
    Protocol(),
    digits.RECIPE,
    digits.DEFENSES["No Def."][1],
    digits.DIGITS.notes[2:],
)
TABLE5_AVATARS = ablation(
    "table5-avatars",
    "drawn portraits",
    avatars.SETTING,
    avatars.KED,
    avatars.TWENTY,
    avatars.PROTOCOL,
    avatars.RECIPE,
    avatars.DEFENSES["No Def."][1],
    avatars.NOTES,
)
