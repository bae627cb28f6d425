"""Inference is exact in float32 whatever the process was told, and leaves its switches as they were."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from tmcodec.networks.precision import inference

CPU = torch.device("cpu")


def switches() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    products, convolutions = switches()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_exact_inside_and_as_before_outside(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    with inference(CPU):
        assert switches() == ("highest", False)
        with inference(CPU):
            assert torch.is_inference_mode_enabled()
        assert switches() == ("highest", False)
    assert switches() == (products, convolutions)
    with pytest.raises(ZeroDivisionError), inference(CPU):
        raise ZeroDivisionError
    assert switches() == (products, convolutions)


def test_the_last_thread_puts_them_back() -> None:
    torch.set_float32_matmul_precision("medium")
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with inference(CPU):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    with inference(CPU):
        pass
    assert torch.get_float32_matmul_precision() == "highest"  # the other one is still inside
    leave.set()
    thread.join()
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="switches of torch 2.9")
@pytest.mark.parametrize("switch", ["", ".cudnn", ".cudnn.conv", ".cuda.matmul", ".mkldnn.matmul"])
def test_the_later_switches_are_kept(switch: str) -> None:
    """In a process of its own: once they are set, torch does not read the old ones any more.

    ``none``, where nothing above says otherwise, is ``ieee``.
    """
    program = f"""
import torch
from tmcodec.networks.precision import inference
torch.backends{switch}.fp32_precision = "tf32"
leaves = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
def found(): return [leaf.fp32_precision.replace("none", "ieee") for leaf in leaves]
before = found()
with inference(torch.device("cpu")):
    print(found())
    torch.nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8)) @ torch.zeros(6, 6)
print(found() == before, "tf32" in before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['ieee', 'ieee', 'ieee']", "True True"]
