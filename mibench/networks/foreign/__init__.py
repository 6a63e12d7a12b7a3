"""Networks that others released: their files, names and weights."""
