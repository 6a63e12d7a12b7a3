"""Architectures, by the names the literature gives them. To add one: file, line."""

from mibench.networks.classifiers.facenet import IR152, IRSE50, FaceNet, FaceNet64
from mibench.networks.classifiers.lenet import MCNN, MLP, SCNN
from mibench.networks.classifiers.mobilefacenet import MobileFaceNet
from mibench.networks.classifiers.resnet import ResNet34
from mibench.networks.classifiers.vgg import VGG16, VGG19
from mibench.networks.foreign.imported import Imported, Pretrained
from mibench.networks.foreign.weights import Weights
from mibench.roles import NetworkSpec

NETWORKS: dict[str, type[NetworkSpec]] = {
    n.name: n
    for n in (
        MCNN, SCNN, MLP, VGG16, VGG19, ResNet34, FaceNet, FaceNet64, IR152, IRSE50, MobileFaceNet
    )
}  # fmt: skip
"""Those that need nothing else."""
FROM_FILES: dict[str, type[NetworkSpec]] = {n.name: n for n in (Imported, Pretrained)}
"""Those that are another one with a file's weights, and need to be told both."""

__all__ = [
    "FROM_FILES", "IR152", "IRSE50", "MCNN", "MLP", "NETWORKS", "SCNN", "VGG16", "VGG19",
    "FaceNet", "FaceNet64", "Imported", "MobileFaceNet", "Pretrained", "ResNet34", "Weights",
]  # fmt: skip
