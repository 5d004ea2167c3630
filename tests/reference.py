"""Slow, literal versions of what the notebook computes fast: for tests, and for tests/experiments/benchmark.py.

Nothing here imports the notebook: modules and tensors come in as arguments, and layers are recognized by class name.
Letters: B batch, T tokens of all images, p pixels of a patch, H heads, N tokens of one image, d width of a head.
"""

import math
import types

import torch
import torch.nn.functional as F


def modulated_linear(layer, x, y):
    """One weight matrix per token, W'_ij = s_j W_ij, as a 1-D convolution with a group per token.

    x [p, in] or [T, p, in], y [T, D] -> [T, p, out]. Source: StyleGAN2 (Karras et al. 2020), eq. 1 and 3, and its code.
    """
    T, W = len(y), layer.linear.weight / math.sqrt(layer.linear.weight.shape[1])
    weights = layer.style(y)[:, None, :] * W  # [T, out, in]
    if layer.demodulate:
        weights = weights / (weights.square().sum(2, keepdim=True) + 1e-8).sqrt()
    channels_first = x.expand(T, *x.shape[-2:]).transpose(1, 2).flatten(0, 1)  # [T * in, p]
    out = F.conv1d(channels_first[None], weights.flatten(0, 1)[..., None], groups=T)  # [1, T * out, p]
    return out.unflatten(1, (T, -1))[0].transpose(1, 2) + layer.linear.bias


def l2_attention(q, v, sign=-1, exponent=0.5):
    """softmax_j(sign |q_i - q_j|^2 / d^exponent) v_j from all pairwise differences. Source: Kim et al. 2021."""
    differences = q[..., :, None, :] - q[..., None, :, :]  # [B, H, N, N, d]
    distances = differences.square().sum(-1)
    return torch.softmax(sign * distances / q.shape[-1] ** exponent, dim=-1) @ v


def isn_weight(layer):
    """sigma(W_init) W / sigma(W), with sigma(W) from an SVD. Source: ViTGAN, section 3.1 (improved spectral norm.)."""
    W = layer.weight / math.sqrt(layer.weight.shape[1])
    return layer.sigma_init * W / torch.linalg.svdvals(W)[0]


def overlapping_patches(x, patch_size, overlap):
    """Cut every window by hand. Source: ViTGAN, section 3.1 (overlapping patches): [B, C, S, S] -> [B, N, C side^2]."""
    side, padded = patch_size + 2 * overlap, F.pad(x, [overlap] * 4)
    starts = range(0, x.shape[-1], patch_size)
    windows = [padded[:, :, top:top + side, left:left + side].flatten(1) for top in starts for left in starts]
    return torch.stack(windows, 1)


def diff_augment(x, policy="color,translation,cutout,scaling", p=0.8):
    """One image at a time. Source: DiffAugment (Zhao et al. 2020); scaling: ViTGAN, appendix.

    Random numbers are drawn in the notebook's order, so the same seed must give the same pictures.
    """
    B, _, size, _ = x.shape
    images, names = list(x), policy.split(",")

    def draw(neutral, low, high):
        chosen, amounts = torch.rand(2, B, device=x.device).tolist()
        return [low + (high - low) * a if c < p else neutral for c, a in zip(chosen, amounts)]

    if "color" in names:
        draws = zip(draw(0, -0.5, 0.5), draw(1, 0, 2), draw(1, 0.5, 1.5))
        images = [recolor(image, *numbers) for image, numbers in zip(images, draws)]
    if "translation" in names or "scaling" in names:
        reach = size // 8 + 0.49 if "translation" in names else 0  # rounded: whole pixels, -S/8 to S/8
        scales = draw(1, 0.8, 1.25) if "scaling" in names else [1] * B
        downs, rights = draw(0, -reach, reach), draw(0, -reach, reach)
        images = [resample(resample(image, s, round(down)).mT, s, round(right)).mT
                  for image, s, down, right in zip(images, scales, downs, rights)]
    if "cutout" in names:
        rows, columns = (torch.rand(2, B, 1, device=x.device) * size).flatten(1).tolist()
        chosen = (torch.rand(B, 1, device=x.device) < p).flatten().tolist()
        images = [cut_out(image, *center) if yes else image
                  for image, *center, yes in zip(images, rows, columns, chosen)]
    return torch.stack(images)


