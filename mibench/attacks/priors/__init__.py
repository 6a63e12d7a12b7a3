"""Generative priors trained on public images, one family a file."""
