"""What a device adds to the kernels: streams, graphs, threads, autograd, the compiler, memory checks.

What means something on a CPU runs there, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from fsq_helpers import needs_cuda_kernels, random_latents

from tmcodec.fsq import backends, ops

LEVELS = (8, 8, 8, 6, 5)
ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        needs_cuda_kernels()


def test_a_library_that_could_have_been_built_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unavailable", lambda *_: "libtmcodec_cuda.so was not built")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(pytest.fail.Exception, match="was not built, but nvcc is there; run TMCODEC_CUDA=1"):
        needs_cuda_kernels()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.skip.Exception, match="was not built"):
        needs_cuda_kernels()


def layer(dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, dim, generator=generator) / dim**0.5, torch.randn(5, generator=generator)


def gradients(call, tensors, device, backend):
    """Return the gradients, on the CPU, of a weighted sum of what `call` makes of `tensors`."""
    leaves = [t.to(device).requires_grad_() for t in tensors]
    out = call(*leaves, backend)
    (out * torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)).sum().backward()
    return [leaf.grad.cpu() for leaf in leaves]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["quantize", "project_quantize", "dequantize_project"])
def test_gradients_are_the_references(name: str, device: str) -> None:
    indices = torch.arange(300, dtype=torch.int32) * 51
    weight, bias = layer(32, 0)
    calls = {
        "quantize": (lambda z, b: ops.quantize(z, LEVELS, backend=b)[0], [torch.randn(300, 5)]),
        "project_quantize": (
            lambda x, w, c, b: ops.project_quantize(x, w, c, LEVELS, backend=b)[0],
            [torch.randn(300, 32), weight, bias],
        ),
        "dequantize_project": (
            lambda w, b: ops.dequantize_project(indices.to(w.device), w, None, LEVELS, backend=b),
            [weight.t().contiguous()],
        ),
    }
    call, tensors = calls[name]
    found, expected = gradients(call, tensors, device, None), gradients(call, tensors, "cpu", "torch")
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_function(device: str) -> None:
    weight, bias = (t.to(device) for t in layer(32, 1))

    def step(x):
        codes, indices = ops.project_quantize(x * 2, weight, bias, LEVELS)
        return codes + 1, ops.dequantize_project(indices, weight.t(), None, LEVELS)

    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)).to(device)
    compiler = "aot_eager" if device == "cpu" else "inductor"
    for found, expected in zip(
        torch.compile(step, backend=compiler, fullgraph=True)(x), step(x), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", [*DEVICES, pytest.param("cuda:1", marks=ON_GPU)])
def test_another_thread(device: str) -> None:
    """A thread that never touched its device; where there are two, on the one that is not the current one."""
    if device == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    latents = random_latents(10_000, LEVELS, "sigmoid", torch.float32, 3)
    z, found = latents.to(device), []
    thread = threading.Thread(target=lambda: found.append(ops.quantize(z, LEVELS)))
    thread.start()
    thread.join()
    codes, indices = found[0]
    expected = ops.quantize(latents, LEVELS, backend="torch")
    assert str(codes.device) == str(z.device) == str(indices.device)
    assert torch.equal(codes.cpu(), expected[0])
    assert torch.equal(indices.cpu(), expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_side_stream() -> None:
    """The kernel waits for the stream it is called on: what it reads is written there late."""
    latents = random_latents(1_000_000, LEVELS, "sigmoid", torch.float32, 4)
    source, z = latents.cuda(), torch.zeros(latents.shape, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        z.copy_(source)
        indices = ops.quantize_indices(z, LEVELS, backend="native")
    stream.synchronize()
    assert torch.equal(indices.cpu(), ops.quantize_indices(latents, LEVELS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graph_is_replayed_with_other_input() -> None:
    weight, bias = (t.cuda() for t in layer(32, 5))
    x = torch.randn(1000, 32, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        codes, indices = ops.project_quantize(x, weight, bias, LEVELS, backend="native")
        again = ops.quantize_indices(x[:, :5], LEVELS, backend="native")
        return codes, indices, again, ops.dequantize(again, LEVELS, backend="native")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up: the first launch loads a kernel, which a capture forbids
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for seed in (6, 7):
        x.copy_(torch.randn(1000, 32, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(found, step(), strict=True):
            assert torch.equal(one, other)


SCRIPT = """
import sys
import torch
from tmcodec.fsq import blend, blend_weights, normalize_patchify, ops

device, levels = sys.argv[1], (8, 8, 8, 6, 5)
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for n in (1, 67, 1021):
        # One element off, so that nothing is aligned, and as torch allocates.
        for start in (0, 1):
            z = torch.randn(n * 5 + start, device=device).to(dtype)[start:].view(n, 5)
            codes, indices = ops.quantize(z, levels, backend="native")
            ops.quantize(z.t().reshape(1, 5, n), levels, axis=1, backend="native")
            ops.dequantize(indices, levels, backend="native")
            ops.quantize(z.requires_grad_(), levels, backend="native")[0].sum().backward()
            for dim in (1, 17, 64):
                weight = torch.randn(5 * dim + start, device=device)[start:].view(5, dim)
                bias = torch.randn(dim + start, device=device)[start:]
                x = torch.randn(n * dim + start, device=device).to(dtype)[start:].view(n, dim)
                ops.project_quantize(x, weight, None, levels, backend="native")
                ops.dequantize_project(indices, weight.t(), bias, levels, dtype=dtype, backend="native")
for dtype in (torch.float32, torch.uint8, torch.uint16, torch.int16):
    raster = (torch.rand(3, 33, 41) * 255).to(dtype).to(device)
    mask = torch.rand(33, 41, device=device) > 0.1
    starts, ones = ([0, 12, 24], [-3, 12, 30]), [1.0] * 3
    tiles = normalize_patchify(raster, ones, ones, 16, *starts, mask, backend="native")
    weights = [blend_weights(s, 16) for s in starts]
    blend(tiles, *starts, *weights, 33, 41, mask=mask, dtype=dtype, backend="native")
print("done")
"""


def sanitizer() -> str | None:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return shutil.which("compute-sanitizer") or shutil.which(Path(nvcc).with_name("compute-sanitizer"))


@pytest.mark.parametrize("device", DEVICES)
def test_no_access_out_of_bounds(device: str, tmp_path: Path) -> None:
    """Under compute-sanitizer, each tensor in memory of its own; on the CPU the script alone."""
    script, command = tmp_path / "calls.py", [sys.executable]
    script.write_text(SCRIPT)
    if device == "cuda":
        tool = sanitizer()
        if tool is None:
            pytest.skip("no compute-sanitizer")
        command = [tool, "--error-exitcode", "9", sys.executable]
    done = subprocess.run(
        [*command, str(script), device],
        capture_output=True, text=True, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "done" in done.stdout
