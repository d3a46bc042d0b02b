"""Files of defaults fill in what a recipe leaves out, and each of their mistakes has its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dtrain.common.errors import UsageError
from dtrain.job.job import Job
from dtrain.launch import profiles, recipe


class Home:
    """A person's files: a recipe, the project's defaults and their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = folder / "config" / "dtrain" / "config.yaml"
        self.project = folder / "project" / profiles.PROJECT
        self.recipe = folder / "project" / "conf" / "recipe.yaml"
        self.user.parent.mkdir(parents=True)
        self.recipe.parent.mkdir(parents=True)
        (self.recipe.parent / "train.py").touch()

    def job(self, body: str = "", *given: str, user: str = "", project: str = "") -> Job:
        """Return the job of a recipe beside these files."""
        self.user.write_text(user)
        self.project.write_text(project)
        self.recipe.write_text(f"script: train.py\n{body}")
        return recipe.load(self.recipe, [recipe.override(text) for text in given], here=False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Home(tmp_path)


def test_what_the_recipe_says_wins_then_the_project_then_the_person(home: Home) -> None:
    user = "defaults: {env: {A: user, B: user, C: user}, note: mine}"
    job = home.job("env: {A: recipe}\n", "env.D=typed", user=user, project="defaults: {env: {A: p, B: project, D: p}}")
    assert job.env == {"A": "recipe", "B": "project", "C": "user", "D": "typed"}
    assert job.note == "mine"
    assert job.filled == (f"{home.project}:1:24: env.B", f"{home.user}:1:36: env.C", f"{home.user}:1:46: note")


def test_a_profile_comes_before_defaults_and_only_when_it_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    user = "defaults: {note: plain}\nprofiles:\n  big: {note: big, resources: {workers: 8}}\n"
    assert home.job(user=user).note == "plain"
    monkeypatch.setenv("DTRAIN_PROFILE", "big")
    job = home.job(user=user)
    assert (job.note, job.resources.workers) == ("big", 8)
    with pytest.raises(UsageError, match=r"there is no profile 'big' in .*config.yaml. Did you mean 'bigger'"):
        home.job(user="profiles: {bigger: {note: x}}")
    with pytest.raises(UsageError, match=r"there is no profile 'big': .* have none"):
        home.job()


def test_options_of_a_cluster_are_for_that_cluster(home: Home) -> None:
    project = "defaults: {cluster: {name: slurm, account: abc, partition: gpu}}"
    assert home.job(project=project).cluster.options["account"] == "abc"
    chosen = home.job("cluster: {name: slurm, partition: cpu}\n", project=project).cluster.options
    assert (chosen["account"], chosen["partition"]) == ("abc", "cpu")
    assert home.job("cluster: slurm\n", project=project).cluster.options["account"] == "abc"
    assert home.job("cluster: ray\n", "cluster=slurm", project=project).cluster.options["account"] == "abc"
    assert home.job("cluster: local\n", project=project).cluster.name == "local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: {}", ":1:1: unknown key 'profile'. Did you mean 'profiles'?"),
        ("defaults:\n  train: {stepz: 3}", ":2:11: train.stepz: unknown key 'stepz'. Did you mean 'steps'?"),
        ("defaults: 3", ":1:1: expected a mapping of a recipe's keys to values"),
        ("profiles: {a: [1]}", ":1:12: expected a mapping of a recipe's keys to values"),
        ("defaults: {folder: /x}", ":1:12: folder: unknown key 'folder'"),
        ("defaults: {filled: [x]}", ":1:12: filled: unknown key 'filled'"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_them_are_located(home: Home, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        home.job(project=text)
    assert message in str(caught.value)
    assert str(home.project) in str(caught.value)


def test_a_file_in_a_folder_of_another_owner_is_not_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.project.write_text(yaml.safe_dump({"defaults": {"note": "theirs"}}))
    assert profiles.project_file(home.recipe.parent) == home.project
    real = Path.stat

    def other_owner(path: Path, **options: bool) -> object:
        found = real(path, **options)
        return type("Stat", (), {"st_uid": 4321, "st_mode": found.st_mode}) if path == home.project.parent else found

    monkeypatch.setattr(Path, "stat", other_owner)
    assert profiles.project_file(home.recipe.parent) is None
