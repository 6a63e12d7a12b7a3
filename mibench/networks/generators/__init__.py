"""What generative priors are made of."""
