"""Features whose packages are missing say which extra to install; everything else works without these packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from storage.errors import ExtraMissing
from storage.optional_packages import EXTRAS, require_extra

ROOT = Path(__file__).parents[3]
WITHOUT_EXTRAS = """
import sys
for name in ("diffusers", "transformers", "huggingface_hub", "accelerate", "optuna", "piq"):
    sys.modules[name] = None  # import raises ModuleNotFoundError
import numpy as np
from node.upscalers.bicubic import Bicubic
from node.upscalers.mammo import Mammo
from node.upscalers.protocol import UpscaleTask
from storage.formats.resample import Operator
from storage.records import OperatingPoint
operator = Operator(128, 128, 2)
samples = np.random.default_rng(1).uniform(0, 4095, (64, 64)).astype(np.float32)
upsampled = operator.lift(samples)
point = OperatingPoint(scale=2, coder="jpegxl", distance=1.0)
task = UpscaleTask(samples, operator, upsampled, point, 5.0, np.full((128, 128), 8, dtype=np.float32))
assert not np.array_equal(Mammo(device="cpu").structure(task), Bicubic().structure(task))
import node.app, node.codec.encode.search, node.training.trainer, node.validation.study, node.workers.worker
import node.cli.main, node.cli.finetuning
"""


@pytest.mark.parametrize(("extra", "package"), [(extra, name) for extra, names in EXTRAS.items() for name in names])
def test_a_missing_package_names_its_extra(extra: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra(extra, "this feature")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing) as caught:
        require_extra(extra, "this feature")
    assert str(caught.value) == (
        f"this feature needs {package}, which is not installed; run `pip install 'latent-pacs[{extra}]'`"
    )


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, names in EXTRAS.items():
        declared = project["optional-dependencies"][extra]
        assert [line.partition(">=")[0] for line in declared] == list(names)
        assert not set(names) & {line.partition(">=")[0] for line in project["dependencies"]}


@pytest.mark.slow
def test_upscalers_and_node_need_no_extra() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_EXTRAS], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0
