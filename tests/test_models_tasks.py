"""Tasks: decoding, divergence and early stopping of classifiers. The tests of conversion and decoding cover detection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evburst.data.classification import CLASSIFICATION, DETECTION, Classification
from evburst.data.events import SensorSize
from evburst.models.architectures import FAMILIES, find_family
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.layout import HEADS
from evburst.models.tasks import TASKS, divergence, task_of
from evburst.models.tasks.classification import TEMPERATURE

SPEC = HeadSpec("classes", (8,), 0, ("a", "b", "c"))
SIZE = SensorSize(34, 34)


def test_every_kind_of_head_has_a_task_and_a_layout() -> None:
    task_of(SPEC)
    assert TASKS.keys() == HEADS.keys() == {"yolo", "ssd", "classes"}
    assert {kind: task.name for kind, task in TASKS.items()} == {"yolo": DETECTION, "ssd": DETECTION, "classes": CLASSIFICATION}


def test_families_state_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_family("resnet18x0.25")[1] == "18x0.25"
    monkeypatch.setitem(FAMILIES, "ssd-mine", FAMILIES["resnet"])
    assert find_family("ssd-mine18") == (FAMILIES["resnet"], "18")
    assert find_family("ssd-vgg11")[1] == "vgg11"
    assert {name: own.task for name, own in FAMILIES.items() if name in ("yolo", "ssd-", "resnet", "vgg", "mobile")} == {
        "yolo": DETECTION,
        "ssd-": DETECTION,
        "resnet": CLASSIFICATION,
        "vgg": CLASSIFICATION,
        "mobile": CLASSIFICATION,
    }


def test_scores_are_the_softmax_of_the_mean_logits() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    first, second = task_of(SPEC).decode([maps], SPEC, PostConfig(), SIZE, [10, 20])
    assert isinstance(first, Classification)
    assert isinstance(second, Classification)
    np.testing.assert_allclose(first.scores, maps[0].flatten(1).mean(1).softmax(0), rtol=1e-6)
    assert (first.t_us, second.t_us) == (10, 20)


def test_divergence_is_symmetric_kullback_leibler_of_softened_scores() -> None:
    a, b = (torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    p, q = ((x.flatten(2).mean(2).double() / TEMPERATURE).softmax(1) for x in (a, b))
    expected = TEMPERATURE**2 * ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean()
    assert float(divergence([a], [b], SPEC)) == pytest.approx(float(expected), rel=1e-5)
    assert float(divergence([a], [b], SPEC, everywhere=True)) == pytest.approx(float(divergence([b], [a], SPEC)), rel=1e-5)
    assert float(divergence([a], [a + 3], SPEC)) == pytest.approx(0, abs=1e-5)  # softmax does not see a constant


def test_divergence_has_gradients() -> None:
    a, b = torch.zeros(1, 3, 1, 1), torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(divergence([a], [b], SPEC), b)
    assert gradient[0, 0] > 0 > gradient[0, 1]


def test_positions_have_equal_weight() -> None:
    assert torch.equal(task_of(SPEC).confidence([torch.randn(2, 3, 4, 5)], SPEC), torch.ones(2, 1, 4, 5))


@pytest.mark.parametrize(
    ("scores", "certainty"),
    [([1.0, 0.0, 0.0], 1.0), ([1 / 3] * 3, 0.0), ([0.5, 0.5, 0.0], 1 - np.log(2) / np.log(3)), ([1.0], 1.0)],
)
def test_certainty_is_one_minus_entropy(scores: list[float], certainty: float) -> None:
    assert Classification(np.array(scores, np.float32)).certainty == pytest.approx(certainty, abs=1e-6)


def test_timesteps_stop_when_the_latest_scores_are_certain() -> None:
    certain, unsure = (Classification(np.array(scores, np.float32)) for scores in ([0.98, 0.01, 0.01], [0.4, 0.3, 0.3]))
    task = task_of(SPEC)
    assert task.settled([certain], 0.8)
    assert not task.settled([certain, unsure], 0.8)
    assert not task.settled([certain], 0.99)


def test_a_recording_is_the_mean_of_its_windows() -> None:
    windows = [Classification(np.array(scores, np.float32), t) for t, scores in enumerate(([0.5, 0.3, 0.2], [0.1, 0.6, 0.3]))]
    whole = Classification.mean([windows[0], None, windows[1]])
    assert whole is not None
    assert Classification.mean([None]) is None
    assert (whole.label, whole.t_us, whole.top5[0][0]) == (1, 1, 1)
    np.testing.assert_allclose(whole.scores, [0.3, 0.45, 0.25], rtol=1e-6)
    assert [k for k, _ in whole.top5] == [1, 0, 2]
    with pytest.raises(ValueError, match="expected shape"):
        Classification(np.zeros((2, 2), np.float32))
    assert Classification([0.25, 0.75]).scores.dtype == np.float32  # type: ignore[arg-type]
