"""What happens at the end of a generator's fit."""

from __future__ import annotations

from pathlib import Path

from tmcodec.atomic import atomic_path
from tmcodec.networks.generator.model import Generator
from tmcodec.training.any2any.module import Any2AnyModule
from tmcodec.training.any2any.starting import untied
from tmcodec.training.callbacks import FileAtEnd, Tensors


class GeneratorFile(FileAtEnd):
    """Writes a generator: what ``tmcodec generate --model`` takes. Parameters are those of `FileAtEnd`."""

    module = Any2AnyModule

    def write(self, path: Path, module: Any2AnyModule, weights: Tensors, step: int) -> None:
        """Write it in half precision, with its tokenizers' names, hashes and tiles; atomically."""
        from tmcodec.generation.weights import TokenizerRef, save_generator

        net = Generator(module.net.cfg)
        net.load_state_dict(untied(net, weights))
        refs = {
            m: TokenizerRef(t.name, bytes.fromhex(t.sha256), t.tile) for m, t in module.tokenizers.items()
        }
        notes = {"licence": self.licence, "training": f"{step} steps"}
        with atomic_path(path, overwrite=True) as temporary:
            save_generator(temporary, net, self.name, refs, notes)
