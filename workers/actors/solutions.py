"""The solved layers of a worker, in memory while there is room, and those that were trained."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.recovery.training import TrainedLayer
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.shapes import LinearLayer
from workers.compression.solve import Factors
from workers.compression.state import SolvedLayer, read_solved, solved_tensors


class Solutions:
    """Solutions by layer; those that exceed the bytes of memory are in files of `folder`."""

    def __init__(self, memory_bytes: int, folder: Path) -> None:
        self._room = memory_bytes
        self._folder = folder
        self._held: dict[str, SolvedLayer] = {}
        self._files: dict[str, tuple[LinearLayer, Path]] = {}

    def put(self, solved: SolvedLayer) -> None:
        """Keep the results of a layer that has none yet."""
        name, tensors = solved.layer.name, solved_tensors(solved)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        if nbytes <= self._room:
            self._room -= nbytes
            self._held[name] = solved
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{len(self._files)}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        self._files[name] = solved.layer, path

    def __getitem__(self, name: str) -> SolvedLayer:
        """The results of a layer. Raises KeyError."""
        if name in self._held:
            return self._held[name]
        layer, path = self._files[name]
        return read_solved(layer, load_file(path))

    def clear(self) -> None:
        """Forget all solutions."""
        self._held.clear()
        for _, path in self._files.values():
            path.unlink()
        self._files.clear()


class RecoveredLayers:
    """The trained layers by target, in files of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, str], Path] = {}

    def put(self, target: str, layer: str, trained: TrainedLayer) -> None:
        """Keep a layer."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{len(self._files)}.safetensors"
        if isinstance(trained, Factors):
            tensors = {"down": trained.down, "up": trained.up}
            if trained.bias is not None:
                tensors["bias"] = trained.bias
        else:  # its bias is the source's
            tensors = {"codes": trained.weight.codes, "scales": trained.weight.scales}
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        self._files[target, layer] = path

    def factors(self, target: str, layer: str) -> Factors:
        """Those of a layer of low rank. Raises KeyError."""
        tensors = self._read(target, layer)
        return Factors(tensors["down"], tensors["up"], tensors.get("bias"))

    def weight(self, target: str, layer: str, width: Width) -> RoundedWeight:
        """That of a layer in integers of this width. Raises KeyError."""
        tensors = self._read(target, layer)
        return RoundedWeight(width, tensors["codes"], tensors["scales"])

    def _read(self, target: str, layer: str) -> dict[str, Tensor]:
        return {key: each.clone() for key, each in load_file(self._files[target, layer]).items()}

    def clear(self) -> None:
        """Forget all layers."""
        for path in self._files.values():
            path.unlink()
        self._files.clear()
