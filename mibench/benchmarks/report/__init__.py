"""A page of results that needs nothing but a browser: no network, no files beside it."""

from mibench.benchmarks.report.leaderboard import leaderboard
from mibench.benchmarks.report.page import Chapter, page

__all__ = ["Chapter", "leaderboard", "page"]
