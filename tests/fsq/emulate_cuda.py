"""Compile ``csrc/*.cu`` for the host: see ``cuda_emulation/cuda_runtime.h`` for what that covers."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE, CSRC = Path(__file__).parent, Path(__file__).parents[2] / "csrc"
SANITIZE = ("-fsanitize=undefined", "-fno-sanitize=vptr")
"""Misaligned accesses and overflows are reported on stderr as "runtime error"."""

_spec = importlib.util.spec_from_file_location("build_native", CSRC / "build_native.py")
assert _spec is not None and _spec.loader is not None
build_native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_native)


def without_launches(source: str) -> str:
    """Return CUDA source with every ``kernel<<<blocks, threads, 0, stream>>>(arguments)`` as a C++ call."""
    source = source.replace("__shared__ alignas(16)", "alignas(16) __shared__")  # where C++ wants it
    while (at := source.find("<<<")) >= 0:
        start = _name_start(source, at)
        stop = source.index(">>>", at)
        opening = source.index("(", stop)
        closing = _closing(source, opening)
        blocks, threads, shared, _ = _split(source[at + 3 : stop])
        assert shared == "0" and not source[stop + 3 : opening].strip()
        kernel, arguments = source[start:at].strip(), source[opening : closing + 1]
        call = f"emulation::launch({blocks}, {threads}, [=] {{ {kernel}{arguments}; }})"
        source = source[:start] + call + source[closing + 1 :]
    return source


def _name_start(source: str, at: int) -> int:
    """Return where the kernel's name begins that ends before `at`, template arguments included."""
    at = len(source[:at].rstrip())
    if source[at - 1] == ">":
        depth = 0
        while True:
            at -= 1
            depth += {">": 1, "<": -1}.get(source[at], 0)
            if depth == 0:
                break
    while source[at - 1].isalnum() or source[at - 1] == "_":
        at -= 1
    return at


def _closing(source: str, opening: int) -> int:
    """Return the place of the bracket that closes the one at `opening`."""
    depth = 0
    for at in range(opening, len(source)):
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        if depth == 0:
            return at
    raise ValueError("unbalanced brackets")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def build(folder: Path, flags: Sequence[str] = SANITIZE) -> Path:
    """Compile the kernels for the host into ``folder/libtmcodec_cuda.so``.

    Raises
    ------
    build_native.BuildError
        If there is no compiler, or it fails.
    """
    compiler = build_native.find_compiler()
    common = [*compiler, "-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", *flags]
    common += ["-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable"]
    common += [f"-I{HERE / 'cuda_emulation'}", f"-I{CSRC}"]
    objects, commands = [], []
    for name in build_native.CUDA_SOURCES:
        translated = folder / f"{name}.cpp"
        translated.write_text(f'#line 1 "{name}"\n' + without_launches((CSRC / name).read_text()))
        objects.append(str(folder / f"{name}.o"))
        commands.append([*common, "-c", str(translated), "-o", objects[-1]])
    build_native.run_all(commands)
    target: Path = folder / "libtmcodec_cuda.so"
    build_native.run_all([[*common, "-shared", *objects, "-o", str(target)]])
    return target


if __name__ == "__main__":
    subprocess.run(["mkdir", "-p", "/tmp/emulated"], check=True)
    print(build(Path("/tmp/emulated")))
