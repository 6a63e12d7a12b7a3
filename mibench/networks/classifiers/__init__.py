"""Classifiers, one family a file."""
