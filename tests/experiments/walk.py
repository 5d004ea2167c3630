"""README's animated walk: `python tests/experiments/walk.py` writes assets/walk.gif."""

import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402

vitgan = helpers.load_definitions()
G, config, _ = vitgan.load_generator(ROOT / "assets" / "vitgan-32.safetensors")
torch.manual_seed(7)
stops, rows, columns, between = 4, 3, 10, 8
with torch.no_grad():
    w = G.mapping(torch.randn(stops * rows * columns, config.latent_dim)).unflatten(0, (stops, -1))
    eased = (1 - torch.linspace(0, torch.pi, between + 1)[:-1].cos()) / 2
    frames = [torch.lerp(a, b, t) for a, b in zip(w, w.roll(-1, 0), strict=True)
              for t in eased.tolist()]
    drawn = [helpers.to_uint8(G.synthesize(frame)) for frame in frames]
pictures = [helpers.image_grid(images, columns, scale=2) for images in drawn]
width, height = pictures[0].size
together = Image.new("RGB", (width, height * stops))  # one palette for all frames
for i, picture in enumerate(pictures[::between]):
    together.paste(picture, (0, i * height))
palette = together.quantize(128)
first, *rest = [picture.quantize(palette=palette, dither=0) for picture in pictures]
first.save(ROOT / "assets" / "walk.gif", save_all=True, append_images=rest, duration=90, loop=0,
           optimize=True)
