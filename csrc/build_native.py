"""Compile the kernels: called by setup.py, by the tests, and by hand. Needs the standard library only.

    python csrc/build_native.py            # into tmcodec/fsq/_native/, for a source checkout

Environment: ``CXX`` names the C++ compiler (else c++, g++, clang++), ``CXXFLAGS`` adds flags;
``TMCODEC_NATIVE`` and ``TMCODEC_CUDA`` are ``auto`` (compile if the compiler is there, warn if it
fails), ``0`` (do not) or ``1`` (a failure is an error); ``TMCODEC_CUDA_ARCHS`` is a list like
``80 90`` for nvcc (``NVCC`` names it).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

CSRC = Path(__file__).resolve().parent
NATIVE = Path("tmcodec/fsq/_native")
"""Where the libraries live, relative to the root of the source tree or of the wheel."""

CPU_SOURCES = ("dispatch.cpp", "fsq.cpp", "rasters.cpp", "curves.cpp", "context.cpp")
# kernels.cpp is compiled once for each of these; the machine chooses when the library is loaded.
X86_FLAGS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    # Full-width registers: compilers hold AVX-512 back to 256 bits unless told.
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}
CUDA_SOURCES = ("fsq.cu", "rasters.cu")
CPU_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi",
    # A fused multiply-add on some machines would give them other bits.
    "-ffp-contract=off",
    # Nobody reads floating-point flags; keeping them right would stop many loops from vectorising.
    "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
CUDA_FLAGS = ("-std=c++17", "-O3", "--compiler-options=-fPIC,-fvisibility=hidden")
# Machine code for the architectures of data centres; the oldest one's PTX serves all others.
CUDA_ARCHS = (80, 90, 100)
OLDEST_CUDA_ARCH = 70


class BuildError(Exception):
    """A compiler is missing or failed; the message says which and how."""


def library_name(kind: str) -> str:
    """Return the file name of the ``cpu`` or ``cuda`` library on this platform."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return f"libtmcodec_{kind}{suffix}"


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler, `CXX` first."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler (c++, g++, clang++) found; set CXX")


def find_nvcc() -> str:
    """Return the path of nvcc, `NVCC` first."""
    candidates = (os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc")
    for path in candidates:
        if path and shutil.which(path):
            return path
    raise BuildError("nvcc not found; set NVCC")


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run commands side by side; raise with the first failure's last lines."""
    try:
        running = [
            subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            for c in commands
        ]
    except OSError as error:
        raise BuildError(f"{commands[0][0]} cannot be run: {error}") from error
    outputs = [process.communicate()[0] for process in running]
    for command, process, output in zip(commands, running, outputs, strict=True):
        if process.returncode:
            tail = "\n".join(output.splitlines()[-30:])
            raise BuildError(f"{shlex.join(command)} failed with status {process.returncode}:\n{tail}")


def compile_cpu(target: Path, flags: Sequence[str] = (), extra_sources: Sequence[Path] = ()) -> None:
    """Compile the CPU kernels with `flags` into `target`, a shared library unless `flags` say else.

    Raises
    ------
    BuildError
        If the compiler is missing or fails, also without OpenMP.
    """
    compiler = find_compiler()
    try:
        _compile_and_link(compiler, target, [*flags, "-fopenmp"], extra_sources)
    except BuildError:
        _compile_and_link(compiler, target, list(flags), extra_sources)  # e.g. Apple's clang


def _compile_and_link(compiler: list[str], target: Path, flags: list[str], extra: Sequence[Path]) -> None:
    x86 = _targets_x86(compiler)
    common = [*compiler, *CPU_FLAGS, *flags, *shlex.split(os.environ.get("CXXFLAGS", "")), f"-I{CSRC}"]
    common += ["-DTMC_HAVE_X86"] if x86 else []
    units = [[str(source)] for source in (*(CSRC / name for name in CPU_SOURCES), *extra)]
    for isa, isa_flags in {"baseline": (), **(X86_FLAGS if x86 else {})}.items():
        units.append([str(CSRC / "kernels.cpp"), f"-DTMC_ISA={isa}", *isa_flags])
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder, f"{i}.o")) for i in range(len(units))]
        run_all([[*common, "-c", *unit, "-o", o] for unit, o in zip(units, objects, strict=True)])
        shared = [] if extra else ["-shared"]
        _into_place(target, lambda out: [*common, *shared, *objects, "-o", out])


def _targets_x86(compiler: list[str]) -> bool:
    """Ask the compiler, not the machine: it may compile for another one."""
    try:
        answer = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True).stdout
    except OSError as error:
        raise BuildError(f"{compiler[0]} cannot be run: {error}") from error
    return answer.startswith(("x86_64", "amd64"))


def cuda_archs(nvcc: str) -> list[str]:
    """Return ``-gencode`` options for what this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    known = sorted(int(name.removeprefix("compute_")) for name in listed if name.startswith("compute_"))
    known = [arch for arch in known if arch >= OLDEST_CUDA_ARCH] or list(CUDA_ARCHS)
    asked = os.environ.get("TMCODEC_CUDA_ARCHS", "").replace(",", " ").split()
    archs = [int(arch) for arch in asked] if asked else [arch for arch in CUDA_ARCHS if arch in known]
    oldest = archs[0] if asked else known[0]
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*codes, f"-gencode=arch=compute_{oldest},code=compute_{oldest}"]


def compile_cuda(target: Path, archs: Sequence[str] | None = None) -> None:
    """Compile the CUDA kernels into the shared library `target`.

    Raises
    ------
    BuildError
        If nvcc is missing or fails.
    """
    nvcc = find_nvcc()
    flags = [*CUDA_FLAGS, *(cuda_archs(nvcc) if archs is None else archs), "-cudart=static", "--threads=0"]
    sources = [str(CSRC / name) for name in CUDA_SOURCES]
    _into_place(target, lambda out: [nvcc, *flags, "-shared", *sources, "-o", out, f"-I{CSRC}"])


def _into_place(target: Path, command_for: Callable[[str], Sequence[str]]) -> None:
    """Link under another name and rename: a process that has the old library loaded keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        run_all([command_for(str(partial))])
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def build(folder: Path) -> list[Path]:
    """Build what the environment asks for into `folder`; return the libraries made."""
    made = []
    for kind, variable, compile_one in (
        ("cpu", "TMCODEC_NATIVE", compile_cpu),
        ("cuda", "TMCODEC_CUDA", compile_cuda),
    ):
        wanted = os.environ.get(variable, "auto").lower()
        target = folder / library_name(kind)
        if wanted == "0" or (wanted == "auto" and kind == "cuda" and not _can_use_cuda()):
            continue
        try:
            compile_one(target)
        except BuildError as error:
            if wanted == "1":
                raise
            message = f"warning: no {kind} kernels, tmcodec will use numba or torch instead: {error}"
            print(message, file=sys.stderr)
        else:
            made.append(target)
    return made


def _can_use_cuda() -> bool:
    """Ask for nvcc and a GPU: minutes of compiling for a machine that has none help nobody."""
    try:
        find_nvcc()
    except BuildError:
        return False
    return bool(shutil.which("nvidia-smi")) or Path("/dev/nvidia0").exists()


if __name__ == "__main__":
    for library in build(CSRC.parent / NATIVE):
        print(library)
