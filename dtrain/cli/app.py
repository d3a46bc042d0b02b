"""The command line: each command reads what was typed, calls one thing, and says what came of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dtrain.common.errors import DtrainError, Exit, UsageError

app = typer.Typer(
    name="dtrain",
    help="One YAML recipe that trains on this machine, on Ray and on SLURM, and survives what goes wrong there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see recipes/.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="An id, an unambiguous prefix, a path, a URL, or 'last'.")]
Runs = Annotated[Path, typer.Option(envvar="DTRAIN_RUNS", metavar="FOLDER", help="Where the run folders are.")]
Json = Annotated[bool, typer.Option("--json", help="For a program to read.")]
Gpus = Annotated[int | None, typer.Option(metavar="N", help="So many workers, each on a GPU.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Replicas that train, one a device.")]
Nodes = Annotated[int | None, typer.Option(metavar="N", help="Machines to spread them over.")]
Strategy = Annotated[
    str | None, typer.Option(metavar="NAME", help="How the workers train together; see 'dtrain plugins'.")
]
Cluster = Annotated[str | None, typer.Option(metavar="NAME", help="Where they run; see 'dtrain plugins'.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Begins the run's id.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any value of the recipe, as section.key=value.")
]
RUNS = Path("runs")


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dtrain {version('dtrain')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda value: _print_version(wanted=value), help="Print it."),
    ] = False,
) -> None:
    pass


def _overrides(
    gpus: int | None,
    workers: int | None,
    nodes: int | None,
    strategy: str | None,
    cluster: str | None,
    name: str | None,
    sets: list[str] | None,
) -> list[tuple[tuple[str, ...], Any, str]]:
    from dtrain.launch import recipe

    given: list[tuple[tuple[str, ...], Any, str]] = []
    if gpus is not None and workers is not None:
        raise UsageError("--gpus and --workers both say how many workers there are", "Give one of them.")
    if gpus is not None:
        given += [
            (("resources", "workers"), gpus, f"--gpus {gpus}"),
            (("resources", "device"), "gpu", f"--gpus {gpus}"),
        ]
    options = (
        (("resources", "workers"), workers),
        (("resources", "nodes"), nodes),
        (("strategy",), strategy),
        (("cluster",), cluster),
    )
    for path, value in (*options, (("name",), name)):
        if value is not None:
            given.append((path, value, f"--{path[-1]} {value}"))
    # Last, since they may be options of the strategy or cluster that was named.
    return given + [recipe.override(text) for text in sets or []]


def _new_run(path: Path, runs: Path, overrides: list[tuple[tuple[str, ...], Any, str]]) -> Any:
    from dtrain.launch import recipe

    return _run_of(recipe.load(path, overrides), path, runs)


def _run_of(job: Any, path: Path, runs: Path) -> Any:
    from dtrain.launch import planner
    from dtrain.run import folder

    run = folder.create(runs, planner.resolve(job))
    shutil.copyfile(path, run.path / "recipe.yaml")
    return run


@app.command()
def run(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS,
) -> None:  # fmt: skip
    """Train a recipe, and watch it. Ctrl-C saves and stops; twice stops at once."""
    _supervise(_new_run(path, runs, _overrides(gpus, workers, nodes, strategy, cluster, name, sets)), resumed=False)


@app.command()
def resume(
    name: RunName, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, sets: Set = None, runs: Runs = RUNS,
    detach: Annotated[bool, typer.Option("--detach", help="Do not watch it.")] = False,
) -> None:  # fmt: skip
    """Go on with a run from its newest whole checkpoint, also with another number of workers."""
    from dtrain.cli import queries
    from dtrain.common.serde import to_dict
    from dtrain.launch import planner, recipe, yaml_source

    chosen = _find(runs, name)
    queries.refuse_while_it_goes_on(chosen)
    before = chosen.job()
    data = to_dict(before)
    folder = Path(data.pop("folder"))
    for kind in ("strategy", "cluster"):
        data[kind] = {"name": data[kind]["name"]} | data[kind]["options"]
    data["args"] = list(data["args"])
    document = yaml_source.Document(str(chosen.job_file), data)
    job = recipe.from_document(document, folder, _overrides(gpus, workers, nodes, None, None, None, sets))
    chosen.write_job(planner.resolve(job))
    if detach:
        _submit(chosen)
    else:
        _supervise(chosen, resumed=chosen.events.exists())


@app.command()
def submit(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="A run for each of these values; given twice: for each pair.")
    ] = None,
) -> None:  # fmt: skip
    """Start a recipe detached from this terminal."""
    from dtrain.launch import recipe
    from dtrain.launch import sweep as sweeps

    given = _overrides(gpus, workers, nodes, strategy, cluster, name, sets)
    members = sweeps.members(sweep or [])
    # All of them are checked before the first is started.
    jobs = [sweeps.named(recipe.load(path, [*given, *member]), member) for member in members]
    for job in jobs:
        _submit(_run_of(job, path, runs))


def _find(runs: Path, name: str) -> Any:
    """The run that was meant, as it is now, also where it is kept elsewhere."""
    from dtrain.run import folder
    from dtrain.storage import run_sync

    chosen = run_sync.fetched(runs, name) if "://" in name else folder.find(runs, name)
    run_sync.refresh(chosen)
    return chosen


def _announce(chosen: Any) -> None:
    """Tell remote storage of a run; that it answers is better found now than at the first checkpoint."""
    from dtrain.storage import run_sync

    copy = run_sync.of(chosen, chosen.job())
    if copy:
        copy.announce()


def _submit(chosen: Any) -> None:
    from dtrain.launch import planner, registry
    from dtrain.run import folder

    _announce(chosen)
    launch = planner.make(chosen.job())
    reference = registry.cluster_of(launch.job).submit(launch, chosen)
    chosen.write_submitted(folder.Submitted(launch.job.cluster.name, reference, time.time()))
    print(f"submitted {chosen.id} ({launch.job.cluster.name} {reference})")
    print(f"  watch it: dtrain logs -f {chosen.id}    dtrain status {chosen.id}    stop it: dtrain stop {chosen.id}")


def _supervise(chosen: Any, *, resumed: bool) -> None:
    """Supervise in this process, or inside the cluster; show it, and leave with the run's exit code."""
    from dtrain.cli import render
    from dtrain.cli.live_view import View
    from dtrain.launch import registry
    from dtrain.supervisor.main import supervise

    if not registry.cluster_of(chosen.job()).supervises_locally():
        _follow(chosen, resumed=resumed)
    _announce(chosen)
    view = View(chosen, resumed=resumed)
    with view:
        code = supervise(chosen)
    try:
        print(render.summary(view.state, chosen), flush=True)
    except BrokenPipeError:
        _quiet()
    raise typer.Exit(int(code))


