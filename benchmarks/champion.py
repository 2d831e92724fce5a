"""The champion of the main job, by `training.seed`: five sweeps of configs/digits-cnn.yaml, each in a folder of its own.

Validation chooses the winner; its test accuracy is what the sweep's own document says, evaluated once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "digits-cnn.yaml"


def champion(seed: int, quick: bool) -> float:
    """The test accuracy of one sweep's winner."""
    short = ["sweep.trials=4", "training.epochs=4"] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "orchestrator", "sweep", str(CONFIG), f"training.seed={seed}", *short, "--json"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["best"]["test"]["test_accuracy"])


def main() -> None:
    """Five seeds, their mean and their least."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="4 trials of 4 epochs: does it run at all?")
    quick = parser.parse_args().quick
    scores = []
    for seed in range(5):
        scores.append(champion(seed, quick))
        print(f"seed {seed}: test_accuracy {scores[-1]:.4f}", flush=True)
    print(f"mean {mean(scores):.4f} (bar >= 0.985), least {min(scores):.4f} (bar >= 0.975)")


if __name__ == "__main__":
    main()
