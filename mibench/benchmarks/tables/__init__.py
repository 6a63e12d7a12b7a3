"""Tables, one file each. To add one: write the file, name it here."""

from mibench.benchmarks.tables.base import Reported, Table, versus
from mibench.benchmarks.tables.digits import DIGITS
from mibench.benchmarks.tables.smoke import SMOKE

TABLES: dict[str, Table] = {t.name: t for t in (SMOKE, DIGITS)}

__all__ = ["TABLES", "Reported", "Table", "versus"]
