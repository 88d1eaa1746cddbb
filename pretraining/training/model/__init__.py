"""The model: configuration, weights, layers, precision, loss."""
