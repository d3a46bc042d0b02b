"""A folder of PNG files, decoded and augmented by data workers. The files are drawn at first use: nothing is downloaded."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance
from torch import nn
from torch.nn import functional as F

SHAPES = ("circle", "square", "triangle")


def draw(shape, generator):
    """One picture of a shape in some colour at some place."""
    picture = Image.new("RGB", (48, 48), tuple(generator.integers(0, 90, 3).tolist()))
    x, y, size = generator.integers(4, 20).item(), generator.integers(4, 20).item(), generator.integers(14, 26).item()
    colour = tuple(generator.integers(120, 255, 3).tolist())
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x, y, x + size, y + size), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + size, y + size), fill=colour)
    else:
        pen.polygon([(x + size // 2, y), (x, y + size), (x + size, y + size)], fill=colour)
    return picture


def drawn(folder, count):
    """Draw what is missing; several workers may do so at once, since every file is put in place whole."""
    for number in range(count):
        path = folder / SHAPES[number % 3] / f"{number:05d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{random.SystemRandom().getrandbits(64):x}")
            draw(SHAPES[number % 3], np.random.default_rng(number)).save(aside, "PNG")
            aside.replace(path)
    return [folder / SHAPES[number % 3] / f"{number:05d}.png" for number in range(count)]


class Folder:
    """Pictures by number; dtrain seeds the generators before each sample, so augmentation repeats after a failure."""

    def __init__(self, paths, augment):
        self.paths, self.augment = paths, augment

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        picture = Image.open(self.paths[index]).convert("RGB")
        if self.augment:
            picture = picture.rotate(random.uniform(-15, 15))
            picture = ImageEnhance.Brightness(picture).enhance(random.uniform(0.7, 1.3))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return pixels, SHAPES.index(self.paths[index].parent.name)


class Pictures:
    """Which shape a picture shows; `folder` is where the pictures are kept."""

    def __init__(self, folder="pictures", count=3000):
        self.paths = drawn(Path(folder), count)

    def model(self):
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 3),
        )  # fmt: skip

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=2e-3)

    def data(self, split):
        held_out = self.paths[::10]
        if split == "eval":
            return Folder(held_out, augment=False)
        return Folder(sorted(set(self.paths) - set(held_out)), augment=True)

    def loss(self, model, batch):
        pixels, labels = batch
        return F.cross_entropy(model(pixels), labels)

    def metrics(self, model, batch):
        pixels, labels = batch
        return {"accuracy": (model(pixels).argmax(1) == labels).float().mean()}
