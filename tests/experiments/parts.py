"""The parts that ablations.py takes away or replaces: settings, and patches of the definitions."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def nothing(vitgan):
    pass


def plain_spectral_norm(vitgan):
    class SNLinear(vitgan.ISNLinear):
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)
            self.sigma_init.fill_(1.0)

    vitgan.ISNLinear = SNLinear


def dot_product(vitgan):
    class DotAttention(vitgan.L2SelfAttention):
        """Keys of their own, and products for distances."""

        def __init__(self, width, heads, qk_scaled=False):
            super().__init__(width, heads)
            self.key = vitgan.ISNLinear(width, width)

        def forward(self, h):
            q, k, v = (
                vitgan.rearrange(layer(h), "b n (h d) -> b h n d", h=self.heads)
                for layer in (self.qk, self.key, self.value)
            )
            heads = self.softmax(q.shape[-1] ** -0.5 * q @ k.mT) @ v
            return self.out(vitgan.rearrange(heads, "b h n d -> b n (h d)"))

    vitgan.L2SelfAttention = DotAttention


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


class SineTable(nn.Module):
    """The post's positions: the sine of a free table, [N, width]."""

    def __init__(self, config, positions):
        super().__init__()
        self.table = nn.Parameter(torch.randn(len(positions.coords), config.width))

    def forward(self):
        return torch.sin(self.table)


def free_positions(vitgan):
    for name in ("Generator", "Discriminator"):

        class WithTable(getattr(vitgan, name)):
            def __init__(self, config):
                super().__init__(config)
                self.positions = SineTable(config, self.positions)

        setattr(vitgan, name, WithTable)


def linear_coordinates(vitgan):
    """The projection of a place without its sine, at the sine's size."""

    class LinearCoordinates(vitgan.FourierFeatures):
        def __init__(self, side, width, step=0.4):
            super().__init__(side, width, step)
            nn.init.normal_(self.project.weight)
            nn.init.zeros_(self.project.bias)

        def forward(self):
            return self.project(self.coords)

    vitgan.FourierFeatures = LinearCoordinates


def additive_decoder(vitgan):
    """Every layer adds A y to its input's product instead of scaling W's columns by it."""

    class AdditiveLinear(vitgan.ModulatedLinear):
        def __init__(self, in_features, out_features, y_dim):
            super().__init__(in_features, out_features, y_dim)
            self.style = vitgan.EqualizedLinear(y_dim, out_features, weight_init=3**-0.5)

        def forward(self, x, y):
            return self.linear(x) + self.style(y)[:, None]

    vitgan.ModulatedLinear = AdditiveLinear


def plain_images_judged(vitgan):
    """The logistic parts judge plain images. bCR still compares them with augmented ones."""

    def discriminator_loss(D, real, fake, augment, bcr):
        plain = torch.cat([real, fake.detach()])
        both = torch.cat([plain, vitgan.diff_augment(plain, augment)])
        logits, logits_augmented = D(both).float().chunk(2)
        logits_real, logits_fake = logits.chunk(2)
        logistic = F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()
        consistency = 2 * bcr * (logits - logits_augmented).square().mean()
        stats = {"d_loss": logistic, "consistency": consistency}
        stats |= {"logit_real": logits_real.mean(), "logit_fake": logits_fake.mean()}
        return logistic + consistency, {name: value.detach() for name, value in stats.items()}

    def generator_loss(D, real, fake, augment):
        loss = F.softplus(-D(fake).float()).mean()
        return loss, {"g_loss": loss.detach()}

    vitgan.discriminator_loss, vitgan.generator_loss = discriminator_loss, generator_loss


class EqualizedConv(nn.Module):
    """Convolution by W / sqrt(fan_in) with W ~ N(0, 1): [B, C, S, S] -> [B, C_out, S, S]."""

    def __init__(self, in_channels, out_channels, side):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = 1 / math.sqrt(in_channels * side**2)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, padding="same")


