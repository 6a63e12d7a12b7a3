"""A page of results that needs nothing but a browser: no network, no files beside it."""

from mibench.reporting.page.leaderboard import leaderboard
from mibench.reporting.page.page import page

__all__ = ["leaderboard", "page"]
