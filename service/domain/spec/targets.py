"""What a job makes: a size in parameters or in bytes, or a quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.fields import NAME_PATTERN, Body
from service.printable import shortened

MAX_PERPLEXITY_INCREASE = 1000.0
Scope = Literal["linear", "model"]
Optimize = Literal["size", "speed"]
Precisions = Literal["vllm", "vllm-cpu", "transformers"]
EmbeddingBits = Literal[16, 8]


class SizeTarget(Body):
    """One size to produce. Every target of a job is cut from the same calibration and spectra."""

    keep: float = Field(gt=0.0, lt=1.0, description="Fraction of the parameters to keep.")
    scope: Scope = Field(
        default="linear",
        description="Whether `keep` counts the compressible layers or the whole model.",
    )
    optimize: Optimize = Field(
        default="size",
        description="With `size` the ranks lose least. With `speed` they lose least among those "
        "at which a layer should be no slower than dense, by an estimate for CPUs; a layer without "
        "such a rank stays dense.",
    )

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``keep-0.8``, ``keep-0.8-of-model``."""
        scope = "" if self.scope == "linear" else "-of-model"
        return f"keep-{self.keep:g}{scope}{'' if self.optimize == 'size' else '-speed'}"


WIDTHS: Mapping[Precisions, tuple[int, ...]] = {
    "vllm": (4, 8),
    "vllm-cpu": (4,),
    "transformers": (2, 3, 4, 5, 6, 8),
}
"""The integers, by their bits, that each engine can load; all load the layers that stay dense."""

JOINING: frozenset[Precisions] = frozenset({"vllm", "vllm-cpu"})
"""These engines join the matrices of layers that share an input, so they need one width."""

SIDES: Mapping[Precisions, int] = {"vllm-cpu": 32}
"""What the sides of every matrix in integers must be a multiple of."""


class ByteTarget(Body):
    """A model of so many bytes. Each layer gets the bits that cost the loss least in all."""

    bytes_fraction: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Of the bytes that the parameters would take with 16 bits each.",
    )
    bytes: int | None = Field(default=None, ge=1, description="As stored.")
    scope: Scope = Field(
        default="linear",
        description="Whether the compressible layers or the whole model may have so many bytes.",
    )
    precisions: Precisions = Field(
        default="vllm",
        description="The engine that must load the artifact: `vllm` has integers of 4 and 8 bits, "
        "and one choice for q, k and v and for gate and up; `vllm-cpu` has 4 bits alone; "
        "`transformers` has 2 to 6 and 8 bits.",
    )
    embedding_bits: EmbeddingBits = Field(
        default=16,
        description="Of a number of the embedding and of the output layer, with 16 as they are. "
        "Only `transformers` has 8.",
    )

    @field_validator("embedding_bits")
    @classmethod
    def _engine_has_embeddings(cls, bits: EmbeddingBits, info: ValidationInfo) -> EmbeddingBits:
        precisions = info.data.get("precisions")  # None if it is invalid
        if bits != 16 and precisions not in (None, "transformers"):
            raise PydanticCustomError(
                "invalid_parameter",
                "'{precisions}' has no integers for the embedding and the output layer: leave it "
                "at 16, or set 'precisions' to 'transformers'",
                {"precisions": precisions},
            )
        return bits

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``bytes-0.28``, ``bytes-0.3-of-model``."""
        size = f"{self.bytes_fraction:g}" if self.bytes is None else str(self.bytes)
        scope = "" if self.scope == "linear" else "-of-model"
        engine = "" if self.precisions == "vllm" else f"-{self.precisions}"
        embeddings = "" if self.embedding_bits == 16 else f"-embeddings-{self.embedding_bits}"
        return f"bytes-{size}{scope}{engine}{embeddings}"


class QualityTarget(Body):
    """The smallest model whose perplexity is at most 1 + `max_perplexity_increase` times the dense.

    Found by bisection over measured sizes, to within half a percent of the compressible layers'
    parameters.
    """

    max_perplexity_increase: float = Field(
        gt=0.0,
        le=MAX_PERPLEXITY_INCREASE,
        description="As a fraction: 0.1 allows 1.1 times the dense model's perplexity.",
    )
    dataset: str = Field(
        default=HELD_OUT,
        pattern=NAME_PATTERN,
        description="The text to measure: `held-out`, or a dataset of the evaluation.",
    )
    precisions: Precisions | None = Field(
        default=None,
        description="With an engine's name the layers get fewer bits, and bytes are counted; "
        "unset: a lower rank, and parameters are counted.",
    )

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``increase-0.1``, ``increase-0.1-wiki``."""
        dataset = "" if self.dataset == HELD_OUT else f"-{self.dataset}"
        engine = "" if self.precisions is None else f"-{self.precisions}"
        return f"increase-{self.max_perplexity_increase:g}{dataset}{engine}"


SIZES = frozenset({"keep", "max_perplexity_increase", "bytes_fraction", "bytes"})
"""A target sets one of these fields."""


def _require_one_size(target: object) -> object:
    if not isinstance(target, Mapping):
        return target
    sizes = SIZES & target.keys()
    if sizes != {"keep"} and sum(target[size] is not None for size in sizes) != 1:
        raise PydanticCustomError(
            "invalid_parameter",
            "set one of 'keep' for a number of parameters, 'bytes_fraction' or 'bytes' for a size "
            "in bytes, or 'max_perplexity_increase' for a quality; the target has the fields: "
            "{fields}",
            {"fields": shortened(", ".join(map(ascii, target))) or "none"},
        )
    return target


def _kind(target: object) -> str:
    if isinstance(target, Mapping):
        if "max_perplexity_increase" in target:
            return "quality"
        return "size" if "keep" in target else "bytes"
    if isinstance(target, QualityTarget):
        return "quality"
    return "size" if isinstance(target, SizeTarget) else "bytes"


Target = Annotated[
    Annotated[SizeTarget, Tag("size")]
    | Annotated[QualityTarget, Tag("quality")]
    | Annotated[ByteTarget, Tag("bytes")],
    Discriminator(_kind),
    BeforeValidator(_require_one_size),
]


def rounds_embeddings(target: Target) -> bool:
    """Whether a target's embedding and output layer become integers."""
    return isinstance(target, ByteTarget) and target.embedding_bits != 16


def bits_of(target: Target) -> tuple[int, ...]:
    """The widths of integers that a target may use; none if it asks for ranks."""
    if isinstance(target, SizeTarget) or target.precisions is None:
        return ()
    return WIDTHS[target.precisions]
