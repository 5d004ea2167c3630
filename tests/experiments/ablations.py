"""The full model less one part, or with another one: each entry of ABLATIONS changes the notebook's definitions or some settings.

`python tests/experiments/run.py --ablations NAME …` trains with one of them; without arguments this file prints their names. An entry is
(what it does, settings, a function that patches the module of definitions). The notebook's classes are subclassed, never copied.
"""

import math
import sys
from functools import partial

import torch
import torch.nn as nn


def plain_spectral_norm(vitgan):
    class SNLinear(vitgan.ISNLinear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.sigma_init.fill_(1.0)

    vitgan.ISNLinear = SNLinear


def no_spectral_norm(vitgan):
    vitgan.ISNLinear = vitgan.EqualizedLinear


def untied(vitgan, attend):
    """Attention in D with a key layer of its own; `attend`: q, k [B, H, N, d] and the exponent -> weights [B, H, N, N]."""
    class UntiedAttention(vitgan.L2SelfAttention):
        def __init__(self, width, heads, *rest):
            super().__init__(width, heads, *rest)
            self.key = vitgan.ISNLinear(width, width)

        def forward(self, h):
            q, k, v = (vitgan.rearrange(layer(h), "b n (h d) -> b h n d", h=self.heads)
                       for layer in (self.qk, self.key, self.value))
            y = attend(q, k, self.exponent) @ v
            return self.out(vitgan.rearrange(y, "b h n d -> b n (h d)"))

    vitgan.L2SelfAttention = UntiedAttention


def dot(q, k, _):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)


def squared_distance(q, k):
    return q.square().sum(-1)[..., None] + k.square().sum(-1)[..., None, :] - 2 * q @ k.mT


def minus_squared(q, k, exponent):
    return torch.softmax(-squared_distance(q, k) / q.shape[-1] ** exponent, -1)


def plus_distance(q, k, _):
    """The post's: not squared, no minus, divided by the root of the whole width after the softmax (multi_head.py, lines 37-38)."""
    distance = (squared_distance(q, k).float().clamp_min(0) + 1e-6).sqrt()
    return torch.softmax(distance, -1).to(q.dtype) / math.sqrt(q.shape[1] * q.shape[-1])


def plus_sign(vitgan):
    """The sign of the paper's formula as printed."""
    vitgan.l2_attention = partial(vitgan.l2_attention, sign=1)


