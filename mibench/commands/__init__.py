"""Commands, a file each or a few that belong together. To add one: write it, name it here."""

from mibench.commands.budgets import budgets
from mibench.commands.check import check
from mibench.commands.data import data_
from mibench.commands.describe import describe
from mibench.commands.diagnose import diagnose
from mibench.commands.explain import explain
from mibench.commands.figure import figure
from mibench.commands.imports import import_
from mibench.commands.records import compare, publish, record, verify
from mibench.commands.report import leaderboard, report, show
from mibench.commands.run import run
from mibench.commands.stores import check_store, clean
from mibench.commands.tables import events, list_, status, table

COMMANDS = (
    run, status, table, report, figure, show, explain, diagnose, budgets, record, verify, compare,
    publish, leaderboard, data_, events, import_, list_, describe, check, clean, check_store,
)  # fmt: skip
