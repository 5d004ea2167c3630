"""The full model less one part, or with another one.

`python tests/experiments/run.py --ablations NAME ...` trains with it; run alone, this file prints the names. An entry of ABLATIONS
is (what it does, settings, a function that patches the notebook's definitions). Classes are subclassed, never copied.
"""
import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F


def plain_spectral_norm(vitgan):
    class SNLinear(vitgan.ISNLinear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.sigma_init.fill_(1.0)

    vitgan.ISNLinear = SNLinear


def no_spectral_norm(vitgan):
    vitgan.ISNLinear = vitgan.EqualizedLinear


def plus_sign(vitgan):
    vitgan.l2_attention = partial(vitgan.l2_attention, sign=1)


def untied(vitgan, weights):
    """A key layer of its own; `weights` maps q, k [B, H, N, d] and the exponent to the attention [B, H, N, N]."""
    class UntiedAttention(vitgan.L2SelfAttention):
        def __init__(self, width, heads, exponent):
            super().__init__(width, heads, exponent)
            self.key = vitgan.ISNLinear(width, width)

        def forward(self, h):
            q, k, v = (vitgan.rearrange(layer(h), "b n (h d) -> b h n d", h=self.heads)
                       for layer in (self.qk, self.key, self.value))
            y = weights(q, k, self.exponent).to(v.dtype) @ v
            return self.out(vitgan.rearrange(y, "b h n d -> b n (h d)"))

    vitgan.L2SelfAttention = UntiedAttention


def dot(q, k, _):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)


def minus_squared(q, k, exponent):
    """Of squared distances; |q|^2 is the same along a row and cancels."""
    return torch.softmax((2 * q @ k.mT - k.square().sum(-1)[..., None, :]) / q.shape[-1] ** exponent, -1)


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


class SineTable(nn.Module):
    """The post's positions: the sine of a free table, [N, D]."""

    def __init__(self, config, positions):
        super().__init__()
        self.table = nn.Parameter(torch.randn(len(positions.coords), config.width))

    def forward(self):
        return torch.sin(self.table)


def replaced(network, name, build):
    """A subclass of a network whose part `name` is build(config, that part)."""
    class Replaced(network):
        def __init__(self, config):
            super().__init__(config)
            setattr(self, name, build(config, getattr(self, name)))

    return Replaced


def free_positions(vitgan):
    vitgan.Generator, vitgan.Discriminator = (replaced(network, "positions", SineTable)
                                              for network in (vitgan.Generator, vitgan.Discriminator))


def two_hidden(vitgan):
    vitgan.PatchSIREN = partial(vitgan.PatchSIREN, hidden_layers=2)


def demodulated(vitgan):
    class DemodulatedSIREN(vitgan.PatchSIREN):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            for layer in self.hidden:
                layer.demodulate = True

    vitgan.PatchSIREN = DemodulatedSIREN


def additive_decoder(vitgan):
    """Every layer adds A y to its input's product instead of scaling W's columns by it."""
    class AdditiveLinear(vitgan.ModulatedLinear):
        def __init__(self, in_features, out_features, y_dim):
            super().__init__(in_features, out_features, y_dim)
            self.style = vitgan.EqualizedLinear(y_dim, out_features, weight_init=3**-0.5)

        def forward(self, x, y):
            return self.linear(x) + self.style(y)[:, None]

    vitgan.ModulatedLinear = AdditiveLinear


def linear_decoder(vitgan):
    class LinearDecoder(vitgan.EqualizedLinear):
        def __init__(self, config, _):
            super().__init__(config.width, 3 * config.patch_size**2, weight_init=0.5)

        def forward(self, E, y):
            return super().forward(y).unflatten(1, (len(E), -1))

    vitgan.Generator = replaced(vitgan.Generator, "decoder", LinearDecoder)


def r1(vitgan):
    """gamma / 2 E |grad_x D(x)|^2 with gamma = 0.1. Source: Mescheder et al. 2018."""
    without = vitgan.discriminator_loss

    def discriminator_loss(D, real, fake, config):
        loss, stats = without(D, real, fake, config)
        images = real.detach().requires_grad_()
        with torch.compiler.set_stance("force_eager"):  # compiled code has no second derivative
            (gradient,) = torch.autograd.grad(D(images).float().sum(), images, create_graph=True)
        penalty = 0.1 / 2 * gradient.square().sum((1, 2, 3)).mean()
        return loss + penalty, stats | {"r1": penalty.detach()}

    vitgan.discriminator_loss = discriminator_loss


