"""How nodes are asked: through Flower, by name."""
