# ruff: noqa: T201 - SageMaker reads metrics from standard output
"""Gradient boosting on the breast cancer data: an objective to minimise, with integers and a category.

Tune ``--learning-rate`` (1e-3 to 1, log), ``--n-estimators`` (5 to 100), ``--max-depth`` (1 to 6),
``--subsample`` (0.3 to 1) and ``--max-features`` (sqrt, log2, all). The validation log-loss is
continuous and ranges from about 0.08 to 0.7; the best accuracy is about 0.97.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Train once, print ``validation logloss`` and ``validation accuracy``, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--n-estimators", type=int, default=50)
    parser.add_argument("--max-depth", type=int, default=3)
    parser.add_argument("--subsample", type=float, default=1.0)
    parser.add_argument("--max-features", choices=("sqrt", "log2", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the model")
    parsed = parser.parse_args(arguments)

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split

    features, labels = load_breast_cancer(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(
        features, labels, test_size=0.33, random_state=parsed.seed, stratify=labels
    )
    model = GradientBoostingClassifier(
        learning_rate=parsed.learning_rate,
        n_estimators=parsed.n_estimators,
        max_depth=parsed.max_depth,
        subsample=parsed.subsample,
        max_features=None if parsed.max_features == "all" else parsed.max_features,
        random_state=parsed.seed,
    )
    model.fit(train_x, train_y)
    print(f"validation logloss: {log_loss(valid_y, model.predict_proba(valid_x)):.6f}")
    print(f"validation accuracy: {model.score(valid_x, valid_y):.6f}")
    folder = os.environ.get("SM_MODEL_DIR")
    if folder:
        (Path(folder) / "model.pkl").write_bytes(pickle.dumps(model))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