def relativistic(vitgan):
    """How much more real each real image looks than a fake; small gradients on both, measured by noise on a quarter of each batch.

    Sources: R3GAN (Huang et al. 2024); noise and logits centred: adversarial flow models (Lin et al. 2025).
    """
    shown, sigma = {}, 0.03

    def discriminator_loss(D, real, fake, config):
        shown["real"], few = real, max(1, len(real) // 4)
        both = torch.cat([real, fake.detach()])
        some = torch.cat([half[:few] for half in both.chunk(2)])
        on_both, on_noised = D(torch.cat([both, some + sigma * torch.randn_like(some)])).float().split([len(both), len(some)])
        on_real, on_fake = on_both.chunk(2)
        slopes = (on_noised - torch.cat([on_real[:few], on_fake[:few]])) / sigma
        logistic = F.softplus(on_fake - on_real).mean()
        stats = {"d_loss": logistic, "logit_real": on_real.mean(), "logit_fake": on_fake.mean()}
        loss = logistic + 0.01 * slopes.square().mean() + 0.01 * (on_real + on_fake).square().mean()
        return loss, {name: value.detach() for name, value in stats.items()}

    def generator_loss(D, fake, config):
        loss = F.softplus(D(shown["real"]).float() - D(fake).float()).mean()
        return loss, {"g_loss": loss.detach()}

    vitgan.discriminator_loss, vitgan.generator_loss = discriminator_loss, generator_loss


class EqualizedConv(nn.Module):
    """Convolution by W / sqrt(fan_in), W ~ N(0, 1); stride 1: padded, stride 2: not."""

    def __init__(self, in_channels, out_channels, side, stride=1, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * side**2)
        self.stride, self.padding = stride, side // 2 if stride == 1 else 0

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


def blur(x, padding):
    """Binomial 4x4 low-pass filter, so that halving does not alias: [B, C, S, S] -> side S + 2 padding - 3."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    return F.conv2d(x, (kernel[:, None] * kernel).expand(x.shape[1], 1, 4, 4), padding=padding, groups=x.shape[1])


def leaky(x):
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ResidualDown(nn.Module):
    """Two convolutions beside a short cut: [B, C, S, S] -> [B, C, S/2, S/2]."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = EqualizedConv(channels, channels, 3), EqualizedConv(channels, channels, 3, 2)
        self.skip = EqualizedConv(channels, channels, 1, 2, bias=False)

    def forward(self, x):
        h = leaky(self.second(blur(leaky(self.first(x)), 2)))
        return (h + self.skip(blur(x, 1))) / math.sqrt(2)


def minibatch_std(h, group):
    """Mean deviation of features within groups of neighbors in the batch: [B, C, s, s] -> [B, 1, s, s]."""
    deviation = (h.float().unflatten(0, (-1, group)).var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.to(h.dtype).repeat_interleave(group)[:, None, None, None].expand(-1, 1, *h.shape[2:])


def convolutional(vitgan):
    class ConvDiscriminator(nn.Module):
        """Images [B, 3, S, S], S a power of 2 -> logits [B], config.width channels."""

        def __init__(self, config):
            super().__init__()
            c, share = config.width, config.batch_size // vitgan.helpers.rank_and_size()[1]
            self.group = math.gcd(4, share)  # it sees share real images, share fakes and their twins: groups mix none of them
            self.from_rgb, self.last = EqualizedConv(3, c, 1), EqualizedConv(c + 1, c, 3)
            self.blocks = nn.Sequential(*(ResidualDown(c) for _ in range(int(math.log2(config.image_size / 4)))))
            self.hidden, self.head = vitgan.EqualizedLinear(c * 16, c), vitgan.EqualizedLinear(c, 1)

        def forward(self, x):
            h = self.blocks(leaky(self.from_rgb(x)))  # [B, C, 4, 4]
            h = leaky(self.last(torch.cat([h, minibatch_std(h, self.group)], 1)))
            return self.head(leaky(self.hidden(h.flatten(1)))).squeeze(1)

    vitgan.Discriminator = ConvDiscriminator


def nothing(vitgan):
    pass


ABLATIONS = {
    "full": ("the full model", {}, nothing),
    "plain-sn": ("plain spectral norm instead of ISN", {}, plain_spectral_norm),
    "no-sn": ("no spectral norm", {}, no_spectral_norm),
    "dot": ("dot-product attention in D", {}, partial(untied, weights=dot)),
    "sqrt-d": ("distances over √d (the paper's) instead of d", dict(l2_exponent=0.5), nothing),
    "plus-sign": ("no minus in L2 attention, as the paper prints it", {}, plus_sign),
    "untied": ("untied Q and K", {}, partial(untied, weights=minus_squared)),
    "no-overlap": ("no overlap of D's patches", dict(overlap=0), nothing),
    "conv": ("convolutional discriminator (StyleGAN2's)", {}, convolutional),
    "no-bcr": ("no bCR: DiffAugment alone", dict(bcr=0.0, adversarial_on="augmented"), nothing),
    "no-augment": ("no DiffAugment, hence no bCR", dict(bcr=0.0, adversarial_on="plain"), nothing),
    "r1": ("R1 penalty instead of bCR", dict(bcr=0.0), r1),
    "relativistic": ("relativistic loss, R1 and R2 by noise instead of bCR", dict(bcr=0.0, adversarial_on="plain"), relativistic),
    "one-sln": ("one SLN per block", {}, one_sln),
    "no-equalized": ("no equalized learning rate", {}, no_equalized_rate),
    "no-mapping": ("no mapping network", {}, no_mapping),
    "free-positions": ("free positions (the post's)", {}, free_positions),
    "additive": ("additive instead of modulated patch decoder", {}, additive_decoder),
    "linear": ("linear patch decoder instead of SIREN", {}, linear_decoder),
    "two-hidden": ("two hidden layers in the patch decoder", {}, two_hidden),
    "demodulate": ("demodulated patch decoder (StyleGAN2's)", {}, demodulated),
}

if __name__ == "__main__":
    for name, (text, settings, _) in ABLATIONS.items():
        print(f"{name:16}{text}", *(f"{field}={value}" for field, value in settings.items()))
