"""Slow, literal versions of what the notebook computes fast.

Nothing here imports the notebook. Letters: B batch, T tokens of all images, p pixels of a patch,
H heads, N tokens of one image, d width of a head.
"""

import copy
import itertools
import math
import types

import torch
import torch.nn.functional as F


def linear(layer, x, m=1.0):
    """Equalized: m (W x / sqrt(fan_in) + b) (StyleGAN2)."""
    return m * (x @ layer.weight.T / math.sqrt(x.shape[-1]) + layer.bias)


def isn_linear(layer, x):
    return x @ isn_weight(layer).T + layer.bias


def modulated_linear(layer, x, y):
    """One weight matrix per token, W'_ij = s_j W_ij, as a 1-D convolution with a group per token:
    x [p, in] or [T, p, in], y [T, width] -> [T, p, out] (StyleGAN2, Karras et al. 2020, eq. 1)."""
    T, W = len(y), layer.linear.weight / math.sqrt(layer.linear.weight.shape[1])
    weights = linear(layer.style, y)[:, None, :] * W  # [T, out, in]
    channels_first = x.expand(T, *x.shape[-2:]).transpose(1, 2).flatten(0, 1)  # [T * in, p]
    out = F.conv1d(channels_first[None], weights.flatten(0, 1)[..., None], groups=T)
    return out.unflatten(1, (T, -1))[0].transpose(1, 2) + layer.linear.bias


def l2_attention(q, v):
    """softmax_j(-|q_i - q_j|^2 / sqrt(d)) v_j, from all pairwise differences (Kim et al.)."""
    differences = q[..., :, None, :] - q[..., None, :, :]  # [B, H, N, N, d]
    distances = differences.square().sum(-1)
    return torch.softmax(-distances / math.sqrt(q.shape[-1]), dim=-1) @ v


def isn_weight(layer):
    """sigma(W_init) W / sigma(W), with sigma(W) from an SVD. Source: ViTGAN, section 3.1."""
    W = layer.weight / math.sqrt(layer.weight.shape[1])
    return layer.sigma_init * W / torch.linalg.svdvals(W)[0]


def overlapping_patches(x, patch_size, overlap):
    """Cut every window by hand: [B, C, S, S] -> [B, N, C side^2]. Source: ViTGAN, section 3.1."""
    side, padded = patch_size + 2 * overlap, F.pad(x, [overlap] * 4)
    starts = range(0, x.shape[-1], patch_size)
    windows = [
        padded[:, :, top : top + side, left : left + side].flatten(1)
        for top in starts
        for left in starts
    ]
    return torch.stack(windows, 1)


def diff_augment(x, policy="color,translation,cutout,scaling", probability=0.8):
    """One image at a time, with numbers drawn in the notebook's order. Source: DiffAugment (Zhao et
    al. 2020); scaling: ViTGAN, appendix."""
    B, _, size, _ = x.shape
    images, names = list(x), policy.split(",")

    def draw(neutral, low, high):
        chosen, amounts = torch.rand(2, B).tolist()
        return [
            low + (high - low) * a if c < probability else neutral
            for c, a in zip(chosen, amounts, strict=True)
        ]

    if "color" in names:
        draws = zip(images, draw(0, -0.5, 0.5), draw(1, 0, 2), draw(1, 0.5, 1.5), strict=True)
        images = [recolor(*numbers) for numbers in draws]
    if "translation" in names or "scaling" in names:
        reach = size // 8 + 0.49 if "translation" in names else 0  # rounded: whole pixels
        scales = draw(1, 0.8, 1.25) if "scaling" in names else [1] * B
        draws = zip(images, scales, draw(0, -reach, reach), draw(0, -reach, reach), strict=True)
        images = [resample(*numbers) for numbers in draws]
    if "cutout" in names:
        rows, columns = (torch.rand(2, B, 1) * size).flatten(1).tolist()
        chosen = (torch.rand(B, 1) < probability).flatten().tolist()
        images = [
            cut_out(image, *center) if yes else image
            for image, *center, yes in zip(images, rows, columns, chosen, strict=True)
        ]
    return torch.stack(images)


def recolor(image, brightness, saturation, contrast):
    """Add, then stretch around the pixel's gray, then around the image's mean."""
    image = image + brightness
    gray = image.mean(0)
    image = gray + (image - gray) * saturation
    return image.mean() + (image - image.mean()) * contrast


def resample(image, scale, down, right):
    """Stretch by `scale` around the middle, move by whole pixels; bilinear, black outside."""
    size = image.shape[1]
    rows = [[1, 0, -2 * round(right) / size], [0, 1, -2 * round(down) / size]]
    theta = torch.tensor(rows, dtype=torch.float64) / scale
    grid = F.affine_grid(theta[None], (1, 3, size, size), align_corners=False)
    return F.grid_sample(image[None].double(), grid, align_corners=False)[0].float()


def cut_out(image, row, column):
    """Blacken the pixels whose centers lie within a quarter of the side around (row, column)."""
    size, image = image.shape[1], image.clone()
    for i, j in itertools.product(range(size), repeat=2):
        if max(abs(i + 0.5 - row), abs(j + 0.5 - column)) < size / 4:
            image[:, i, j] = 0
    return image


def positions(layer):
    """sin(W p + phi) at the centers p = (x, y) of the cells, row by row: [side^2, width]."""
    side = math.isqrt(len(layer.coords))
    centers = [(2 * i + 1) / side - 1 for i in range(side)]
    places = torch.tensor([[x, y] for y in centers for x in centers])
    return linear(layer.project, places).sin()


