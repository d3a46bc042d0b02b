"""A PyTorch Lightning program as its documentation has it: `lightning_script.py FOLDER EPOCHS`."""

import sys
from pathlib import Path

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(lightning.LightningModule):
    """Handwritten digits, ten classes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.layers(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.layers(images).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def main(folder, epochs):
    """Lightning finds the ranks in the environment; it saves each epoch and goes on from the last one."""
    lightning.seed_everything(0)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = images.float() / 16
    held_out = torch.arange(len(labels)) % 5 == 0
    training = DataLoader(TensorDataset(images[~held_out], labels[~held_out]), batch_size=32, shuffle=True)
    validation = DataLoader(TensorDataset(images[held_out], labels[held_out]), batch_size=90)
    trainer = lightning.Trainer(
        strategy="ddp", devices="auto" if torch.cuda.is_available() else 2, max_epochs=epochs, logger=False,
        default_root_dir=folder, enable_progress_bar=False,
        callbacks=[lightning.callbacks.ModelCheckpoint(dirpath=folder, save_last=True)],
    )  # fmt: skip
    last = Path(folder) / "last.ckpt"
    trainer.fit(Digits(), training, validation, ckpt_path=str(last) if last.exists() else None)
    if trainer.is_global_zero:
        print(f"trained {trainer.global_step} steps, accuracy {float(trainer.callback_metrics['accuracy']):.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
