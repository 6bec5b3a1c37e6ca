# ruff: noqa: T201 - SageMaker reads metrics from standard output
"""Support vector classifier of handwritten digits: ``--C`` and ``--gamma``, both best on a log scale.

Most of the plane from 1e-3 to 1e3 (``C``) and 1e-6 to 1 (``gamma``) gives an accuracy between 0.1 and 0.9;
0.98 and above needs both in the right region. One training takes a tenth of a second after the imports.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Train once, print ``validation accuracy`` and ``train accuracy``, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-C", "--C", type=float, default=1.0, help="inverse of the regularisation, above 0")
    parser.add_argument("--gamma", type=float, default=1e-3, help="inverse width of the kernel, above 0")
    parser.add_argument("--kernel", choices=("rbf", "poly", "sigmoid"), default="rbf")
    parser.add_argument("--degree", type=int, default=3, help="of the polynomial kernel")
    parser.add_argument("--seed", type=int, default=0, help="of the split into training and validation data")
    parsed = parser.parse_args(arguments)

    # Several training processes share the machine: one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    features, labels = load_digits(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(
        features, labels, test_size=0.33, random_state=parsed.seed, stratify=labels
    )
    model = SVC(C=parsed.C, gamma=parsed.gamma, kernel=parsed.kernel, degree=parsed.degree)
    model.fit(train_x, train_y)
    print(f"train accuracy: {model.score(train_x, train_y):.6f}")
    print(f"validation accuracy: {model.score(valid_x, valid_y):.6f}")
    folder = os.environ.get("SM_MODEL_DIR")
    if folder:
        (Path(folder) / "model.pkl").write_bytes(pickle.dumps(model))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
