"""RecBole's BPR on MovieLens 100K, leave-one-out by time with 99 negatives: run by an interpreter of its own, for recommender.py.

RecBole 1.2 wants an older Ray than this project's, so it needs an environment apart: `pip install recbole 'setuptools<75'`, then
`python benchmarks/recommender.py --recbole THAT/bin/python`. Prints {"seconds", "test"} as JSON.

    THAT/bin/python benchmarks/recbole_ranking.py DATA EPOCHS SEED
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch


def main() -> None:
    data, epochs, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for name, kind in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_}.items():
        if not hasattr(np, name):
            setattr(np, name, kind)  # names that RecBole takes from an older numpy
    torch.set_num_threads(1)
    load = torch.load

    def whole(*arguments: Any, **options: Any) -> Any:  # its checkpoints hold more than weights
        return load(*arguments, **{**options, "weights_only": False})

    torch.load = whole
    from recbole.quick_start import run_recbole

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run_recbole(
            model="BPR",
            dataset="ml-100k",
            config_dict={
                "data_path": data, "checkpoint_dir": folder, "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
                "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni99"},
                "metrics": ["Hit", "NDCG"], "topk": [10], "valid_metric": "NDCG@10", "embedding_size": 64, "epochs": epochs,
                "stopping_step": 5, "train_batch_size": 4096, "learning_rate": 5e-3, "seed": seed, "show_progress": False,
                "state": "ERROR", "use_gpu": False,
            },
        )  # fmt: skip
    test = [float(found["test_result"][name]) for name in ("hit@10", "ndcg@10")]
    print(json.dumps([time.perf_counter() - began, test]))


if __name__ == "__main__":
    main()
