from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import net
from trimtab.core import Fit, Task
from trimtab.errors import TaskError
from trimtab.tasks.check import check_model, evaluating, fingerprint, fingerprint_weights


def data(num: int = 6, *, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    splits = ("train", "select", "verify")
    return {name: (rng.normal(size=(num, 16)).astype("float32"), np.arange(num) % 5) for name in splits}


def refused(says: str, *, labels: tuple[str, ...] = (), **changed) -> None:
    with pytest.raises(TaskError, match=says):
        Task.of("toy", **{**data(), **changed}, labels=labels)


def poisoned(value: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = data()["verify"]
    x[4, 2] = value
    return x, y


def test_an_empty_split_is_refused():
    refused("select split is empty", select=(np.zeros((0, 16), "float32"), np.zeros(0, int)))


def test_inputs_and_targets_of_different_lengths_are_refused():
    refused("train split has 6 inputs but 4 targets", train=(data()["train"][0], np.arange(4)))


def test_nan_in_inputs_is_refused_with_its_place():
    refused(r"verify split's inputs\[0\] hold NaN in 1 of 6 samples, the first at index 4", verify=poisoned(np.nan))


def test_inf_in_inputs_is_refused_with_its_place():
    refused(r"verify split's inputs\[0\] hold inf in 1 of 6 samples, the first at index 4", verify=poisoned(np.inf))


def test_large_values_whose_sum_overflows_are_not_taken_for_inf():
    x, y = data()["train"]
    x[:2] = 3e38
    x[1, 0] = 1e38
    assert len(Task.of("toy", **{**data(), "train": (x, y)}).train) == 6


def test_a_label_beyond_the_class_names_is_refused():
    refused(r"train split has 2 labels out of range: expected 0\.\.3 .* got e\.g\. 4",
            labels=tuple("abcd"), train=(data()["train"][0], np.array([0, 1, 2, 3, 4, 4])))  # fmt: skip


def test_a_negative_label_is_refused_even_without_class_names():
    refused("expected 0 or more, got e.g. -1", train=(data()["train"][0], np.arange(6) - 1))


def test_labels_that_are_no_whole_numbers_are_refused():
    refused("labels are float32", train=(data()["train"][0], np.arange(6) / 2))


def test_splits_of_different_shapes_are_refused():
    refused(
        r"differ in shape or kind .*train: \(16,\) .*select: \(15,\)",
        select=(data()["select"][0][:, 1:], np.arange(6) % 5),
    )


def test_splits_of_different_kinds_are_refused():
    refused("select: .* int32", select=(np.arange(96, dtype="int32").reshape(6, 16), np.arange(6) % 5))


@pytest.mark.parametrize(("first", "second"), [("train", "select"), ("train", "verify"), ("select", "verify")])
def test_a_sample_in_two_splits_is_refused_with_its_places(first, second):
    given = data()
    given[second][0][[3, 5]] = given[first][0][[1, 2]]
    with pytest.raises(
        TaskError, match=rf"{first} and {second} share 2 of 6 samples, e\.g\. {second}\[3\] is {first}\[1\]"
    ):
        Task.of("toy", **given)


def test_one_differing_bit_is_another_sample():
    given = data()
    given["select"][0][0] = given["train"][0][0]
    given["select"][0][0, 15] = np.nextafter(given["train"][0][0, 15], np.float32(9))
    assert len(Task.of("toy", **given).select) == 6


def test_samples_repeated_within_one_split_are_allowed():
    given = data()
    given["train"][0][1] = given["train"][0][0]
    assert len(Task.of("toy", **given).train) == 6


def test_samples_of_two_inputs_overlap_only_if_both_agree():
    given = {name: ((x, x.copy()), y) for name, (x, y) in data().items()}
    given["select"][0][0][0] = given["train"][0][0][0]
    assert len(Task.of("toy", **given).select) == 6
    given["select"][0][1][0] = given["train"][0][1][0]
    with pytest.raises(TaskError, match="share 1 of 6"):
        Task.of("toy", **given)


def test_a_fitting_model_passes_and_keeps_its_modes_and_weights():
    model, _ = net("mlp")
    model.train()
    model.layers[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, Task.of("toy", **data()))
    assert model.layers[2].training
    assert not model.layers[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_inputs_that_do_not_fit_the_model_are_refused_with_the_models_own_words():
    with pytest.raises(TaskError, match=r"given \(2, 16\) float32, Linear raised RuntimeError: mat1 and mat2"):
        check_model(nn.Linear(8, 5), Task.of("toy", **data()))


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, word):
    model, _ = net("mlp")
    model.layers[3].weight.data[1, 1] = value
    with pytest.raises(TaskError, match=rf"layers\.3\.weight holds {word}"):
        check_model(model, Task.of("toy", **data()))


def test_a_label_without_an_output_is_refused():
    with pytest.raises(TaskError, match="label 4, but the model has 4 outputs"):
        check_model(nn.Linear(16, 4), Task.of("toy", **data()))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(("model", "got"), [(Pair(), "tuple"), (nn.Flatten(0), r"\(32,\)")])
def test_a_model_that_returns_no_tensor_of_n_is_refused(model, got):
    with pytest.raises(TaskError, match=rf"must return one tensor \[2, \.\.\.\] .*{got}"):
        check_model(model, Task.of("toy", **data()))


def test_the_fingerprint_is_of_data_metric_and_fit():
    def of(seed: int = 0, **settings) -> str:
        return fingerprint(Task.of("toy", **data(seed=seed), **settings))

    assert of() == of()
    assert len({of(), of(1), of(fit=Fit()), of(fit=Fit(epochs=3))}) == 4


def test_the_fingerprint_sees_each_split_and_the_seal_stays_whole():
    task = Task.of("toy", **data())
    changed = data()
    changed["verify"][0][5, 15] += 1
    assert fingerprint(task) != fingerprint(Task.of("toy", **changed))
    assert len(task.verify.open("the verdict")) == 6


def test_the_metric_is_part_of_the_fingerprint():
    given = {name: (x, x[:, 0]) for name, (x, _) in data().items()}
    from trimtab.core import Metric

    tasks = [Task.of("t", **given, loss=F.mse_loss, metric=Metric(name, F.mse_loss)) for name in ("a", "b")]
    assert fingerprint(tasks[0]) != fingerprint(tasks[1])


def test_a_model_is_told_by_its_parts_and_what_is_done_between_them_not_by_an_address():
    class Own(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def extra_repr(self):
            return f"function={self.function}"

    def of(model, graph=""):
        return fingerprint_weights(model, values=True, graph=graph)

    assert of(nn.Sequential(nn.ReLU())) == of(nn.Sequential(nn.ReLU()))
    assert of(nn.Sequential(nn.ReLU())) != of(nn.Sequential(nn.GELU()))
    assert of(nn.ReLU(), "relu") != of(nn.ReLU(), "relu, doubled")
    first, second = (eval("lambda y: y") for _ in range(2))
    assert repr(Own(first)) != repr(Own(second))
    assert of(Own(first)) == of(Own(second))


def test_evaluating_gives_each_part_its_mode_back_after_an_error():
    model, _ = net("mlp")
    model.train()
    model.layers[0].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / int(model.layers[2].training)
    assert model.layers[2].training
    assert not model.layers[0].training
