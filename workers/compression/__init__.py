"""The mathematics of IMPACT: importance-weighted low-rank approximation of linear layers.

Imports torch only: no Ray, no I/O, no service. The order of use:

    layers       which linear layers a model has, and which of them share an input
    statistics   activation moments and output gradients, measured on calibration tokens
    metrics      what a method is: a left and a right metric (L, R)
    solve        the eigenproblem of one layer, giving its spectrum and its factors
    allocation   the rank of every layer under a parameter budget
    lowrank      the module that takes a linear layer's place
    checkpoint   the format in which a compressed model is kept

Symbols, throughout: a layer y = W x + b with W of shape (out, in); g = ∂ℓ/∂y per token, ℓ the
sum of token cross-entropies; D = diag(√E[g²]); C = Cov(D y).
"""
