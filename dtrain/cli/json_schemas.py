"""The JSON schemas of what commands print with `--json`: those of the dataclasses that they print."""

from __future__ import annotations

from typing import Any

from dtrain.common.errors import UsageError, nearest


def printed() -> dict[str, Any]:
    """Command → the type of what it prints."""
    from dtrain.agent.warm.pool import Listed
    from dtrain.cli.plan_view import PlanView
    from dtrain.control.remove import Removed
    from dtrain.control.state import RunRow
    from dtrain.inspect.doctor import Line
    from dtrain.inspect.plugins import PluginRow
    from dtrain.record.node_history import NodeRecord
    from dtrain.record.status import RunState
    from dtrain.report.audit import Audit

    return {
        "audit": Audit, "clean": list[Removed], "doctor": list[Line], "nodes": list[NodeRecord], "plan": PlanView, "plugins": list[PluginRow],
        "ps": list[RunRow], "rm": list[Removed], "status": RunState, "warm": list[Listed],
    }  # fmt: skip


def schema_of(command: str) -> dict[str, Any]:
    """The schema of what a command prints; keys beside those of the schema may be added. Raises `UsageError` for one without a schema."""
    from pydantic import TypeAdapter

    known = printed()
    if command not in known:
        raise UsageError(f"--of {command}: no command with a schema", nearest(command, list(known)))
    found: dict[str, Any] = TypeAdapter(known[command]).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"dtrain {command} --json"} | found