def leaky(x):
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ResidualDown(nn.Module):
    """Two convolutions beside a short cut: [B, C, S, S] -> [B, C, S/2, S/2]."""

    def __init__(self, channels):
        super().__init__()
        self.first = EqualizedConv(channels, channels, 3)
        self.second = EqualizedConv(channels, channels, 3)
        self.skip = EqualizedConv(channels, channels, 1)

    def forward(self, x):
        h = leaky(self.second(F.avg_pool2d(leaky(self.first(x)), 2)))
        return (h + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


def convolutional(vitgan):
    class ConvDiscriminator(nn.Module):
        """Images [B, 3, S, S], S a power of 2 -> logits [B]; half of config.width as channels."""

        def __init__(self, config):
            super().__init__()
            c, halvings = config.width // 2, int(math.log2(config.image_size / 4))
            self.from_rgb = EqualizedConv(3, c, 1)
            self.blocks = nn.Sequential(*(ResidualDown(c) for _ in range(halvings)))
            self.hidden, self.head = vitgan.EqualizedLinear(c * 16, c), vitgan.EqualizedLinear(c, 1)

        def forward(self, x):
            h = self.blocks(leaky(self.from_rgb(x)))  # [B, C, 4, 4]
            return self.head(leaky(self.hidden(h.flatten(1)))).squeeze(1)

    vitgan.Discriminator = ConvDiscriminator


def initialize_dcgan(module):
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def dcgan(vitgan):
    """The DCGAN of PyTorch's tutorial (dcgan_faces_tutorial.py), with one stage less for 32x32."""
    n, no_bias = 64, dict(bias=False)

    class DCGenerator(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.latent_dim = config.latent_dim
            sizes, layers = [config.latent_dim, 4 * n, 2 * n, n], []
            for i, (c_in, c_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
                stride, padding = (2, 1) if i else (1, 0)
                layers += [nn.ConvTranspose2d(c_in, c_out, 4, stride, padding, **no_bias)]
                layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
            layers += [nn.ConvTranspose2d(n, 3, 4, 2, 1, **no_bias), nn.Tanh()]
            self.layers = nn.Sequential(*layers)
            self.register_buffer("w_avg", torch.zeros(1))  # where sample() looks for the device
            self.apply(initialize_dcgan)

        def forward(self, z, truncation_psi=1.0):
            return self.layers(z[:, :, None, None])

    class DCDiscriminator(nn.Module):
        def __init__(self, config):
            super().__init__()
            layers = [nn.Conv2d(3, n, 4, 2, 1, **no_bias), nn.LeakyReLU(0.2)]
            for c in (n, 2 * n):
                layers += [nn.Conv2d(c, 2 * c, 4, 2, 1, **no_bias), nn.BatchNorm2d(2 * c)]
                layers += [nn.LeakyReLU(0.2)]
            self.layers = nn.Sequential(*layers, nn.Conv2d(4 * n, 1, 4, **no_bias), nn.Flatten(0))
            self.apply(initialize_dcgan)

        def forward(self, x):
            return self.layers(x)

    def discriminator_loss(D, real, fake, augment, bcr):  # each with batch statistics of its own
        logits_real, logits_fake = D(real).float(), D(fake.detach()).float()
        loss = F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()
        stats = {"d_loss": loss, "logit_real": logits_real.mean(), "logit_fake": logits_fake.mean()}
        return loss, {name: value.detach() for name, value in stats.items()}

    def generator_loss(D, real, fake, augment):
        loss = F.softplus(-D.train()(fake).float()).mean()
        return loss, {"g_loss": loss.detach()}

    class TrainState(vitgan.TrainState):
        def __init__(self, config, device):
            super().__init__(config, device)
            for optimizer in (self.opt_G, self.opt_D):
                optimizer.param_groups[0]["betas"] = (0.5, 0.999)

    vitgan.Generator, vitgan.Discriminator = DCGenerator, DCDiscriminator
    vitgan.TrainState = TrainState
    vitgan.discriminator_loss, vitgan.generator_loss = discriminator_loss, generator_loss


AS_IT_WAS = dict(qk_norm=False, qk_scaled_d=False, mapping_layers=8)
DCGAN = dict(batch_size=64, lr_g=0.0002, lr_d=0.0002, flip=False, latent_dim=100, ema_half_life=1)

PARTS = {  # name: (what it does, settings, a function that patches the notebook's definitions)
    "full": ("the full model", {}, nothing),
    "as-it-was": (
        "none of the mends",
        AS_IT_WAS | dict(overlap_g=0, patch_size_g=8),
        nothing,
    ),
    "no-qk-norm": ("G without QK norm", {"qk_norm": False}, nothing),
    "no-scale": ("D's queries at the usual size", {"qk_scaled_d": False}, nothing),
    "mean": ("D's head on the mean of its tokens", {"pool_d": "mean"}, nothing),
    "mapping-0": ("no mapping network", {"mapping_layers": 0}, nothing),
    "mapping-8": ("eight mapping layers", {"mapping_layers": 8}, nothing),
    "no-overlap-g": ("no overlap of G's patches", {"overlap_g": 0}, nothing),
    "patches-8": ("G paints patches of 8", {"patch_size_g": 8}, nothing),
    "no-overlap-d": ("no overlap of D's patches", {"overlap_d": 0}, nothing),
    "free-positions": ("a table of positions", {}, free_positions),
    "linear": ("coordinates without a sine", {}, linear_coordinates),
    "one-sln": ("one SLN per block", {}, one_sln),
    "additive": ("styles added, not multiplied", {}, additive_decoder),
    "dot": ("dot-product attention in D", {}, dot_product),
    "plain-sn": ("plain spectral normalization", {}, plain_spectral_norm),
    "no-bcr": ("no bCR", {"bcr": 0.0}, nothing),
    "no-augment": ("no augmentation, but in bCR", {}, plain_images_judged),
    "no-equalized": ("no equalized learning rate", {}, no_equalized_rate),
    "no-equalized-slow": (
        "the same at a rate of 0.001",
        {"lr_g": 0.001, "lr_d": 0.001},
        no_equalized_rate,
    ),
    "conv": ("a convolutional discriminator", {}, convolutional),
    "dcgan": ("DCGAN, as many minutes", DCGAN, dcgan),
}
