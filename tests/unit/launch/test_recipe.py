"""A recipe becomes a job, or every mistake in it is said with its place and the nearest valid name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import PROGRAMS, RECIPES
from schema_strategies import from_schema

from dtrain.common.errors import UsageError
from dtrain.job.job import Job
from dtrain.launch import recipe, yaml_source
from dtrain.launch.explain import MEANT, explain

SCHEMA = recipe.schema()
GOOD = """\
name: tiny
task: tiny.py:Tiny
strategy: ddp
resources:
  workers: 2
train:
  steps: 60
  global_batch: 32
"""


def load(text: str, *sets: str) -> Job:
    document = yaml_source.parse(text, "r.yaml")
    return recipe.from_document(document, PROGRAMS, [recipe.override(item) for item in sets])


def mistakes(text: str, *sets: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(text, *sets)
    return caught.value.message.splitlines()


def test_a_good_recipe_is_a_job() -> None:
    job = load(GOOD)
    assert (job.kind, job.strategy.name, job.resources.workers, job.train.steps) == ("task", "ddp", 2, 60)
    assert job.cluster.name == "local"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("strategy: ddp", "strategy: dpp", "r.yaml:3:1: strategy: unknown strategy 'dpp'. Did you mean 'ddp'?"),
        ("strategy: ddp", "strategy: {name: dpp}", "r.yaml:3:12: strategy: unknown strategy 'dpp'. Did you mean 'ddp'?"),
        ("strategy: ddp", "cluster: lokal\nstrategy: ddp", "r.yaml:3:1: cluster: unknown cluster 'lokal'. Did you mean 'local'?"),
        ("strategy: ddp", "strategy: {name: ddp, bucket_bm: 3}", "r.yaml:3:23: strategy.bucket_bm: unknown key 'bucket_bm'. Did you mean 'bucket_mb'?"),
        ("steps: 60", "stpes: 60\n  steps: 1", "r.yaml:7:3: train.stpes: unknown key 'stpes'. Did you mean 'steps'?"),
        ("strategy: ddp", "strategy: ddp\ntrack: [tensorbord]", "r.yaml:4:9: track.0: unknown tracker 'tensorbord'. Did you mean 'tensorboard'?"),
        ("strategy: ddp", "strategy: ddp\ntrack:\n  - csv\n  - {name: wandb, projekt: a}", "r.yaml:6:19: track.1.projekt: unknown key 'projekt'. Did you mean 'project'?"),
        ("strategy: ddp", "strategy: ddp\ntrack: [{name: wandb, project: 3}]", "r.yaml:4:23: track.0.project: input should be text (in quotes if it looks like a number), not 3"),
        ("strategy: ddp", "strategy: ddp\ntrack: [prometheus]", "r.yaml:4:9: track.0: the key 'folder' is missing"),
        ("strategy: ddp", "cluster: {name: slurm, container: {image: a, runtme: podman}}", "r.yaml:3:46: cluster.container.runtme: unknown key 'runtme'. Did you mean 'runtime'?"),
        ("strategy: ddp", "strategy: ddp\ntrack: [csv, csv]", "r.yaml:4:14: track: the tracker 'csv' stands here twice"),
        ("strategy: ddp", "strategy: ddp\ntrack: csv", "r.yaml:4:1: track: expected a list of trackers: track: [csv]"),
        ("strategy: ddp", "strategy: ddp\ntrack: [{project: a}]", "r.yaml:4:9: track.0: is missing: one of csv, mlflow, prometheus, tensorboard, wandb"),
        ("train:", "trian: {}\ntrain:", "r.yaml:6:1: trian: unknown key 'trian'. Did you mean 'train'?"),
        ("steps: 60", "steps: many", "r.yaml:7:3: train.steps: input should be a valid integer, not 'many'"),
        ("steps: 60", "steps: 0", "r.yaml:7:3: train.steps: input should be greater than 0, not 0"),
        ("steps: 60", "steps: '60'", "r.yaml:7:3: train.steps: input should be a valid integer, not '60'"),
        ("workers: 2", "workers: true", "r.yaml:5:3: resources.workers: input should be a valid integer, not true"),
        ("global_batch: 32", "global_batch: 1", "r.yaml:8:3: train.global_batch: a global batch of 1 cannot be divided by 2 workers: take 2"),
        ("workers: 2", "workers: 3\n  nodes: 2", "r.yaml:5:3: resources.workers: 3 workers cannot be spread evenly over 2 nodes: take 4 workers"),
        ("steps: 60", "steps: 60\n  epochs: 2", "r.yaml:6:1: train: give train.steps or train.epochs, one of the two"),
        ("tiny.py:Tiny", "tiny.py:Tyni", "r.yaml:2:1: task: tiny.py has no class 'Tyni'. Did you mean 'Tiny'?"),
        ("tiny.py:Tiny", "tiny.py", "r.yaml:2:1: task: 'tiny.py' is not of the form file.py:class_name or package.module:class_name"),
        ("task: tiny.py:Tiny", "script: counting.py\ntask: tiny.py:Tiny", "r.yaml:2:1: script: a recipe runs one of task, function and script: it names task and script"),
        ("strategy: ddp", "strategy: script", "r.yaml:3:1: strategy: the strategy 'script' runs scripts only: choose one that trains a task"),
        ("name: tiny", "name: a/b", "r.yaml:1:1: name: 'a/b' cannot name a run: 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"),
        ("name: tiny", "name: tiny\nname: other", "r.yaml:2:1: the key 'name' stands here twice"),
        ("name: tiny", "name: [", "r.yaml:3:9: not valid YAML: expected ',' or ']', but got ':'"),
        ("  workers: 2", "  workers: 2\n  device: gpu", "r.yaml:4:1: resources: 2 GPUs are asked for and this machine has 0: --workers 2 to train on CPUs, or another --cluster"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_with_its_place(old: str, new: str, expected: str) -> None:
    assert expected in mistakes(GOOD.replace(old, new))


@pytest.mark.extras
def test_trackers_are_named_alone_or_with_their_options() -> None:
    job = load(GOOD + "track:\n  - csv\n  - {name: wandb, project: p}\n")
    assert job.track is not None
    assert [(choice.name, choice.options.get("project")) for choice in job.track] == [("csv", None), ("wandb", "p")]
    assert load(GOOD).track is None
    assert load(GOOD + "track: []\n").track == ()
    assert load(GOOD, "track=[csv]").track is not None


def test_a_missing_file_names_the_nearest() -> None:
    (message,) = mistakes(GOOD.replace("tiny.py:Tiny", "tini.py:Tiny"))
    assert message.startswith("r.yaml:2:1: task: there is no file ")
    assert message.endswith("Did you mean 'tiny.py'?")


def test_all_mistakes_are_said_at_once() -> None:
    found = mistakes("name: x y\nstrategy: dpp\ntask: 3\ntrain: {steps: a, stepss: 4}\nresources: [1]\n")
    assert [line.split(" ")[0] for line in found] == [
        "r.yaml:1:1:", "r.yaml:2:1:", "r.yaml:3:1:", "r.yaml:4:9:", "r.yaml:4:19:", "r.yaml:5:1:",
    ]  # fmt: skip


def test_a_plugin_that_is_named_again_keeps_its_options() -> None:
    text = GOOD.replace("strategy: ddp", "strategy: {name: ddp, bucket_mb: 3.5}")
    assert load(text, "strategy=ddp").strategy.options["bucket_mb"] == 3.5
    assert "bucket_mb" not in load(text, "strategy=fsdp").strategy.options


def test_one_e_minus_three_is_a_number() -> None:
    function = GOOD.replace("task: tiny.py:Tiny", "function: tiny.py:train")
    assert load(function + "params: {rate: 1e-3, text: '1e-3', other: 2.5E+4}\n").params == {
        "rate": 0.001,
        "text": "1e-3",
        "other": 25000.0,
    }


def test_overrides_are_named_in_their_own_mistakes() -> None:
    assert load(GOOD, "train.steps=7", "strategy.bucket_mb=3.5").strategy.options["bucket_mb"] == 3.5
    assert mistakes(GOOD, "train.setps=7") == [
        "--set train.setps=7: train.setps: unknown key 'setps'. Did you mean 'steps'?"
    ]
    with pytest.raises(UsageError, match="form section"):
        recipe.override("train.steps")


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    target = tmp_path / "made"
    found = mistakes(GOOD + f"params: {{x: !!python/object/apply:os.mkdir ['{target}']}}\n")
    assert found[0].startswith("r.yaml:9:13: cannot read this value")
    assert not target.exists()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["ddp", "local", "tiny.py:Tiny"])
)
KEYS = st.sampled_from(
    ["name", "task", "script", "strategy", "cluster", "resources", "train", "workers", "steps", "params", "env", "args"]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def assert_job_or_located_mistakes(text: str) -> None:
    try:
        job = load(text)
    except UsageError as error:
        assert error.exit_code == 2
        for line in error.message.splitlines():
            assert line.startswith("r.yaml"), line
    else:
        assert isinstance(job, Job)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_mapping_gives_a_job_or_located_mistakes(data: dict[str, Any]) -> None:
    assert_job_or_located_mistakes(yaml.safe_dump(data))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\"%@`# \n\tab01~?", max_size=40))
def test_any_text_gives_a_job_or_located_mistakes(text: str) -> None:
    assert_job_or_located_mistakes(text)


@pytest.mark.parametrize(
    "text",
    ["a: &x [*x]", "a: &a [1,1]\nb: &b [*a,*a]\n" + "".join(f"{chr(99 + n)}: &{chr(99 + n)} [*{chr(98 + n)},*{chr(98 + n)}]\n" for n in range(20)),
     "[" * 5000, "a: 2024-99-99", "a: .inf\nname: .nan", "? [1]\n: 2", "\x00", "- 1", "5", ""],
)  # fmt: skip
def test_nasty_yaml_gives_located_mistakes(text: str) -> None:
    assert_job_or_located_mistakes(text)


def test_the_schema_accepts_our_recipes_and_refuses_what_the_loader_refuses() -> None:
    schema = recipe.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted(RECIPES.glob("*.yaml")) + sorted(PROGRAMS.glob("*.yaml")):
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text()))), path
    wrongs: list[dict[str, Any]] = [
        {"trian": {}},
        {"train": {"stpes": 1}},
        {"strategy": "dpp"},
        {"strategy": {"name": "ddp", "bucket": 1}},
    ]
    for wrong in wrongs:
        assert list(validator.iter_errors(wrong)), wrong
    json.dumps(schema)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: /etc/passwd:X", "task: '/etc/passwd' is neither a Python file (file.py) nor a module"),
        ("task: .:X", "task: '.' is neither a Python file"),
        ("task: tiny.py:Tiny:y", "is not of the form file.py:class_name"),
        ("train: {epochs: .inf}", "train.epochs: input should be a finite number"),
        ("train: {steps: 9, seed: 18446744073709551616}", "train.seed: input should be less than or equal to 9223372036854775807"),
        (f"train: {{steps: {'9' * 401}}}", "a number of 401 characters"),
        ("train: {steps: 1:30}", "YAML reads 1:30 as a number to the base 60"),
        (f"train: {{steps: 9, global_batch: {10**31}}}", "train.global_batch: input should be"),
        ("resources: {cpus_per_worker: 100000}", "resources.cpus_per_worker: input should be less than or equal to 4096"),
        ("train: &t {steps: 9}\ncheckpoint: {<<: *t}", "merge keys (<<) are not read"),
        ("env: {'A=B': x}", "env.A=B: 'A=B' cannot name an environment variable"),
        ("env: {'': x}", "cannot name an environment variable"),
        ("env: {RANK: '1'}", "env.RANK: RANK is set by the launcher"),
        ('env: {A: "a\\0b"}', "env.A: an environment variable cannot hold a NUL"),
        ("preload: [no_such_module.part]", "preload: there is no module no_such_module"),
        ("storage: {options: {anon: true}}", "storage.options: options of what?"),
        ("script: tiny.py\ntask: null\nstrategy: script\ntrain: {steps: 3}", "train: a script has its own loop"),
        ("script: tiny.py\ntask: null\nstrategy: ddp\ntrain: {}", "strategy: a script trains by itself: 'ddp'"),
        ('script: tiny.py\ntask: null\nstrategy: script\ntrain: {}\nargs: ["a\\0b"]', "an argument cannot hold a NUL"),
    ],
)  # fmt: skip
def test_recipes_from_hell_are_refused_before_the_start(text: str, expected: str) -> None:
    base = {"task": "tiny.py:Tiny", "strategy": "ddp", "train": "{steps: 9}"}
    lines = [f"{key}: {value}" for key, value in base.items() if not re.search(rf"^{key}:", text, re.MULTILINE)]
    assert any(expected in line for line in mistakes("\n".join([*lines, text]) + "\n")), mistakes(
        "\n".join([*lines, text])
    )


@pytest.mark.parametrize("steps", ["60.0", "6e1", "60"])
def test_whole_numbers_may_be_written_as_people_write_them(steps: str) -> None:
    assert load(GOOD.replace("60", steps)).train.steps == 60


def test_a_line_break_that_no_editor_shows_does_not_end_a_comment() -> None:
    assert load(GOOD.replace("name: tiny", "name: tiny  # one\u2028two: three")).name == "tiny"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_may_be_in_the_encodings_of_editors(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text((PROGRAMS / "tiny.py").read_text())
    (tmp_path / "r.yaml").write_text(GOOD, encoding=encoding)
    assert recipe.load(tmp_path / "r.yaml").name == "tiny"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_recipe_of_the_schema_is_a_job_or_has_located_mistakes(data: st.DataObject) -> None:
    made = data.draw(from_schema(SCHEMA, SCHEMA).filter(lambda value: isinstance(value, dict)))
    text = yaml.safe_dump(made, allow_unicode=True)
    try:
        load(text)
    except UsageError as error:
        assert all(re.match(r"r\.yaml:\d+:\d+: ", line) for line in error.message.splitlines()), error.message


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("steps", "train.steps"),
        ("epochs", "train.epochs"),
        ("seed", "train.seed"),
        ("precision", "strategy.precision"),
        ("env", "env"),
    ],
)
def test_the_end_of_a_key_explains_it(word: str, key: str) -> None:
    assert explain(word).splitlines()[0] == key
    assert explain(word) == explain(key)


@pytest.mark.parametrize(
    ("word", "keys"),
    [("gpus", ("resources.gpus", "resources.workers", "resources.device")), ("metric", ("train.stop_when.metric", "checkpoint.keep_best.metric", "tune.metric"))],
)  # fmt: skip
def test_a_word_that_may_mean_several_keys_lists_them(word: str, keys: tuple[str, ...]) -> None:
    lines = explain(word).splitlines()
    assert lines[0] == f"{word} may mean:"
    assert [line.split()[0] for line in lines[1:]] == list(keys)


def test_words_of_other_programs_mean_keys_that_exist() -> None:
    for word, keys in MEANT.items():
        assert all(explain(key) for key in keys)
        assert any(key in explain(word) for key in keys)


def test_what_must_be_given_is_told_from_what_is_empty() -> None:
    assert "default  {}" in explain("env")
    assert "default  none: it must be given" in explain("checkpoint.keep_best.metric")


def test_an_unknown_section_of_an_option_is_located_there() -> None:
    found = mistakes("task: tiny.py:Tiny", "trian.steps=3")
    assert found == ["--set trian.steps=3: trian: unknown key 'trian'. Did you mean 'train'?"]


def test_every_key_is_explained_with_an_example_that_is_a_recipe() -> None:
    for key, section in SCHEMA["properties"].items():
        assert key in explain(key)
        reference = section.get("$ref", "").rpartition("/")[2]
        for inner in SCHEMA["$defs"].get(reference, {}).get("properties", {}):
            text = explain(f"{key}.{inner}")
            example = text.splitlines()[-1].partition("example")[2].strip()
            assert inner in yaml.safe_load(example)[key], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: 3", "train: input should be a mapping (key: value), not 3"),
        ("train: {steps: 3, shuffle: 5}", "train.shuffle: input should be true or false, not 5"),
        ("train: {steps: true}", "train.steps: input should be a valid integer, not true"),
        ("args: 3", "args: input should be a list ([a, b]), not 3"),
        ("env: {A: 3}", "env.A: input should be text (in quotes if it looks like a number), not 3"),
        ("steps: 5", "steps: unknown key 'steps'. Did you mean 'train.steps'?"),
        ("strategy: {name: ddp, bucket_mb: 0}", "strategy.bucket_mb: input should be greater than 0"),
        ("strategy: {name: ddp, bucket_mb: .nan}", "strategy.bucket_mb: input should be a finite number"),
        ("resources: {device: tpu}", "PyTorch strategies train on CPUs and GPUs"),
    ],
)
def test_mistakes_are_told_in_the_terms_of_yaml(text: str, expected: str) -> None:
    base = {"task": "tiny.py:Tiny", "strategy": "ddp", "train": "{steps: 9}"}
    lines = [f"{key}: {value}" for key, value in base.items() if not text.startswith(f"{key}:")]
    found = mistakes("\n".join([*lines, text]) + "\n")
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("by_option", ["", "args=[3.10, 010, 12e5, 0x1F, -1, 1_000, '7', x]"])
def test_numbers_in_args_reach_the_program_as_they_are_written(by_option: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").touch()
    written = "[]" if by_option else "[3.10, 010, 12e5, 0x1F, -1, 1_000, '7', x]"
    (tmp_path / "r.yaml").write_text(f"script: program.py\nargs: {written}\n")
    job = recipe.load(tmp_path / "r.yaml", [recipe.override(by_option)] if by_option else [])
    assert job.args == ("3.10", "010", "12e5", "0x1F", "-1", "1_000", "7", "x")
