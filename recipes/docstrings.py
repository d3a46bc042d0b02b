"""A Hugging Face language model from a configuration, trained on the docstrings of Python's standard library.

The same model as a task of dtrain's (`Docstrings`) and as a program with a Trainer: `docstrings.py FOLDER STEPS`."""

import ast
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

LENGTH = 64


def pieces(modules=60):
    """The docstrings of some modules as rows of 64 bytes, int64."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:modules]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text += f"{ast.get_docstring(node) or ''}\n".encode()
    tokens = torch.frombuffer(text, dtype=torch.uint8).long()
    return tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)


def small_gpt2():
    """Nothing is downloaded: a configuration gives a model with new weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,
            n_positions=LENGTH,
            n_embd=64,
            n_layer=2,
            n_head=4,
            loss_type="ForCausalLM",
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class Docstrings:
    """The task; one row in twenty is held out."""

    def model(self):
        return small_gpt2()

    def tokenizer(self):
        """A token a byte: `dtrain weights RUN --to FOLDER/` writes it beside the model."""
        bytes_of = {char: byte for byte, char in bytes_to_unicode().items()}
        tokens = Tokenizer(BPE(bytes_of, []))
        tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokens)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=2e-3)

    def schedule(self, step, total_steps):
        return 1 - step / total_steps

    def data(self, split):
        rows = pieces()
        held_out = torch.arange(len(rows)) % 20 == 0
        chosen = rows[held_out if split == "eval" else ~held_out]
        return {"input_ids": chosen, "labels": chosen}

    def loss(self, model, batch):
        return model(**batch)

    def metrics(self, model, batch):
        return {"loss": model(**batch).loss}


def main(folder, steps):
    """The same with a Trainer, which saves and resumes by itself."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    rows = [{"input_ids": row, "labels": row} for row in pieces()]
    arguments = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3, save_steps=50,
        logging_steps=20, report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    Path(folder).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model=small_gpt2(), args=arguments, train_dataset=rows)
    done = trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    if trainer.is_world_process_zero():
        print(f"trained {done.global_step} steps, mean loss {done.training_loss:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
