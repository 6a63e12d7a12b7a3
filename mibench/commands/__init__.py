"""Commands, a file each or a few that belong together.

To add one: write it, and name it here below its purpose.
"""

from mibench.commands.audit import audit
from mibench.commands.check import check
from mibench.commands.data import data_
from mibench.commands.describe import describe, list_
from mibench.commands.explain import explain
from mibench.commands.figure import figure
from mibench.commands.imports import import_
from mibench.commands.records import compare, records_
from mibench.commands.report import report
from mibench.commands.run import run
from mibench.commands.score import score
from mibench.commands.stores import store_
from mibench.commands.tables import status, table

COMMANDS = {
    "Compute": (run, status, score, audit),
    "Read what was computed": (table, explain, report, figure, compare),
    "Publish": (records_,),
    "Find out what there is": (list_, describe),
    "Write your own": (check,),
    "Bring in data and networks": (data_, import_),
    "Look after a store": (store_,),
}
"""Purpose → commands, as `mibench --help` lists them."""

RENAMED = {
    "record": "records write",
    "publish": "records publish",
    "verify": "records check",
    "leaderboard": "records board",
    "check-store": "store check",
    "clean": "store clean",
    "show": "figure row",
    "diagnose": "run --until dependence",
    "budgets": "table --budgets",
}
"""Former name → the words that call the command now. Former names go with 0.3.0."""
