"""Muon in float32 against torch's, and its orthogonalisation against the singular values by definition."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from tmcodec.training import muon as muon_module  # noqa: E402
from tmcodec.training.muon import FloatMuon, make_muon, orthogonalise  # noqa: E402

COEFFICIENTS = (3.4445, -4.775, 2.0315)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16), (1, 7), (7, 1)])
def test_orthogonalise_maps_singular_values_by_the_quintic(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((matrix**2).sum())
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found = orthogonalise(torch.from_numpy(matrix), COEFFICIENTS, 5, 1e-7)
    np.testing.assert_allclose(found.numpy(), left * values @ right, atol=1e-9)
    single = orthogonalise(torch.from_numpy(matrix).float(), COEFFICIENTS, 5, 1e-7)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), found.numpy(), atol=1e-4)


def test_orthogonalise_leaves_nothing_of_nothing():
    assert torch.equal(orthogonalise(torch.zeros(3, 5), COEFFICIENTS, 5, 1e-7), torch.zeros(3, 5))


@needs_muon
def test_first_step_by_hand():
    """Nesterov's momentum of a first gradient g is 0.95 · 0.05 g + 0.05 g: a multiple of g, so its size
    does not matter; and of a matrix with one singular value, the quintic gives one number."""
    matrix = torch.nn.Parameter(torch.ones(2, 8))
    matrix.grad = torch.zeros(2, 8)
    matrix.grad[0, 3] = -5.0
    FloatMuon([matrix], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw").step()
    s = 1.0
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    want = np.full((2, 8), 1 - 0.1 * 0.5)
    want[0, 3] += 0.1 * 0.2 * math.sqrt(8) * s
    np.testing.assert_allclose(matrix.detach().numpy(), want, rtol=1e-6)


def moved(make, steps, state=None):
    """Return matrices after steps on seeded gradients, and the optimizer's state."""
    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((24, 64), (64, 24))]
    start = [p.detach().clone() for p in params]
    optimizer = make(params)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [(p - s).detach() for p, s in zip(params, start, strict=True)], optimizer.state_dict()


@needs_muon
def test_steps_are_torchs_but_for_rounding():
    options = {"lr": 0.01, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}
    theirs, state = moved(lambda p: torch.optim.Muon(p, **options), 8)
    ours, own = moved(lambda p: FloatMuon(p, **options), 8)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()  # bfloat16 has eight bits
    assert own["param_groups"] == state["param_groups"]
    for i in (0, 1):  # the momentum never was bfloat16
        assert torch.equal(own["state"][i]["momentum_buffer"], state["state"][i]["momentum_buffer"])
    again, _ = moved(lambda p: FloatMuon(p, **options), 1, state)  # a run goes on where the other was killed
    fresh, _ = moved(lambda p: FloatMuon(p, **options), 1)
    assert not torch.equal(again[0], fresh[0])


@needs_muon
def test_processors_without_bfloat16_get_float32(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(4, 4))]
    for has, kind in ((True, torch.optim.Muon), (False, FloatMuon)):
        monkeypatch.setattr(muon_module, "has_bf16", lambda device, has=has: has)
        assert type(make_muon(params, 1e-3, 0.05)) is kind


@needs_muon
def test_closure_and_missing_gradients():
    still, moving = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = FloatMuon([still, moving], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")

    def closure():
        optimizer.zero_grad()
        loss = moving.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert torch.equal(still.detach(), torch.ones(3, 3))
    assert not torch.equal(moving.detach(), torch.ones(3, 3))
