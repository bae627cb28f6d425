"""Compile the kernels of csrc/ into the wheel; everything else is in pyproject.toml.

The libraries are plain shared objects with a C interface, loaded with ctypes, so one wheel
``py3-none-<platform>`` serves all Pythons and all torch versions. Where no compiler is found, the
wheel is pure Python (``py3-none-any``) and numba or torch do the work.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("build_native", ROOT / "csrc" / "build_native.py")
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class NativeDistribution(Distribution):
    """Knows the libraries of this build, and that a wheel with one belongs to a platform."""

    libraries_built: list[Path] | None = None

    def native_libraries(self) -> list[Path]:
        """Compile once a build, into the build folder."""
        if self.libraries_built is None:
            base = Path(self.get_command_obj("build").build_base or "build")
            self.libraries_built = native.build(base.resolve() / "native")
        return self.libraries_built

    def has_ext_modules(self) -> bool:
        # Metadata and source distributions ask too; only wheels compile.
        return bool(self.libraries_built) or super().has_ext_modules()


class BuildPyWithNative(build_py):
    """Puts the libraries beside the package: in the wheel, or editable, in the source tree."""

    def run(self) -> None:
        super().run()
        root = ROOT if self.editable_mode else Path(self.build_lib)
        for library in self.distribution.native_libraries():
            target = root / native.NATIVE / library.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # never written over while a process has it loaded
            shutil.copy2(library, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        folder = Path(self.build_lib) / native.NATIVE
        libraries = self.distribution.libraries_built or []
        return [*super().get_outputs(include_bytecode), *(str(folder / path.name) for path in libraries)]


class PlatformWheel(bdist_wheel):
    """Tags the wheel by platform only: there is no Python ABI in it."""

    def run(self) -> None:
        # Not in finalize_options, which pip's question for metadata runs, too: it would compile twice.
        self.root_is_pure = not self.distribution.native_libraries()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildPyWithNative, "bdist_wheel": PlatformWheel},
)
