"""What the report on quality says in words."""

HEADER = """# Quality

What compression costs in perplexity, by every method that Eigenpress knows, on one small model.
`make bench-quality` measures it and writes this page.

![Perplexity by what is kept](quality.svg)
"""

ADVANTAGE = """## Size advantage at equal perplexity

How much more ours takes off the linear parameters than a peer does, at the perplexity that the peer
has at each keep: *(1 − kept of ours) / (1 − kept of the peer) − 1*. Between measured points, the
dense model among them, the logarithm of the perplexity is taken as linear in what is kept. Nothing
is extrapolated: *beyond +x* says that ours is still better at the smallest size measured, where its
advantage is x already; *beyond* alone, that it was never that good. The best uniform peer is, at
each keep, the peer with the least perplexity under uniform allocation.
"""

METHOD = """## How it was measured

*Keep* is about the linear parameters inside the blocks; embeddings and norms stay as they are.
`uniform` keeps the same fraction of every layer; `global` spends one budget where it saves most of
the method's own error. One calibration serves all methods.

Peers are stored as their authors store them: two factors, *r (out + in)* parameters, and no rank
at which that is not less than the dense layer. Ours are stored as interpolative decompositions,
*r (out + in − r)*. Two rows tell what storage gives from what the metric gives: `impact` in two
factors, and `afm` interpolative. A compressed layer computes the same in either form, so the
product of its factors is measured in the dense layer's place.

### The peers, and where a full reproduction would differ

Each method's spectrum and factors are checked against a float64 SVD of its definition written out
(`test_every_method_is_the_svd_of_its_definition`).

| method | setting | what differs |
|---|---|---|
| `svd` | plain truncation of the weights | nothing |
| `fwsvd` | rows weighted by the root of their Fisher information | the rows are those of \
*y = W x*, where some read the paper's *Z = X W* and weight the inputs; Fisher information summed \
over the gradients of whole sequences of the calibration text, not over a task's batches |
| `asvd` | inputs weighted by (E\\|x\\|)^½ | `uniform` and `global` replace its search of ranks by \
each layer's sensitivity |
| `svd-llm` | inputs whitened by E[x xᵀ] | without its update of the factors by LoRA |
| `afm` | principal components of the outputs | `impact` with every output as important; the bias \
that keeps the mean is counted |

All calibrate on the same text, and on less of it than their authors use (SVD-LLM: 256 sequences of
2,048 tokens). No peer's authors allot ranks as `global` does; the peers' own errors are not in
units of the loss, and need not compare across layers. One small model says little of large ones,
which lose less at the same size.
"""
