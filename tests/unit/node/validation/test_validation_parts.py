"""Proves the parts of a validation: folds, features, dense layers, what it reports and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from safetensors.torch import save_file

from benchmarks.phantoms import phantom
from node.fidelity.reference import Reference
from node.validation.dense_layers import train_head, tune
from node.validation.features import COUNT, load_backbone
from node.validation.findings import Trained, say
from node.validation.measurement_cache import FeatureCache
from node.validation.measuring import _breast_box, _input, likeness, ssim_map
from node.validation.splits import grouped_folds
from node.validation.statistics import TooFewCases, areas, judge
from node.validation.study import NothingToValidate, positive_class
from node.validation.terms import Arm, Fidelity, Measured
from storage.errors import ModelMissing

Array = NDArray[Any]


def test_folds_keep_patients_together_and_classes_apart() -> None:
    random = np.random.default_rng(3)
    patients = [f"P{number}" for number in random.integers(0, 60, 300)]
    truth = random.random(300) < 0.2
    folds = grouped_folds(truth, patients, 5, seed=1)
    assert all(
        len({int(fold) for fold, name in zip(folds, patients, strict=True) if name == one}) == 1 for one in patients
    )
    positives, images = np.bincount(folds[truth], minlength=5), np.bincount(folds, minlength=5)
    assert positives.min() >= 0.7 * truth.sum() / 5
    assert positives.max() <= 1.3 * truth.sum() / 5
    assert images.max() - images.min() <= 20
    assert np.array_equal(folds, grouped_folds(truth, patients, 5, seed=1))
    assert not np.array_equal(folds, grouped_folds(truth, patients, 5, seed=2))


def test_folds_need_as_many_patients_of_each_class() -> None:
    truth = np.array([True, True, True, False, False, False])
    with pytest.raises(TooFewCases, match="3 folds need 3 patients with a positive image, and 2 patients had one"):
        grouped_folds(truth, ["a", "a", "b", "c", "d", "e"], 3, seed=0)


def test_the_positive_class() -> None:
    assert positive_class(["a", "a", "b"], "") == "b"
    assert positive_class(["a", "a", "b"], "a") == "a"
    assert positive_class(["benign", "malignant"], "") == "malignant"
    for names, wanted, says in (
        ([], "", "no labelled image"),
        (["a"], "", "have the classes"),
        (["a", "b"], "c", "none of"),
    ):
        with pytest.raises(NothingToValidate, match=says):
            positive_class(names, wanted)


def test_ssim_is_that_of_piq() -> None:
    import piq

    random = np.random.default_rng(0)
    one = random.random((300, 280), dtype=np.float32)
    two = np.clip(one + 0.1 * random.standard_normal(one.shape, dtype=np.float32), 0, 1)
    x, y = (torch.from_numpy(each)[None, None] for each in (one, two))
    assert ssim_map(one, two).shape == (290, 270)
    assert float(ssim_map(one, two).mean()) == pytest.approx(float(piq.ssim(x, y, downsample=False)), abs=1e-5)
    found = likeness(one, two, [(0, 0), (44, 24)])
    tile = (slice(44, 300), slice(24, 280))
    x, y = (torch.from_numpy(np.ascontiguousarray(each[tile]))[None, None] for each in (one, two))
    wanted = [float(piq.psnr(y, x)), float(piq.ssim(y, x, downsample=False)), float(piq.fsim(y, x, chromatic=False))]
    assert found.tiles[1] == pytest.approx(wanted, abs=1e-3)
    assert likeness(one, one, []).full.tolist() == [200.0, pytest.approx(1.0), pytest.approx(1.0)]


def test_arms_are_never_resized_alike() -> None:
    """For a breast of 2048 pixels, inputs have 1024 for the source, and 512 and 256 for payloads of scale 2 and 4.
    Small inputs keep their size."""
    header = Dataset()
    header.PhotometricInterpretation, header.WindowCenter, header.WindowWidth = "MONOCHROME2", 2048, 4096
    sizes = ((2048, 1024, (128, 1920, 0, 640), (1024, 512, 256)), (640, 512, (0, 640, 0, 320), (640, 320, 160)))
    for rows, columns, breast, inputs in sizes:
        reference = Reference(phantom(rows, columns, 0), header)
        shown = reference.window.show(reference.pixels)
        box = _breast_box(reference)
        assert box == breast
        for scale, side in zip((1, 2, 4), inputs, strict=True):
            low = shown[::scale, ::scale]
            seen = _input(low, box, scale, (rows, columns))
            assert seen.shape[0] / side == pytest.approx((box[1] - box[0]) / rows, abs=0.01)
            assert seen.shape[1] / side == pytest.approx((box[3] - box[2]) / rows, abs=0.01)


@pytest.mark.slow
def test_features_are_resnet50s_own(tmp_path: Path) -> None:
    """The last 2048 features are those that torchvision's network pools. Weights from a file equal the saved ones."""
    backbone = load_backbone("none")
    picture = np.random.default_rng(0).random((96, 64), dtype=np.float32)
    found = backbone.features(picture)
    assert found.shape == (COUNT,)
    assert found.dtype == np.float32
    seen: list[torch.Tensor] = []
    hook = backbone.network.avgpool.register_forward_hook(lambda _, __, out: seen.append(out))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        backbone.network(((torch.from_numpy(picture) - mean[:, None, None]) / std[:, None, None])[None])
    hook.remove()
    assert found[-2048:] == pytest.approx(seen[0].flatten().numpy(), rel=1e-4)
    assert load_backbone("none").digest == backbone.digest
    file = tmp_path / "weights.safetensors"
    backbone.network.fc.bias.add_(1)
    save_file({name: value.contiguous() for name, value in backbone.network.state_dict().items()}, file)
    other = load_backbone(str(file))
    assert other.digest != backbone.digest
    assert np.array_equal(other.features(picture), found)


