"""Training of compressed layers after the cut, by the gradients of some loss of the whole model."""
