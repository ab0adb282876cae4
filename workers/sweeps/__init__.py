"""Passes over a model's blocks, one block at a time.

calibration ──> passage       the model's own forward pass with its blocks taken out
     └────────> boundaries    the hidden states between the blocks
                     └──────> copies    between a GPU and the host
"""
