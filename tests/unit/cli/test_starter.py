"""What `dtrain init` writes can be run at once, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from live import PROGRAMS, RECIPES, dtrain

from dtrain.cli import starter
from dtrain.common.errors import UsageError
from dtrain.launch import planner, recipe


@pytest.mark.extras
@pytest.mark.parametrize("name", sorted({*starter.TEMPLATES, *(path.stem for path in RECIPES.glob("*.yaml"))}))
def test_every_template_is_a_recipe_without_a_mistake(name: str, tmp_path: Path) -> None:
    starter.copy_template(name, tmp_path / "new")
    (written,) = (tmp_path / "new").glob("*.yaml")
    assert planner.make(recipe.load(written)).workers >= 1


@pytest.mark.extras
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "digits_torch.py").write_text("mine = True\n")
    with pytest.raises(UsageError, match=r"already .*digits_torch\.py"):
        starter.copy_template("torch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digits_torch.py"]
    assert (tmp_path / "digits_torch.py").read_text() == "mine = True\n"


def test_an_editor_finds_the_schema_of_a_recipe_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('trained')\n")
    starter.write_for_script(tmp_path / "train.py", tmp_path)
    marked = (tmp_path / "train.yaml").read_text().splitlines()[0]
    assert marked == "# yaml-language-server: $schema=recipe.schema.json"
    schema = json.loads((tmp_path / "recipe.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((tmp_path / "train.yaml").read_text()), schema)
    (tmp_path / "recipe.schema.json").write_text("mine")
    (tmp_path / "other.py").write_text("")
    starter.write_for_script(tmp_path / "other.py", tmp_path)
    assert (tmp_path / "recipe.schema.json").read_text() == "mine", "nothing is overwritten"


def test_an_unknown_template_is_a_mistake_that_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tensorflow'"):
        starter.copy_template("tensorfow", tmp_path)


@pytest.mark.live
def test_a_script_gets_a_recipe_that_says_what_was_found_in_it(tmp_path: Path) -> None:
    (tmp_path / "my train.py").write_text(
        "import argparse, os, torch\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('-e', '--epochs')\n"
        "print('this is rank', os.environ['RANK'])\n"
    )
    out = dtrain("init", "--from", "my train.py", cwd=tmp_path).stdout
    assert "torchrun" in out
    assert "--epochs" in out
    assert "this is rank 0" in dtrain("run", "my train.yaml", cwd=tmp_path).stdout


@pytest.mark.extras
def test_what_a_recipe_says_of_its_command_is_what_a_person_types_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in starter.TEMPLATES:
        starter.copy_template(name, Path(name))
        text = Path(name, "recipe.yaml").read_text()
        assert text.splitlines()[1] == f"# Train it: dtrain run {name}/recipe.yaml"
        assert "run recipes/" not in text
        heads = [path.read_text().splitlines()[0] for path in Path(name).glob("*.py")]
        assert heads.count(f"# Train it: dtrain run {name}/recipe.yaml") == 1
    Path("my train.py").write_text("")
    assert "dtrain run 'my train.yaml'" in starter.write_for_script(Path("my train.py"), Path())
    assert Path("my train.yaml").read_text().splitlines()[1] == "# my train.py as it is: dtrain run 'my train.yaml'"


def test_templates_are_described_in_whole_sentences() -> None:
    for name, text in starter.templates().items():
        assert text[0].isupper() or text[0].isdigit(), name
        assert text.endswith("."), name
        assert "dtrain run" not in text


def test_required_arguments_of_a_script_are_marked(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "parser.add_argument('data')\nparser.add_argument('out', nargs='?')\nparser.add_argument('--lr', type=float)\n"
        "parser.add_argument('-s', '--seed', required=True)\n@click.argument('x', default=1)\n@click.option('--y', required=False)\ndef f(): ...\n"
    )
    told = starter.write_for_script(tmp_path / "train.py", tmp_path)
    assert "arguments data (required) out --lr --seed (required) x --y; give" in told
    assert "it cannot run without data and --seed: write args: [data, …] into" in told
    assert "data (required) out" in (tmp_path / "train.yaml").read_text()


@pytest.mark.parametrize(("name", "text"), [("gone.py", None), ("bad.py", "def ("), ("run.sh", "true")])
def test_what_is_no_python_program_gets_no_recipe(name: str, text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        starter.write_for_script(tmp_path / name, tmp_path)
    assert not list(tmp_path.glob("*.yaml"))


def test_a_program_that_keras_3_cannot_train_gets_keras_2(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "keras_fit.py", tmp_path / "train.py")
    assert "pip install tf-keras" in starter.write_for_script(tmp_path / "train.py", tmp_path)
    assert recipe.load(tmp_path / "train.yaml").env == {"TF_USE_LEGACY_KERAS": "1"}
