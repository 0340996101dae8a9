"""Trains dense layers on frozen features, tuned by Bayesian optimisation (optuna's TPE), as in the paper.

Features are standardised and projected onto at most 512 principal components of the training set. With fewer images
than components this loses nothing that training could use, and it is much faster. All random numbers are seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from node.validation.splits import grouped_folds

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

_INNER_FOLDS = 4
"""Largest number of folds of a training set, one of which is held out for tuning."""
_COMPONENTS = 512
"""Largest number of principal components."""
_ENSEMBLE = 3
"""Networks trained from different seeds, whose logits are averaged."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a head: number and width of hidden layers, and AdamW's settings."""

    layers: int
    width: int
    dropout: float
    rate: float
    decay: float
    epochs: int


@dataclass(frozen=True)
class Basis:
    """The map from features to the input of the layers: standardisation, then projection onto principal components."""

    mean: Float
    scale: Float
    components: Float

    @classmethod
    def of(cls, features: Float) -> Basis:
        """Fit to a training set (n, count). The first component has variance 1, and the others have less."""
        mean, spread = features.mean(axis=0), features.std(axis=0)
        scale = np.where(spread > 1e-6 * np.abs(mean) + 1e-12, spread, np.inf)  # drops constant features
        _, sizes, rows = np.linalg.svd((features - mean) / scale, full_matrices=False)
        kept = min(_COMPONENTS, max(int((sizes > 1e-5 * sizes[0]).sum()), 1))
        unit = max(float(sizes[0]), 1e-12) / len(features) ** 0.5
        return cls(mean, scale.astype(np.float32), (rows[:kept].T / unit).astype(np.float32))

    def __call__(self, features: Float) -> torch.Tensor:
        """The input of the layers, float32 (n, components), for features (n, count)."""
        return torch.from_numpy(np.asarray((features - self.mean) / self.scale @ self.components, dtype=np.float32))


@dataclass(frozen=True)
class Head:
    """Trained networks and the mapping of their input."""

    basis: Basis
    networks: tuple[torch.nn.Module, ...]

    def scores(self, features: Float) -> NDArray[np.float64]:
        """Probability of the positive class, float64 (n,), for ``features`` (n, count)."""
        return _probabilities(self.networks, self.basis(features))


def tune(features: Float, truth: Bool, patients: Sequence[str], trials: int, seed: int) -> Recipe:
    """The best of ``trials`` recipes by the loss on held-out patients, who are one of at most four folds."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    inner = min(_INNER_FOLDS, fewest_patients(truth, patients))
    held_out = grouped_folds(truth, patients, inner, seed) == 0
    basis, expected = Basis.of(features[~held_out]), truth[held_out]
    training, test = basis(features[~held_out]), basis(features[held_out])

    def loss(trial: optuna.Trial) -> float:
        recipe = Recipe(
            layers=trial.suggest_int("layers", 1, 2),
            width=trial.suggest_categorical("width", [16, 32, 64, 128]),
            dropout=trial.suggest_float("dropout", 0.0, 0.6),
            rate=trial.suggest_float("rate", 1e-4, 1e-2, log=True),
            decay=trial.suggest_float("decay", 1e-6, 1e-1, log=True),
            epochs=trial.suggest_int("epochs", 20, 80, step=20),
        )
        network = _train_network(training, truth[~held_out], recipe, seed)
        chances = np.clip(_probabilities((network,), test), 1e-6, 1 - 1e-6)
        losses = -np.log(np.where(expected, chances, 1 - chances))
        return float((losses[expected].mean() + losses[~expected].mean()) / 2)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(loss, n_trials=trials)
    return Recipe(**study.best_params)


def train_head(features: Float, truth: Bool, recipe: Recipe, seed: int) -> Head:
    """Train a head on ``features`` (n, count) by AdamW in full batches; both classes have equal weight."""
    basis = Basis.of(features)
    x = basis(features)
    return Head(basis, tuple(_train_network(x, truth, recipe, seed + number) for number in range(_ENSEMBLE)))


def fewest_patients(truth: Bool, patients: Sequence[str]) -> int:
    """Number of patients with an image of the rarer class."""
    names = np.asarray(patients)
    return min(np.unique(names[truth]).size, np.unique(names[~truth]).size)


def _probabilities(networks: Sequence[torch.nn.Module], x: torch.Tensor) -> NDArray[np.float64]:
    with torch.inference_mode():
        logits = torch.stack([network(x)[:, 0] for network in networks]).double().mean(dim=0)
    return np.asarray(torch.sigmoid(logits).numpy())


def _train_network(x: torch.Tensor, truth: Bool, recipe: Recipe, seed: int) -> torch.nn.Module:
    y = torch.from_numpy(truth.astype(np.float32))
    weight = torch.from_numpy(np.where(truth, 0.5 / truth.mean(), 0.5 / (~truth).mean()).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(x.shape[1], recipe)
        adam = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
        for _ in range(recipe.epochs):
            adam.zero_grad()
            logits = network(x)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight=weight)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    return network.eval()


def _network(count: int, recipe: Recipe) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = [torch.nn.Dropout(recipe.dropout)]
    for _ in range(recipe.layers):
        layers += [torch.nn.Linear(count, recipe.width), torch.nn.ReLU(), torch.nn.Dropout(recipe.dropout)]
        count = recipe.width
    return torch.nn.Sequential(*layers, torch.nn.Linear(count, 1))
