"""Tasks: what is private, what is public, what they look like. To add one: file, line."""

from mibench.data.base import Corpus, Splits, Task
from mibench.data.digits import Digits
from mibench.data.mnist import MNIST
from mibench.data.synthetic import Blobs

TASKS: dict[str, type[Task]] = {t.name: t for t in (Digits, MNIST, Blobs)}

__all__ = ["MNIST", "TASKS", "Blobs", "Corpus", "Digits", "Splits", "Task"]