def _follow(chosen: Any, *, resumed: bool) -> None:
    """Submit, and show it as if it were here."""
    from dtrain.cli import queries, render
    from dtrain.cli.live_view import View
    from dtrain.cli.watch import Follower

    follower, view = Follower(chosen), View(chosen, resumed=resumed)
    _submit(chosen)
    with view:
        code = follower.wait()
    state = queries.state_of(chosen)
    print(render.summary(state, chosen) if state.exit_code is not None else queries.status(state, chosen))
    raise typer.Exit(code)


@app.command()
def ps(runs: Runs = RUNS, as_json: Json = False) -> None:
    """List the runs."""
    from dtrain.cli import queries
    from dtrain.run import folder

    rows = [queries.row(run) for run in folder.all_runs(runs)]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print(queries.table(rows))
    else:
        print(f"no runs in {runs.absolute()} (another folder: --runs or DTRAIN_RUNS)")


@app.command()
def status(name: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Say how a run is doing, or how it went."""
    from dtrain.cli import queries

    chosen = _find(runs, name)
    state = queries.state_of(chosen)
    if as_json:
        print(json.dumps(state.public() | {"folder": str(chosen.path)}, indent=1))
    else:
        print(queries.status(state, chosen))


@app.command()
def logs(
    name: RunName, runs: Runs = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    rank: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this rank; may be given several times.")] = None,
) -> None:  # fmt: skip
    """Print the workers' output."""
    from dtrain.cli import queries

    queries.print_logs(_find(runs, name), rank or [], follow=follow)


@app.command()
def stop(
    name: RunName, runs: Runs = RUNS,
    now: Annotated[bool, typer.Option("--now", help="Do not save first.")] = False,
    wait: Annotated[bool, typer.Option(help="Until the run has ended.")] = True,
) -> None:  # fmt: skip
    """Save and stop a run, wherever it was started; 'dtrain resume' goes on."""
    from dtrain.cli import queries

    chosen = _find(runs, name)
    print(queries.stop(chosen, now=now, wait=wait))


@app.command()
def plan(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what would run where, with which environment; nothing is started."""
    from dtrain.cli import queries
    from dtrain.launch import recipe
    from dtrain.launch.planner import make

    job = recipe.load(path, _overrides(gpus, workers, nodes, strategy, cluster, name, sets))
    shown = queries.plan(make(job), runs)
    print(json.dumps(shown, indent=1) if as_json else queries.plan_text(shown))


@app.command()
def audit(name: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Check from the workers' ledgers that every sample of every committed step was trained on exactly once."""
    from dataclasses import asdict

    from dtrain.run.audit import audit as audit_of

    found = audit_of(_find(runs, name))
    if found is None:
        raise UsageError(
            "this run has no record of samples", "Scripts keep their own data order; tasks and functions are recorded."
        )
    if as_json:
        print(json.dumps(asdict(found) | {"clean": found.clean}, indent=1))
    else:
        print(
            f"{found.steps} committed steps, {found.samples} samples: {found.twice} twice, {found.skipped} skipped, {found.altered} altered"
        )
        print(f"{found.repeated_steps} steps were undone by failures and trained again")
        print("\n".join(found.problems[:20]))
    raise typer.Exit(int(Exit.DONE if found.clean else Exit.USER_CODE))


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the strategies and clusters that are installed, and what each needs."""
    from dtrain.cli import queries

    rows = queries.plugins()
    print(json.dumps(rows, indent=1) if as_json else queries.plugins_text(rows))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from dtrain.launch import recipe

    print(json.dumps(recipe.schema(), indent=1))


def _quiet() -> None:
    """The reader of our output has gone: keep Python from complaining about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> int:
    """Run the command line; the process's exit code."""
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else int(Exit.DONE)
    except DtrainError as error:
        print(f"dtrain: {error}" if "\n" not in error.message else str(error), file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        _quiet()
        return int(Exit.DONE)
    except typer.Abort:
        return int(Exit.INTERRUPTED)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
