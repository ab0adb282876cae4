"""The counted operations are those that torch counts; a block keeps its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import gpu_operations as operations
from bench.gpu_model import SHAPES, random_model, random_tokens
from workers.compression.metrics import METHODS
from workers.compression.statistics import Observations
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.calibration import CalibrationSweep, Observed

CPU = torch.device("cpu")
SHAPE = SHAPES["tiny"]
KRON = METHODS["impact-kron"].observations


def counted(observations: Observations) -> dict[str, float]:
    """The operations that torch counts in every pass, without those of attention."""
    model = random_model(SHAPE, 1, torch.float32, CPU)
    model.passage.model.set_attn_implementation("eager")  # its products are bmm
    batches = random_tokens(SHAPE, SHAPE.sequences, SHAPE.length, 2)
    observed = Observed(observations, model.groups, torch.float32)
    boundaries = Boundaries({CPU: 1 << 30}, Path("unused"))
    sweep = CalibrationSweep(model.passage, model.weights, observed, batches, boundaries)
    passes: dict[str, Callable[[], object]] = {
        "forward": partial(sweep.forward, 0),
        "loss": sweep.loss,
        "backward": partial(sweep.backward, 0),
    }
    counts = {}
    for name, run in passes.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts[name] = float(counter.get_flop_counts()["Global"].get(torch.ops.aten.mm, 0))
    return counts


def test_operations_are_those_of_the_products() -> None:
    groups = random_model(SHAPE, 1, torch.float32, CPU).groups
    tokens = SHAPE.sequences * SHAPE.length
    attention = 2.0 * tokens * SHAPE.length * SHAPE.hidden  # of a pass; three times as much back
    counts = counted(KRON)
    assert counts["forward"] == operations.forward(SHAPE, groups, tokens) - attention
    predicted = tokens - SHAPE.sequences  # the last token of a sequence predicts nothing
    assert counts["loss"] == operations.head(SHAPE, predicted)
    # A moment this small is one whole product, of which half is needed: 4 of activations; and of
    # gradients 2 of the keys' and values' size, 5 others.
    halves = tokens * ((4 + 5) * SHAPE.hidden**2 + 2 * (SHAPE.hidden // 2) ** 2)
    needed = operations.backward(SHAPE, groups, tokens)
    assert counts["backward"] == needed - 3 * attention + halves


def test_a_block_has_the_same_weights_whenever_it_is_held() -> None:
    model = random_model(SHAPE, 2, torch.bfloat16, CPU)
    seen = []
    for number in (0, 1, 0):
        with model.weights.hold(number) as block:
            seen.append(block.get_parameter("mlp.up_proj.weight").clone())
        assert all(parameter.is_meta for parameter in block.parameters())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].dtype == torch.bfloat16
    assert float(seen[0].float().std()) == pytest.approx(0.02, rel=0.1)
