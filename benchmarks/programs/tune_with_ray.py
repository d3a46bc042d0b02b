"""The same study with Ray Tune and ASHA: `tune_with_ray.py TRIALS SEED FOLDER`."""

import json
import sys
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

trials, seed, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, str(Path(__file__).parent))
from tuned_digits import STEPS, by_hand  # noqa: E402


def trainable(values):
    best = 0.0

    def report(step, accuracy):
        nonlocal best
        best = max(best, accuracy)
        tune.report({"accuracy": best, "step": step})

    by_hand(values, report)


ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
space = {"lr": tune.loguniform(1e-5, 1e-1), "hidden": tune.choice([16, 64, 256]), "dropout": tune.uniform(0, 0.5)}
scheduler = ASHAScheduler(time_attr="step", max_t=STEPS, grace_period=STEPS // 27, reduction_factor=3)
tuner = tune.Tuner(
    tune.with_resources(trainable, {"cpu": 2}), param_space=space,
    tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=trials, scheduler=scheduler,
                                search_alg=tune.search.basic_variant.BasicVariantGenerator(random_state=seed, max_concurrent=1)),
    run_config=tune.RunConfig(storage_path=folder, name="s", verbose=0),
)  # fmt: skip
found = tuner.fit()
results = [one.metrics for one in found if one.metrics]
print(
    json.dumps(
        {
            "best": max(one["accuracy"] for one in results),
            "trials": len(found),
            "steps": sum(one["step"] for one in results),
        }
    )
)
