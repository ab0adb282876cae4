"""Which files hold a model's weights."""

from __future__ import annotations

from pathlib import Path

from service.inputs.models.files import checkpoint_files


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint, in name order.

    Raises the errors of `service.inputs.models.files.checkpoint_files`.
    """
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    names = checkpoint_files(sizes, lambda name: (folder / name).read_bytes(), "model")
    return [folder / name for name in sorted(names)]
