"""The full model less one part, or with another one: each entry of ABLATIONS changes the notebook's definitions or some settings.

`python tests/experiment.py --ablations NAME …` trains with one of them; without arguments this file prints their names. An entry is
(what it does, settings, a function that patches the module of definitions). The notebook's classes are subclassed, never copied.
"""

import math
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


def untied(vitgan, weights):
    """Attention in D with a key layer of its own; `weights` [B, H, N, d] x 2, exponent -> [B, H, N, N] before the softmax."""
    class UntiedAttention(vitgan.L2SelfAttention):
        def __init__(self, width, heads, *rest):
            super().__init__(width, heads, *rest)
            self.key = vitgan.ISNLinear(width, width)

        def forward(self, h):
            q, k, v = (vitgan.rearrange(layer(h), "b n (h d) -> b h n d", h=self.heads)
                       for layer in (self.qk, self.key, self.value))
            y = torch.softmax(weights(q, k, self.exponent), -1) @ v
            return self.out(vitgan.rearrange(y, "b h n d -> b n (h d)"))

    vitgan.L2SelfAttention = UntiedAttention


def dot(q, k, _):
    return q @ k.mT / math.sqrt(q.shape[-1])


def squared_distance(q, k):
    return q.square().sum(-1)[..., None] + k.square().sum(-1)[..., None, :] - 2 * q @ k.mT


def minus_squared(q, k, exponent):
    return -squared_distance(q, k) / q.shape[-1] ** exponent


def plus_distance(q, k, _):
    return ((squared_distance(q, k).float().clamp_min(0) + 1e-6) / q.shape[-1]).sqrt()


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
                raise vitgan.ConfigError(f"latent_dim={latent_dim}; allowed without a mapping network: width={width}.")

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
            self.decoder.out = vitgan.EqualizedLinear(config.width, 3 * self.side**2, weight_init=0.5)

    vitgan.PatchSIREN, vitgan.Generator = LinearDecoder, GeneratorWithLinearDecoder


def relativistic(vitgan):
    """R3GAN's losses: D tells by how much each real image looks more real than a fake, and its gradients are kept small on both.

    Source: Huang et al. 2024, "The GAN is dead; long live the GAN!". config.r1 is its gamma, for R1 and R2 alike.
    """
    softplus, judged = nn.functional.softplus, {}

    def discriminator_loss(D, real, fake, config, bcr_weight=1.0):
        both = vitgan.diff_augment(torch.cat([real, fake.detach()]), config.augment, config.augment_p)
        judged["real"] = both[: len(real)]
        real_logits, fake_logits = D(both).float().chunk(2)
        r1_and_r2 = 2 * vitgan.r1_penalty(D, both)  # the mean over both halves, twice
        loss = softplus(fake_logits - real_logits).mean() + config.r1 / 2 * r1_and_r2
        return loss, {"d_loss": loss.detach(), "logit_real": real_logits.detach().mean(), "logit_fake": fake_logits.detach().mean()}

    def generator_loss(D, fake, config):
        loss = softplus(D(judged["real"]) - D(vitgan.diff_augment(fake, config.augment, config.augment_p))).float().mean()
        return loss, {"g_loss": loss.detach()}

    vitgan.discriminator_loss, vitgan.generator_loss = discriminator_loss, generator_loss


def nothing(vitgan):
    pass


ABLATIONS = {
    "full": ("the full model", {}, nothing),
    "plain-sn": ("plain spectral norm instead of ISN", {}, plain_spectral_norm),
    "no-sn": ("no spectral norm", {}, no_spectral_norm),
    "dot": ("dot-product attention in D", {}, partial(untied, weights=dot)),
    "sqrt-d": ("distances over √d (the paper's) instead of d", dict(l2_exponent=0.5), nothing),
    "untied": ("untied Q and K", {}, partial(untied, weights=minus_squared)),
    "plus-distance": ("the post's: + distance, not squared, untied", {}, partial(untied, weights=plus_distance)),
    "no-overlap": ("no overlap of D's patches", dict(overlap=0), nothing),
    "no-bcr": ("no bCR: DiffAugment alone", dict(bcr_real=0.0, bcr_fake=0.0, logistic_on="augmented"), nothing),
    "no-augment": ("no DiffAugment, hence no bCR", dict(bcr_real=0.0, bcr_fake=0.0, logistic_on="plain"), nothing),
    "one-sln": ("one SLN per block", {}, one_sln),
    "no-equalized": ("no equalized learning rate", {}, no_equalized_rate),
    "no-mapping": ("no mapping network", {}, no_mapping),
    "additive": ("additive instead of modulated patch decoder", {}, additive_decoder),
    "linear": ("linear patch decoder instead of SIREN", {}, linear_decoder),
    "r3gan": ("relativistic loss, R1 and R2 (R3GAN's) instead of bCR",
              dict(bcr_real=0.0, bcr_fake=0.0, logistic_on="augmented", r1=0.1), relativistic),
}

if __name__ == "__main__":
    for name, (text, fields, _) in ABLATIONS.items():
        print(f"{name:14}{text}", *(f"{field}={value}" for field, value in fields.items()))
