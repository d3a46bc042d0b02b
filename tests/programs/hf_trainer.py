"""A Hugging Face Trainer as its documentation has it, with its own resume: `hf_trainer.py FOLDER PAUSE`."""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

STEPS = 12


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = torch.arange(index, index + 8) % 50
        return {"input_ids": tokens, "labels": tokens}


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(float(sys.argv[2]))


def main():
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=4, per_device_train_batch_size=4, use_cpu=True, seed=1,
        logging_strategy="no", report_to=[], disable_tqdm=True, save_total_limit=2,
    )  # fmt: skip
    trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Texts(), callbacks=[Slow()])
    folder.mkdir(exist_ok=True)
    done = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    if trainer.is_world_process_zero():
        weights = sum(float(value.double().abs().sum()) for value in trainer.model.state_dict().values())
        print("RESULT", json.dumps({"steps": done.global_step, "weights": weights}), flush=True)
    if torch.distributed.is_initialized():
        # As PyTorch asks for: threads of a group that is left to the interpreter's end abort the process now and then.
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
