"""Tables, one file each. To add one: write the file, name it here."""

from mibench.benchmarks.tables.base import Reported, Table, versus
from mibench.benchmarks.tables.digits import DIGITS
from mibench.benchmarks.tables.smoke import SMOKE
from mibench.benchmarks.tables.table3 import TABLE3_MNIST

TABLES: dict[str, Table] = {t.name: t for t in (SMOKE, DIGITS, TABLE3_MNIST)}

__all__ = ["TABLES", "Reported", "Table", "versus"]
