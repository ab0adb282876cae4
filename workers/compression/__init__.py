"""The mathematics of IMPACT: importance-weighted low-rank approximation of linear layers.

It imports torch only: no Ray, no I/O, no service. The order of use:

    layers       finds a model's linear layers, and which of them share an input
    statistics   measures activation moments and output gradients on calibration tokens
    metrics      defines each method by a left and a right metric (L, R)
    solve        solves the eigenproblem of one layer for its spectrum and its factors
    allocation   chooses the rank of every layer under a parameter budget
    lowrank      defines the module that replaces a linear layer
    checkpoint   defines the format of a compressed model

Symbols, throughout: a layer y = W x + b with W of shape (out, in); g = ∂ℓ/∂y per token, ℓ the
sum of token cross-entropies; D = diag(√E[g²]); C = Cov(D y).
"""
