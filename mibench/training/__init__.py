"""Training classifiers: recipes, samplers and augmentations."""