def recolor(image, brightness, saturation, contrast):
    """Add, then stretch around the pixel's gray, then around the image's mean."""
    image = image + brightness
    gray = image.mean(0)
    image = gray + (image - gray) * saturation
    return image.mean() + (image - image.mean()) * contrast


def resample(image, scale, shift):
    """Stretch by `scale` around the middle row, move down by `shift`; linear between rows, black outside."""
    size = image.shape[1]
    middle, rows = (size - 1) / 2, []
    padded = F.pad(image, (0, 0, 1, 2))  # padded[:, r + 1] is row r; rows -1, S and S + 1 are black
    for i in range(size):
        source = min(max((i - middle - shift) / scale + middle, -1), size)
        above = math.floor(source)
        part = source - above
        rows.append((1 - part) * padded[:, above + 1] + part * padded[:, above + 2])
    return torch.stack(rows, 1)


def cut_out(image, row, column):
    """Blacken the pixels whose centers lie within a quarter of the side around (row, column)."""
    size = image.shape[1]
    image = image.clone()
    rows, columns = ([i for i in range(size) if abs(i + 0.5 - center) < size / 4] for center in (row, column))
    if rows and columns:
        image[:, rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = 0
    return image


def l2_self_attention(layer, h):
    """The forward pass of L2SelfAttention with the brute-force distances."""
    q, v = (f(h).unflatten(2, (layer.heads, -1)).transpose(1, 2) for f in (layer.qk, layer.value))
    return layer.out(l2_attention(q, v, exponent=layer.exponent).transpose(1, 2).flatten(2))


LITERAL_FORWARD = {"ModulatedLinear": modulated_linear, "L2SelfAttention": l2_self_attention}


def make_literal(network):
    """Make the layers of a Generator or Discriminator compute the literal way from now on; returns the network itself."""
    for module in network.modules():
        if form := LITERAL_FORWARD.get(type(module).__name__):
            module.forward = types.MethodType(form, module)
    return network


def training_step(state, images, vitgan):
    """A step as most public code writes it, in float32, for timing beside the notebook's.

    Of networks made literal: one image augmented at a time, four passes through D instead of one batch, new fakes for G's step.
    """
    c, G, D = state.config, state.G, state.D
    T = lambda x: diff_augment(x, c.augment)  # noqa: E731
    draw_fakes = lambda: G(torch.randn(c.batch_size, c.latent_dim, device=images.device))  # noqa: E731
    real, fake = vitgan.sample_real(images, c.batch_size, c.flip), draw_fakes().detach()
    T_real, T_fake, plain_real, plain_fake = D(T(real)), D(T(fake)), D(real), D(fake)
    bcr = c.bcr * ((plain_real - T_real).square() + (plain_fake - T_fake).square())
    for optimizer, loss in ((state.opt_D, lambda: F.softplus(-T_real) + F.softplus(T_fake) + bcr),
                            (state.opt_G, lambda: F.softplus(-D(T(draw_fakes()))))):
        optimizer.zero_grad()
        loss().mean().backward()
        optimizer.step()
    state.images_seen += c.batch_size
    decay = 0.5 ** (c.batch_size / min(c.ema_half_life, 0.05 * state.images_seen))
    with torch.no_grad():
        for average, new in zip(state.G_ema.parameters(), G.parameters()):
            average.copy_(decay * average + (1 - decay) * new)
        for average, new in zip(state.G_ema.buffers(), G.buffers()):
            average.copy_(new)
