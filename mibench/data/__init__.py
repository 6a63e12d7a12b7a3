"""Tasks: what is private, what is public, what they look like. To add one: file, line."""

from mibench.data.avatars import Avatars
from mibench.data.base import Corpus, Sizes, Splits, Task
from mibench.data.celeba import CelebA
from mibench.data.celeba_vmi import CelebAVMI
from mibench.data.cifar10 import CIFAR10
from mibench.data.digits import Digits
from mibench.data.folder import Folder
from mibench.data.mnist import MNIST
from mibench.data.pair import Pair
from mibench.data.synthetic import Blobs

TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Avatars, Digits, MNIST, CIFAR10, CelebA, CelebAVMI, Folder, Blobs, Pair)
}

__all__ = [
    "CIFAR10",
    "MNIST",
    "TASKS",
    "Avatars",
    "Blobs",
    "CelebA",
    "CelebAVMI",
    "Corpus",
    "Digits",
    "Folder",
    "Pair",
    "Sizes",
    "Splits",
    "Task",
]
