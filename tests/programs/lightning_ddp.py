"""PyTorch Lightning on two processes that its launcher has started: `lightning_ddp.py FOLDER`."""

import json
import sys

import pytorch_lightning as lightning
import torch


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layer(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main():
    lightning.seed_everything(0)
    inputs = torch.randn(64, 8)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    trainer = lightning.Trainer(
        strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, logger=False, default_root_dir=sys.argv[1],
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, num_workers=0))
    if trainer.is_global_zero:
        weights = float(module.layer.weight.double().abs().sum())
        print("RESULT", json.dumps({"steps": trainer.global_step, "weights": weights}), flush=True)
    # As PyTorch asks for: threads of a group that is left to the interpreter's end abort the process now and then.
    torch.distributed.destroy_process_group()


main()
