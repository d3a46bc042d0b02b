"""Finding strategies, clusters, trackers, exporters and frameworks, our own and other people's, through entry points."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from dtrain.api.cluster import Cluster
from dtrain.api.exporter import Exporter
from dtrain.api.strategy import Strategy
from dtrain.api.tracker import Tracker
from dtrain.api.weights import Framework
from dtrain.common import installation
from dtrain.common.errors import UsageError, nearest
from dtrain.common.serde import from_dict
from dtrain.job.job import Job, PluginChoice

Kind = Literal["strategy", "cluster", "tracker", "framework", "exporter", "layout"]
GROUPS: dict[Kind, str] = {
    "strategy": "dtrain.strategies",
    "cluster": "dtrain.clusters",
    "tracker": "dtrain.trackers",
    "framework": "dtrain.frameworks",
    "exporter": "dtrain.exporters",
    "layout": "dtrain.layouts",
}
BASES: dict[Kind, type] = {"strategy": Strategy, "cluster": Cluster}
"""Base classes, which hold the defaults of what a plugin need not have."""
DEFAULTS = "dtrain.defaults"
"""A group of entry points whose values are names of plugins."""


@cache
def installed(kind: Kind) -> dict[str, EntryPoint]:
    """Name → entry point of every installed plugin of this kind, ours and third-party alike."""
    return {
        point.name: point for point in sorted(_entry_points().select(group=GROUPS[kind]), key=lambda point: point.name)
    }


@cache
def _entry_points() -> Any:
    """Read the entry points of every installed package once."""
    return entry_points()


@cache
def default(kind: Kind) -> str:
    """The plugin that a recipe need not name: a cluster, a tracker, a strategy."""
    return str(next(point.value for point in _entry_points().select(group=DEFAULTS, name=kind)))


@cache
def plugin_class(kind: Kind, name: str) -> Any:
    """The plugin's class, the default one for ''; raises `UsageError` for an unknown name or one that does not load."""
    points = installed(kind)
    name = name or default(kind)
    if name not in points:
        raise UsageError(f"unknown {kind} '{name}'. {nearest(name, list(points))}")
    try:
        found = points[name].load()
    except Exception as error:  # a third party's module may raise anything while it is imported
        raise UsageError(
            f"the {kind} '{name}' ({points[name].value}) does not load: {type(error).__name__}: {error}",
            "Reinstall the package it comes from, or choose another one.",
        ) from error
    base = BASES.get(kind)
    if base and not issubclass(found, base):
        raise UsageError(
            f"the {kind} '{name}' ({points[name].value}) is not derived from {base.__module__}.{base.__name__}",
            "Derive its class from that one, which has defaults for what it does not need.",
        )
    return found


def strategy(name: str, options: dict[str, Any]) -> Strategy:
    """The strategy of this name with its typed options."""
    chosen: Strategy = _with_options(plugin_class("strategy", name), options)
    return chosen


def strategy_of(job: Job) -> Strategy:
    """The strategy that a job names."""
    return strategy(job.strategy.name, job.strategy.options)


def cluster_of(job: Job) -> Cluster:
    """The cluster that a job names."""
    return cluster(job.cluster.name, job.cluster.options)


def cluster(name: str, options: dict[str, Any]) -> Cluster:
    """The cluster of this name with its typed options."""
    chosen: Cluster = _with_options(plugin_class("cluster", name), options)
    return chosen


def tracker(name: str, options: dict[str, Any]) -> Tracker:
    """The tracker of this name with its typed options."""
    chosen: Tracker = _with_options(plugin_class("tracker", name), options)
    return chosen


def exporter(name: str, options: dict[str, Any]) -> Exporter:
    """The exporter of this name with its typed options."""
    chosen: Exporter = _with_options(plugin_class("exporter", name), options)
    return chosen


def frameworks() -> list[type[Framework]]:
    """Return the weights class of each framework, also of those that need something which is not installed."""
    return [plugin_class("framework", name) for name in installed("framework")]


def trackers_of(job: Job) -> tuple[PluginChoice, ...]:
    """The trackers that a job names; if it leaves them open, the default one if what it needs is installed here."""
    if job.track is not None:
        return job.track
    name = default("tracker")
    return () if missing_for("tracker", name) else (PluginChoice(name),)


def missing_for(kind: Kind, name: str) -> str:
    """Why a plugin cannot work on this machine and what to do, by its own word or by the framework that it names; '' if it can."""
    plugin = plugin_class(kind, name)
    check = getattr(plugin, "missing_here", None)
    if text := check() if check else "":
        return str(text)
    framework = getattr(plugin, "framework", None)
    frameworks = (framework,) if framework else getattr(plugin, "frameworks", ())
    if not frameworks or any(map(importlib.util.find_spec, frameworks)):
        return ""
    return f"needs {' or '.join(frameworks)}, which is not installed: {installation.command(frameworks[0])}"


def _with_options(plugin: Any, options: dict[str, Any]) -> Any:
    return plugin(from_dict(plugin.Options, options))
