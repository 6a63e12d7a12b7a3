"""Tables and what fills, prints and draws them."""
