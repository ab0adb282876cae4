"""Weights in few bits: grids of integers, and rounding that knows what an error costs the loss."""
