"""The same study with Optuna and a loop by hand: `tune_with_optuna.py TRIALS SEED JOURNAL`."""

import json
import sys

import optuna
from tuned_digits import STEPS, by_hand

trials, seed, journal = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
steps = {}


def objective(trial):
    values = {
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "hidden": trial.suggest_categorical("hidden", [16, 64, 256]),
        "dropout": trial.suggest_float("dropout", 0, 0.5),
    }
    best = 0.0

    def report(step, accuracy):
        nonlocal best
        best, steps[trial.number] = max(best, accuracy), step
        trial.report(best, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    by_hand(values, report)
    return best


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), study_name="s", load_if_exists=True,
    pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=STEPS // 27, reduction_factor=3),
    storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal)),
)  # fmt: skip
study.optimize(objective, n_trials=trials)
print(json.dumps({"best": study.best_value, "trials": len(study.trials), "steps": sum(steps.values())}))
