"""Each ablation changes what it says, trains, and leaves the notebook's own definitions alone."""

import pytest
import torch
from ablations import ABLATIONS
from conftest import NOTEBOOK

import helpers


def patched(name):
    vitgan = helpers.load_definitions(NOTEBOOK)
    _, fields, patch = ABLATIONS[name]
    patch(vitgan)
    return vitgan, fields


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_trains_and_differs_from_the_full_model(vitgan, make_config, images, tmp_path, name):
    def first_losses(module, **fields):
        c = make_config(latent_dim=16, total_images=4, log_images=4, logistic_on="plain", bcr_real=1.0, bcr_fake=1.0)
        c = module.Config(**{**vars(c), **fields})
        run = module.train(c, images, tmp_path / module.__name__ / str(len(fields)) / str(id(module)), quiet=True)
        assert all(p.isfinite().all() for p in [*run.G.parameters(), *run.D.parameters()])
        return run, [run.history[-1][key] for key in ("d_loss", "g_loss")]

    changed, fields = patched(name)
    _, losses = first_losses(changed, **fields)
    _, full = first_losses(vitgan)
    assert (losses == full) == (name == "full")


@pytest.mark.parametrize("name, sigma", [("plain-sn", 1.0), ("no-sn", 3.0)])
def test_spectral_norms(name, sigma):
    vitgan, _ = patched(name)
    layer = vitgan.ISNLinear(32, 32)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(32) * 3 * 32**0.5)
        for _ in range(20):
            layer(torch.randn(1, 32))
        W = layer.effective_weight()
    assert torch.linalg.matrix_norm(W, 2).item() == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize("name, logits", [
    ("dot", lambda q, k: q @ k.mT), ("untied", lambda q, k: -torch.cdist(q, k).square()),
    ("plus-distance", lambda q, k: torch.cdist(q, k))])
def test_attention_forms(name, logits):
    layer = patched(name)[0].L2SelfAttention(16, 2).eval()
    h = torch.randn(3, 5, 16)
    q, k, v = (f(h).view(3, 5, 2, 8).transpose(1, 2) for f in (layer.qk, layer.key, layer.value))
    expected = torch.softmax(logits(q, k) / 8**0.5, -1) @ v
    torch.testing.assert_close(layer(h), layer.out(expected.transpose(1, 2).flatten(2)), atol=1e-4, rtol=1e-4)


def test_equalized_rate_is_gone_but_not_the_size(vitgan):
    plain = patched("no-equalized")[0].EqualizedLinear(256, 256, lr_mult=0.01)
    assert plain.scale == 1 and plain.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    x = torch.randn(512, 256)
    assert plain(x).std().item() == pytest.approx(vitgan.EqualizedLinear(256, 256)(x).std().item(), rel=0.1)


def test_generators_without_a_part(make_config):
    one = patched("one-sln")[0].GeneratorBlock(16, 2, 4, 16)
    assert one.norm1 is one.norm2
    assert len(list(patched("no-mapping")[0].MappingNetwork(16, 16, 8).parameters())) == 0
    linear = patched("linear")[0].Generator(make_config())
    y = torch.randn(2, 16)
    torch.testing.assert_close(linear.decoder(linear.fourier(), y), linear.decoder.out(y).view(2, 16, 3))
    additive = patched("additive")[0].ModulatedLinear(16, 8, 16)
    x = torch.randn(4, 16)
    difference = additive(x, y)[0] - additive(x, y)[1]
    assert torch.allclose(difference, difference[:1].expand(4, -1), atol=1e-5), "the same shift at every pixel"