def sln(layer, h, w):
    gamma, beta = linear(layer.gamma, w), linear(layer.beta, w)
    return gamma[:, None] * F.layer_norm(h, h.shape[-1:]) + beta[:, None]


def mlp(layer, kind, h):
    return kind(layer[2], F.gelu(kind(layer[0], h)))


def generator(G, z):
    """G head by head, with a matrix for each patch: z -> images. Source: ViTGAN, section 3.2."""
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in G.mapping.layers:
        w = math.sqrt(2) * F.leaky_relu(linear(layer, w, m=0.01), 0.2)
    h = positions(G.positions).expand(len(z), -1, -1)
    for block in G.blocks:
        q, k, v = linear(block.attention.qkv, sln(block.norm1, h, w)).chunk(3, -1)
        size = q.shape[-1] // block.attention.heads
        heads = []
        for a, b, c in zip(*(x.split(size, -1) for x in (q, k, v)), strict=True):
            if block.attention.qk_norm:
                a, b = (x / x.square().mean(-1, keepdim=True).sqrt() for x in (a, b))
            heads.append(torch.softmax(a @ b.mT / math.sqrt(size), -1) @ c)
        h = h + linear(block.attention.out, torch.cat(heads, -1))
        h = h + mlp(block.mlp, linear, sln(block.norm2, h, w))
    y = sln(G.norm, h, w).flatten(0, 1)
    features = modulated_linear(G.decoder.hidden, positions(G.fourier), y).sin()
    colors = modulated_linear(G.decoder.out, features, y).unflatten(0, (len(z), -1))  # [B, N, p, 3]
    return blend(colors, G.patch_size, G.overlap)


def blend(patches, side, overlap):
    """Add up patches [B, N, (side + 2 overlap)^2, C], pixel by pixel, divided by the sum of their
    weights, which fall linearly to zero over twice the overlap: [B, C, S, S]."""
    (B, N, _, C), K = patches.shape, side + 2 * overlap
    grid = math.isqrt(N)
    images, total = (torch.zeros(B, C, grid * side, grid * side) for _ in range(2))
    for n, i, j in itertools.product(range(N), range(K), range(K)):
        row, column = n // grid * side + i - overlap, n % grid * side + j - overlap
        if 0 <= row < grid * side and 0 <= column < grid * side:
            weight = 1.0
            for place in (i, j):
                if overlap:
                    edge = min(place + 0.5, K - place - 0.5)
                    weight *= min(1.0, edge / (2 * overlap))
            images[:, :, row, column] += weight * patches[:, n, i * K + j]
            total[:, :, row, column] += weight
    return images / total


def discriminator(D, x):
    """D with sigma from an SVD: images -> logits. Source: ViTGAN, section 3.1."""
    windows = overlapping_patches(x, D.patches.patch_size, D.patches.overlap)
    h = isn_linear(D.embed, windows) + positions(D.positions)
    h = torch.cat([D.class_token.expand(len(x), -1, -1), h], 1)
    for block in D.blocks:
        normed, heads = block.norm1(h), block.attention.heads
        q, v = (
            isn_linear(layer, normed).unflatten(2, (heads, -1)).transpose(1, 2)
            for layer in (block.attention.qk, block.attention.value)
        )
        h = h + isn_linear(block.attention.out, l2_attention(q, v).transpose(1, 2).flatten(2))
        h = h + mlp(block.mlp, isn_linear, block.norm2(h))
    h = D.norm(h)
    return isn_linear(D.head, h[:, 0] if D.pool == "token" else h.mean(1))[:, 0]


def make_literal(network):
    """Make G or D compute the literal way from now on; returns the network."""
    form = {"Generator": generator, "Discriminator": discriminator}[type(network).__name__]
    network.forward = types.MethodType(form, network)
    return network


def training_loop(c, images, steps, vitgan):
    """Training written out, with the notebook's networks and losses, in float32 on the CPU:
    (G, D, average of G, losses)."""
    torch.manual_seed(c.seed)
    G, D = vitgan.Generator(c), vitgan.Discriminator(c)
    average, losses = copy.deepcopy(G).eval(), []
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=lr, betas=(0.0, 0.99), fused=True)
        for network, lr in ((G, c.lr_g), (D, c.lr_d))
    ]
    for step in range(1, steps + 1):
        real = images[torch.randint(len(images), (c.batch_size,))].float() / 127.5 - 1
        if c.flip:
            mirrored = torch.rand(c.batch_size, 1, 1, 1) < 0.5
            real = torch.where(mirrored, real.flip(-1), real)
        fake = G(torch.randn(c.batch_size, c.latent_dim))

        loss_D, _ = vitgan.discriminator_loss(D, real, fake.detach(), c.augment, c.bcr)
        update(optimizers[1], loss_D)

        D.eval()
        loss_G, _ = vitgan.generator_loss(D, real, fake, c.augment)
        update(optimizers[0], loss_G)
        D.train()

        seen = step * c.batch_size
        decay = 0.5 ** (c.batch_size / min(c.ema_half_life, 0.05 * seen))
        with torch.no_grad():
            for old, new in zip(average.parameters(), G.parameters(), strict=True):
                old.copy_(torch.lerp(old, new, 1 - decay))
            for old, new in zip(average.buffers(), G.buffers(), strict=True):
                old.copy_(new)
        losses.append((loss_D.item(), loss_G.item()))
    return G, D, average, losses


def update(optimizer, loss):
    """By the gradients of this loss alone, in this network alone."""
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()
