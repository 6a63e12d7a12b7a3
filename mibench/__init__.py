"""mibench: defended classifiers, model-inversion attacks, and what the attacks recover."""

__version__ = "0.1.0"
