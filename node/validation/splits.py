"""Splits images into folds for cross-validation, by patient and with balanced classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.validation.statistics import TooFewCases
from storage.printable import counted

Folds = NDArray[np.intp]


def grouped_folds(truth: NDArray[np.bool_], patients: Sequence[str], count: int, seed: int) -> Folds:
    """The fold, 0 to ``count`` - 1, of each image: shape (n,).

    All images of a patient are in one fold. Patients are assigned one by one to the fold that balances the classes
    best: those with most images of one class first, equal ones in random order. Raises TooFewCases if a class has fewer
    patients than folds.
    """
    names, groups = np.unique(np.asarray(patients), return_inverse=True)
    of_patient = np.zeros((names.size, 2), dtype=np.intp)
    np.add.at(of_patient, (groups, truth.astype(np.intp)), 1)
    for number, name in enumerate(("negative", "positive")):
        there = int((of_patient[:, number] > 0).sum())
        if there < count:
            raise TooFewCases(
                f"{count} folds need {count} patients with a {name} image, and {counted(there, 'patient')} had one"
            )
    order = np.random.default_rng(seed).permutation(names.size)
    order = order[np.argsort(-of_patient[order].max(axis=1), kind="stable")]
    total, sizes = of_patient.sum(axis=0), np.zeros((count, 2))
    chosen = np.zeros(names.size, dtype=np.intp)
    for one in order:
        after = sizes[:, None, :] + np.eye(count)[:, :, None] * of_patient[one]  # (fold, fold of the patient, class)
        uneven = (after / total).std(axis=0).sum(axis=1)
        chosen[one] = np.lexsort((sizes.sum(axis=1), np.round(uneven, 12)))[0]
        sizes[chosen[one]] += of_patient[one]
    return np.asarray(chosen[groups], dtype=np.intp)