def free_positions(vitgan):
    """The post's: the sine of a free table for the tokens; the decoder keeps its Fourier features."""
    class Table(nn.Module):
        def __init__(self, tokens, width):
            super().__init__()
            self.table = nn.Parameter(torch.randn(tokens, width))

        def forward(self):
            return torch.sin(self.table)

    def with_table(network):
        class WithTable(network):
            def __init__(self, config):
                super().__init__(config)
                self.positions = Table((config.image_size // config.patch_size) ** 2, config.width)
        return WithTable

    vitgan.Generator, vitgan.Discriminator = with_table(vitgan.Generator), with_table(vitgan.Discriminator)


def two_hidden(vitgan):
    """The post's decoder: one hidden layer more."""
    vitgan.PatchSIREN = partial(vitgan.PatchSIREN, hidden_layers=2)


def one_sln(vitgan):
    class SharedNormBlock(vitgan.GeneratorBlock):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.norm2 = self.norm1

    vitgan.GeneratorBlock = SharedNormBlock


def no_equalized_rate(vitgan):
    """Weights stored at the size they are used with, so that Adam moves all of them alike."""
    equalized = vitgan.EqualizedLinear.__init__

    def unscaled(self, *args, **kwargs):
        equalized(self, *args, **kwargs)
        with torch.no_grad():
            self.weight.mul_(self.scale)
            self.bias.mul_(self.lr_mult)
        self.scale = self.lr_mult = 1.0

    vitgan.EqualizedLinear.__init__ = unscaled


def no_mapping(vitgan):
    class Normalized(vitgan.MappingNetwork):
        def __init__(self, latent_dim, width, layers):
            super().__init__(width, width, 0)
            if latent_dim != width:
                raise ValueError(f"latent_dim={latent_dim}; allowed without a mapping network: width={width}.")

    vitgan.MappingNetwork = Normalized


def additive_decoder(vitgan):
    """Every layer adds A y to its input's product instead of scaling W's columns by it."""
    class AdditiveLinear(vitgan.ModulatedLinear):
        def __init__(self, in_features, out_features, y_dim, demodulate=False):
            super().__init__(in_features, out_features, y_dim, demodulate)
            self.style = vitgan.EqualizedLinear(y_dim, out_features, weight_init=3**-0.5)

        def forward(self, x, y):
            return self.linear(x) + self.style(y)[:, None]

    vitgan.ModulatedLinear = AdditiveLinear


def linear_decoder(vitgan):
    class LinearDecoder(nn.Module):
        def __init__(self, width, channels=3, *rest):
            super().__init__()
            self.width, self.channels, self.out = width, channels, None

        def forward(self, E, y):
            return self.out(y).unflatten(1, (len(E), -1))

    class GeneratorWithLinearDecoder(vitgan.Generator):
        def __init__(self, config):
            super().__init__(config)
            self.decoder.out = vitgan.EqualizedLinear(config.width, 3 * self.patch_size**2, weight_init=0.5)

    vitgan.PatchSIREN, vitgan.Generator = LinearDecoder, GeneratorWithLinearDecoder


def r1_penalty(D, images):
    """E |grad_x D(x)|^2. Source: Mescheder et al. 2018."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(images).float().sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def r1(vitgan, gamma):
    """The R1 penalty on real images beside everything else."""
    plain = vitgan.discriminator_loss

    def discriminator_loss(D, real, fake, config):
        loss, stats = plain(D, real, fake, config)
        penalty = r1_penalty(D, real)
        return loss + gamma / 2 * penalty, stats | {"r1": penalty.detach()}

    vitgan.discriminator_loss = discriminator_loss


def relativistic(vitgan, gamma):
    """R3GAN's losses: D tells by how much each real image looks more real than a fake, with R1 and R2.

    Source: Huang et al. 2024, "The GAN is dead; long live the GAN!".
    """
    softplus, seen = nn.functional.softplus, {}

    def discriminator_loss(D, real, fake, config):
        both = vitgan.diff_augment(torch.cat([real, fake.detach()]), config.augment)
        seen["real"] = both[: len(real)]
        real_logits, fake_logits = D(both).float().chunk(2)
        loss = softplus(fake_logits - real_logits).mean() + gamma * r1_penalty(D, both)  # R1 / 2 + R2 / 2
        return loss, {"d_loss": loss.detach(), "logit_real": real_logits.detach().mean(), "logit_fake": fake_logits.detach().mean()}

    def generator_loss(D, fake, config):
        loss = softplus(D(seen["real"]) - D(vitgan.diff_augment(fake, config.augment))).float().mean()
        return loss, {"g_loss": loss.detach()}

    vitgan.discriminator_loss, vitgan.generator_loss = discriminator_loss, generator_loss


class EqualizedConv(nn.Module):
    """Convolution by W / sqrt(fan_in), W ~ N(0, 1), stride 1: padded; stride 2: not. Source: StyleGAN2."""

    def __init__(self, in_channels, out_channels, side, stride=1, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * side**2)
        self.stride, self.padding = stride, side // 2 if stride == 1 else 0

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


def blur(x, padding):
    """Binomial 4x4 low-pass filter, so that halving does not alias: [B, C, S, S] -> S + 2 padding - 3."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    kernel = (kernel[:, None] * kernel).expand(x.shape[1], 1, 4, 4)
    return nn.functional.conv2d(x, kernel, padding=padding, groups=x.shape[1])


def leaky(x):
    """Leaky ReLU that keeps the size of its input."""
    return nn.functional.leaky_relu(x, 0.2) * math.sqrt(2)


class ResidualDown(nn.Module):
    """Two convolutions beside a short cut, halving the side: [B, C, S, S] -> [B, C, S/2, S/2]."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = EqualizedConv(channels, channels, 3), EqualizedConv(channels, channels, 3, 2)
        self.skip = EqualizedConv(channels, channels, 1, 2, bias=False)

    def forward(self, x):
        h = leaky(self.second(blur(leaky(self.first(x)), 2)))
        return (h + self.skip(blur(x, 1))) / math.sqrt(2)


def minibatch_std(h, group=4):
    """Standard deviation of features within groups of neighbors in the batch, averaged: [B, C, s, s] -> [B, 1, s, s].

    Real and fake images, and their augmented twins, stand in blocks of batch_size: groups that divide it never mix them.
    """
    groups = h.float().unflatten(0, (-1, group))  # [B / 4, 4, C, s, s]
    std = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return std.to(h.dtype).repeat_interleave(group)[:, None, None, None].expand(-1, 1, *h.shape[2:])


class ConvDiscriminator(nn.Module):
    """Images [B, 3, S, S], S = 8 to 64 -> logits [B]. Source: StyleGAN2's residual discriminator; config.width channels."""

    def __init__(self, config):
        super().__init__()
        if config.batch_size % 4:
            raise ValueError(f"batch_size={config.batch_size}; allowed with a convolutional discriminator: a multiple of 4.")
        channels, halvings = config.width, int(math.log2(config.image_size / 4))
        linear = vitgan_of(config).EqualizedLinear
        self.from_rgb = EqualizedConv(3, channels, 1)
        self.blocks = nn.Sequential(*(ResidualDown(channels) for _ in range(halvings)))
        self.last = EqualizedConv(channels + 1, channels, 3)
        self.hidden, self.head = linear(channels * 16, channels), linear(channels, 1)

    def forward(self, x):
        h = self.blocks(leaky(self.from_rgb(x)))  # [B, C, 4, 4]
        h = leaky(self.last(torch.cat([h, minibatch_std(h)], 1)))
        return self.head(leaky(self.hidden(h.flatten(1)))).squeeze(1)


def vitgan_of(config):
    """The module of definitions that `config` comes from."""
    return sys.modules[type(config).__module__]


def conv(vitgan):
    """StyleGAN2's discriminator, the paper's other row."""
    vitgan.Discriminator = ConvDiscriminator


def nothing(vitgan):
    pass


ABLATIONS = {
    "full": ("the full model", {}, nothing),
    "plain-sn": ("plain spectral norm instead of ISN", {}, plain_spectral_norm),
    "no-sn": ("no spectral norm", {}, no_spectral_norm),
    "dot": ("dot-product attention in D", {}, partial(untied, attend=dot)),
    "sqrt-d": ("distances over √d (the paper's) instead of d", dict(l2_exponent=0.5), nothing),
    "untied": ("untied Q and K", {}, partial(untied, attend=minus_squared)),
    "plus-distance": ("the post's: + distance, not squared, untied", {}, partial(untied, attend=plus_distance)),
    "no-overlap": ("no overlap of D's patches", dict(overlap=0), nothing),
    "no-bcr": ("no bCR: DiffAugment alone", dict(bcr=0.0, adversarial_on="augmented"), nothing),
    "no-augment": ("no DiffAugment, hence no bCR", dict(bcr=0.0, adversarial_on="plain"), nothing),
    "one-sln": ("one SLN per block", {}, one_sln),
    "no-equalized": ("no equalized learning rate", {}, no_equalized_rate),
    "no-mapping": ("no mapping network", {}, no_mapping),
    "additive": ("additive instead of modulated patch decoder", {}, additive_decoder),
    "linear": ("linear patch decoder instead of SIREN", {}, linear_decoder),
    "r3gan": ("relativistic loss, R1 and R2 (R3GAN's) instead of bCR",
              dict(bcr=0.0, adversarial_on="augmented"), partial(relativistic, gamma=0.1)),
    "r1": ("R1 penalty, gamma 0.1, beside bCR", {}, partial(r1, gamma=0.1)),
    "conv": ("convolutional discriminator (StyleGAN2's)", {}, conv),
    "two-hidden": ("two hidden layers in the decoder (the post's)", {}, two_hidden),
    "free-positions": ("sine of a free table as positions (the post's)", {}, free_positions),
    "plus-sign": ("L2 attention with the printed sign", {}, plus_sign),
}

if __name__ == "__main__":
    for name, (text, fields, _) in ABLATIONS.items():
        print(f"{name:14}{text}", *(f"{field}={value}" for field, value in fields.items()))
