"""Compiling: sanitizers, the wheel with and without a compiler, CUDA for several architectures."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tmcodec.fsq import native

ROOT = Path(__file__).resolve().parents[2]
_script = ROOT / "csrc" / "build_native.py"
if not _script.exists():
    pytest.skip("no source tree", allow_module_level=True)
_spec = importlib.util.spec_from_file_location("build_native", _script)
build_native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_native)


def has(find):
    try:
        find()
    except build_native.BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has(build_native.find_compiler), reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(not has(build_native.find_nvcc), reason="no nvcc")
needs_setuptools = pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="no setuptools")


@needs_compiler
def test_kernels_are_clean_under_the_sanitizers(tmp_path):
    """ASan and UBSan over every kernel, instruction set, odd sizes, n = 0."""
    program = tmp_path / "driver"
    flags = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    try:
        build_native.compile_cpu(program, flags, [Path(__file__).with_name("sanitize_driver.cpp")])
    except build_native.BuildError as error:
        if "asan" in str(error) or "ubsan" in str(error):
            pytest.skip("the compiler has no sanitizers")
        raise
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "LD_PRELOAD": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == "baseline"


@needs_compiler
def test_no_warnings(tmp_path, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-Werror -Wshadow -O1")
    target = tmp_path / "lib.so"
    build_native.compile_cpu(target)  # a warning is an error, and an error a BuildError
    symbols = target.read_bytes()
    for name in (*native._SIGNATURES, *native._CPU_SIGNATURES):
        assert f"tmc_{name}".encode() in symbols


def test_interface_version_and_names_are_those_of_the_header():
    header = (ROOT / "csrc" / "tmcodec.h").read_text()
    assert f"#define TMC_ABI_VERSION {native.ABI_VERSION}\n" in header
    assert f"#define TMC_CUDA_MAX_THRESHOLDS {native.CUDA_MAX_THRESHOLDS}\n" in header
    for name, code in native.DTYPES.items():
        short = (
            name.replace("bfloat", "bf")
            .replace("uint", "u")
            .replace("int", "i")
            .replace("float", "f")
            .upper()
        )
        assert f"TMC_{short} = {code}" in header
    for name in ("abi_version", "why_not", "last_error"):
        assert f" tmc_cuda_{name}(void);" in header.replace("*tmc", " tmc")
    declarations = [(p, *item) for p in ("tmc_", "tmc_cuda_") for item in native._SIGNATURES.items()]
    declarations += [("tmc_", *item) for item in native._CPU_SIGNATURES.items()]
    for prefix, name, arguments in declarations:
        declared = header.split(f" {prefix}{name}(")[1].split(");")[0]
        assert len(declared.split(",")) == len(arguments) + 1, name


def test_library_of_another_interface_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    with pytest.raises(native.NativeUnavailable, match="was not built"):
        native.Library("cpu")
    path = tmp_path / build_native.library_name("cpu")
    path.write_bytes(b"no library")
    with pytest.raises(native.NativeUnavailable, match="cannot be loaded"):
        native.Library("cpu")
    built = Path(native.__file__).with_name("_native") / path.name
    if built.exists():
        shutil.copy(built, path)
        found = native.ABI_VERSION
        monkeypatch.setattr(native, "ABI_VERSION", found + 1)
        with pytest.raises(native.NativeUnavailable, match=f"interface version {found}, not {found + 1}"):
            native.Library("cpu")


def test_failing_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TMCODEC_CUDA", "0")
    monkeypatch.setenv("TMCODEC_NATIVE", "auto")
    assert build_native.build(tmp_path) == []
    assert "warning: no cpu kernels, tmcodec will use numba or torch instead" in capsys.readouterr().err
    monkeypatch.setenv("TMCODEC_NATIVE", "1")
    with pytest.raises(build_native.BuildError, match="false"):
        build_native.build(tmp_path)
    monkeypatch.setenv("TMCODEC_NATIVE", "0")
    assert build_native.build(tmp_path) == []


def source_tree(tmp_path):
    """Copy what a build needs, so that it leaves nothing in the checkout."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib", "*.safetensors")
    shutil.copytree(ROOT / "tmcodec", tree / "tmcodec", ignore=ignore)
    return tree


def build_wheel(tree, **variables):
    """Call the build backend as pip does."""
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    environment = {**os.environ, "TMCODEC_CUDA": "0", **variables}
    (tree / "dist").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wheel = tree / "dist" / done.stdout.splitlines()[-1]
    return wheel.name, zipfile.ZipFile(wheel).namelist(), done.stderr


@needs_compiler
@needs_setuptools
def test_wheel_with_kernels_belongs_to_the_platform_and_no_python(tmp_path):
    name, files, _ = build_wheel(source_tree(tmp_path), CXXFLAGS="-O0")
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    assert f"tmcodec/fsq/_native/{build_native.library_name('cpu')}" in files
    assert "tmcodec/fsq/native.py" in files


@needs_setuptools
def test_wheel_without_a_compiler_is_pure(tmp_path):
    name, files, messages = build_wheel(source_tree(tmp_path), CXX="false")
    assert name.endswith("-py3-none-any.whl")
    assert not [f for f in files if "_native" in f]
    assert "tmcodec/fsq/native.py" in files
    assert "no cpu kernels" in messages


@needs_setuptools
def test_metadata_compiles_nothing(tmp_path):
    tree = source_tree(tmp_path)
    code = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"
    # A compiler that fails, and an error where it does: so it is not called.
    environment = {**os.environ, "TMCODEC_CUDA": "0", "TMCODEC_NATIVE": "1", "CXX": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Name: tmcodec\n" in (tree / done.stdout.splitlines()[-1] / "METADATA").read_text("utf-8")


@needs_compiler
@needs_setuptools
def test_editable_build_puts_the_library_into_the_source_tree(tmp_path):
    tree = source_tree(tmp_path)
    code = "from setuptools import build_meta; build_meta.build_editable('.')"
    environment = {**os.environ, "TMCODEC_CUDA": "0", "CXXFLAGS": "-O0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tree / "tmcodec" / "fsq" / "_native" / build_native.library_name("cpu")).exists()


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_cuda_compiles(tmp_path, monkeypatch, arch):
    library = tmp_path / build_native.library_name("cuda")
    build_native.compile_cuda(
        library, [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Werror=all-warnings"]
    )
    symbols = library.read_bytes()
    for name in native._SIGNATURES:
        assert f"tmc_cuda_{name}".encode() in symbols
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    if not torch.cuda.is_available():  # no driver, or no GPU: the library is loaded all the same
        assert native.Library("cuda").why_not()


@needs_nvcc
def test_cuda_architectures_are_those_that_nvcc_knows(monkeypatch):
    nvcc = build_native.find_nvcc()
    monkeypatch.setenv("TMCODEC_CUDA_ARCHS", "80, 90")
    assert build_native.cuda_archs(nvcc) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    monkeypatch.delenv("TMCODEC_CUDA_ARCHS")
    assert build_native.cuda_archs(nvcc)[-1].startswith("-gencode=arch=compute_7")
