"""The fixed texts of the report on quality."""

HEADER = """# Quality

This page shows the cost of compression in perplexity, for every method of Eigenpress, on one small
model. `make bench-quality` measures it and writes the page.

![Perplexity by what is kept](quality.svg)
"""

ADVANTAGE = """## Size advantage at equal perplexity

The advantage is how many more linear parameters ours removes than a peer, at the perplexity that
the peer has at each keep: *(1 − kept of ours) / (1 − kept of the peer) − 1*. Between measured
points, which include the dense model, the logarithm of the perplexity is interpolated linearly.
Nothing is extrapolated: *beyond +x* means that ours is still better at the smallest size measured,
where its advantage is x; *beyond* alone means that ours is better at no size. The best uniform peer
is, at each keep, the peer with the lowest perplexity under uniform allocation.
"""

METHOD = """## How it was measured

*Keep* counts the linear parameters inside the blocks; embeddings and norms are not compressed.
`uniform` keeps the same fraction of every layer; `global` spends one budget where it reduces the
method's own error most. One calibration serves all methods.

Peers are stored as by their authors: two factors with *r (out + in)* parameters, and only
at ranks where these are fewer than the dense layer's. Ours are stored as interpolative
decompositions, *r (out + in − r)*. Two rows separate the effect of storage from that of the
metric: `impact` in two factors, and `afm` interpolative. A compressed layer computes the same in
either form, so the product of its factors is measured in place of the dense layer.

### The peers, and how a full reproduction would differ

Each method's spectrum and factors are checked against a float64 SVD of its definition
(`test_every_method_is_the_svd_of_its_definition`).

- `svd` truncates the plain weights. A full reproduction would be the same.
- `fwsvd` weights rows by the root of their Fisher information. The rows are those of *y = W x*;
  some read the paper's *Z = X W* and weight the inputs. The Fisher information is summed over the
  gradients of whole sequences of the calibration text, not over a task's batches.
- `asvd` weights inputs by (E|x|)^½. `uniform` and `global` replace its search of ranks by the
  sensitivity of each layer.
- `svd-llm` whitens inputs by E[x xᵀ]. Its update of the factors by LoRA is omitted.
- `afm` takes the principal components of the outputs. It is `impact` with equal importance for
  all outputs; the bias that keeps the mean is counted.

All calibrate on the same text, and on less of it than their authors use (SVD-LLM: 256 sequences of
2,048 tokens). No peer's authors allocate ranks as `global` does; the peers' own errors are not in
units of the loss, and may not be comparable across layers. One small model says little about large
ones, which lose less at the same size.
"""
