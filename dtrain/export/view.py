"""Output of `dtrain weights` and `dtrain export`."""

from __future__ import annotations

from dtrain.common.serde import JsonObject, to_dict
from dtrain.export.exporting import Made
from dtrain.export.request import ExportResult, Verification
from dtrain.show.render import size
from dtrain.weights.source import SavedWeights

WIDTH = 10


def weights_text(saved: SavedWeights, made: Made) -> str:
    """Format what was written, and of which run."""
    lines = [f"{made.path}: the weights of {saved.name} ({size(made.bytes)})", _row("source", _source(saved))]
    return "\n".join([*lines, *(_row("left out", note) for note in made.result.notes)])


def export_text(saved: SavedWeights, made: Made, name: str) -> str:
    """Format what was written, of which run, and how it was verified."""
    result = made.result
    lines = [f"{made.path}: {saved.name} as {name} ({size(made.bytes)})"]
    lines += _rows("inputs", [one.told() for one in result.inputs])
    lines += _rows("outputs", [one.told() for one in result.outputs])
    assert result.verification is not None, "it was exported"
    lines += _verified(result.verification)
    lines += _latency(result)
    lines.append(
        _row("source", f"{_source(saved)}; {', '.join(f'{one} {text}' for one, text in result.versions.items())}")
    )
    lines += _rows("note", list(result.notes))
    return "\n".join([*lines, *_rows("serve it", list(made.serve))])


def _source(saved: SavedWeights) -> str:
    return f"step {saved.manifest.step}, weights digest {saved.manifest.weights[:16]}, verified"


def _verified(found: Verification) -> list[str]:
    sizes = " and ".join(map(str, found.batch_sizes))
    allowed = f"allowed {found.tolerance.absolute:g} + {found.tolerance.relative:g} of the largest value"
    lines = [
        _row("verified", f"equal on {found.samples} {found.data}, in batches of {sizes}, in a process of its own"),
        _row("", f"largest difference: absolute {found.absolute:.3g}, relative {found.relative:.3g} ({allowed})"),
    ]
    if not found.metrics:
        return [
            *lines,
            _row("", "no metrics are compared: there are none that follow from the outputs of one call alone"),
        ]
    lines.append(_row("", f"{'':16} {'trained':>12} {'exported':>12}"))
    return lines + [_row("", f"{name:16} {one:12.6g} {other:12.6g}") for name, (one, other) in found.metrics.items()]


def _latency(result: ExportResult) -> list[str]:
    if not result.speeds:
        return []
    lines = [_row("latency", f"{'batch':>5} {'trained':>27} {'exported':>27}")]
    return lines + [
        _row("", f"{one.batch:5} {_speed(one.batch, one.trained_ms)} {_speed(one.batch, one.exported_ms)}")
        for one in result.speeds
    ]


def _speed(batch: int, milliseconds: float) -> str:
    return f"{milliseconds:9.3f} ms {1000 * batch / milliseconds:9,.0f}/s"


def _row(label: str, text: str) -> str:
    return f"  {label:{WIDTH}} {text}"


def _rows(label: str, texts: list[str]) -> list[str]:
    return [_row(label if number == 0 else "", text) for number, text in enumerate(texts)]


def as_json(saved: SavedWeights, made: Made) -> JsonObject:
    """The same for a program."""
    return {
        "path": str(made.path.absolute()), "bytes": made.bytes, "run": saved.run.id, "step": saved.manifest.step,
        "weights_digest": saved.manifest.weights,
    } | {key: value for key, value in to_dict(made.result).items() if key not in ("error", "hint", "exit_code")}  # fmt: skip