@pytest.mark.slow
def test_weights_that_cannot_be_had_are_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelMissing, match=r"IMAGENET1K_V2 cannot be downloaded .* or choose none"):
        load_backbone("IMAGENET1K_V2")
    with pytest.raises(ModelMissing, match="neither a file nor one of IMAGENET1K_V1, IMAGENET1K_V2, none"):
        load_backbone("IMAGENET9")
    (tmp_path / "odd.pth").write_bytes(b"no weights")
    with pytest.raises(ModelMissing, match="cannot be read"):
        load_backbone(str(tmp_path / "odd.pth"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelMissing, match="nor a file that torchvision publishes"):
        load_backbone(str(tmp_path / "other.pth"))
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelMissing, match="not the weights of a torchvision ResNet50"):
        load_backbone(str(tmp_path / "other.safetensors"))


@pytest.mark.slow
def test_dense_layers_learn_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((120, 500)).astype(np.float32)
    features[:, 3] = 7.0  # constant
    truth = np.arange(120) % 2 == 0
    patients = [str(number) for number in range(120)]
    signal = features + 1.5 * truth[:, None] * (np.arange(500) < 20)
    learn, test = slice(0, 80), slice(80, 120)
    found = []
    for each in (signal.astype(np.float32), features):
        recipe = tune(each[learn], truth[learn], patients[learn], 5, seed=0)
        head = train_head(each[learn], truth[learn], recipe, seed=0)
        scores = head.scores(each[test])
        assert np.array_equal(scores, train_head(each[learn], truth[learn], recipe, seed=0).scores(each[test]))
        assert ((scores > 0) & (scores < 1)).all()
        found.append(areas(scores[None], truth[test], patients[test])[0][0])
    assert found[0] > 0.95
    assert 0.2 < found[1] < 0.8


def test_the_cache_gives_back_what_was_put_and_minds_no_damage(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    figures = Fidelity(np.array([30.0, 0.9, 0.95]), np.ones((2, 3)), np.array([[0, 0], [0, 256]]))
    keys = [cache.key("a", arm) for arm in Arm]
    cache.put(keys[0], Measured(np.arange(3, dtype=np.float32), None))
    cache.put(keys[1], Measured(np.ones(3, dtype=np.float32), figures))
    again = FeatureCache(tmp_path / "features")
    source, other = again.get(keys[0]), again.get(keys[1])
    assert source is not None
    assert source.features.tolist() == [0, 1, 2]
    assert source.fidelity is None
    assert other is not None
    assert other.fidelity is not None
    assert other.fidelity.corners.tolist() == [[0, 0], [0, 256]]
    assert again.get(keys[2]) is None
    (tmp_path / "features" / f"{keys[0]}.npz").write_bytes(b"PK damaged")
    assert again.get(keys[0]) is None
    third = FeatureCache(tmp_path / "features")
    third.get(keys[1])
    third.drop_unused()
    assert [each.stem for each in (tmp_path / "features").iterdir()] == [keys[1]]


def test_the_verdict_in_words() -> None:
    def one(arm: Arm, value: float, low: float, comparison: Any = None) -> Trained:
        return Trained(arm, arm, {"auc": (value, low, 1.0)}, comparison, (np.zeros(1), np.zeros(1)))

    source = one(Arm.SOURCE, 0.9, 0.8)
    same = one(Arm.DECOMPRESSED, 0.9, 0.8, judge(0.0, 0.01, 0.02, 50))
    assert say(source, same, 50, blind=False) == (
        "equivalent: decompressed AUC 0.900, source 0.900, difference +0.000 (90% interval -0.016 to +0.016, "
        "margin 0.02)"
    )
    unclear = one(Arm.COMPRESSED, 0.88, 0.7, judge(0.0, 0.02, 0.02, 100))
    assert say(source, unclear, 100, blind=False).endswith(
        "; about 857 positive images would settle it, 100 are labelled"
    )
    assert say(source, one(Arm.COMPRESSED, 0.6, 0.5, judge(-0.3, 0.05, 0.02, 50)), 50, blind=False).startswith(
        "different"
    )
    assert "does not separate the classes" in say(one(Arm.SOURCE, 0.55, 0.45), same, 50, blind=True)
