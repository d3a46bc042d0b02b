"""The account in the words of a summary, of this version and of older ones."""

from __future__ import annotations

from dtrain.cli.summary import account


def test_an_account_names_its_goodput_and_what_took_time() -> None:
    report = {
        "total": 10.0,
        "training": 8.0,
        "wasted_steps": 1.5,
        "detection": 0.001,
        "goodput": 0.8,
        "effective_share": 0.7,
    }
    assert account(report) == "80% goodput (training 8 s, wasted steps 1.5 s)"


def test_an_account_of_an_older_version_is_still_shown() -> None:
    report = {"total": 10.0, "training": 8.0, "repeating": 1.0, "training_share": 0.8}
    assert account(report) == "80% goodput (training 8 s, repeating 1 s)"


def test_a_script_has_no_goodput() -> None:
    assert account({"total": 2.0, "script": 2.0}) == "script 2 s"
