"""Activations against a slow and obvious reference, and the choice of the best."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tasks.base import best, sigmoid, softmax

logits = st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=12)


@given(row=logits)
@settings(max_examples=200, deadline=None)
def test_softmax_is_the_share_of_exponentials(row: list[float]) -> None:
    top = max(row)
    exponentials = [math.exp(value - top) for value in row]
    expected = [value / sum(exponentials) for value in exponentials]
    np.testing.assert_allclose(softmax(np.array([row], np.float32))[0], expected, rtol=1e-4, atol=1e-7)


@given(row=logits)
@settings(max_examples=200, deadline=None)
def test_sigmoid_is_the_logistic_function(row: list[float]) -> None:
    expected = [1 / (1 + math.exp(-value)) for value in row]
    np.testing.assert_allclose(sigmoid(np.array([row], np.float32))[0], expected, rtol=1e-4, atol=1e-6)


def test_huge_logits_do_not_overflow() -> None:
    rows = np.array([[3e4, -3e4, 0.0]], np.float32)
    np.testing.assert_array_equal(softmax(rows), [[1, 0, 0]])
    np.testing.assert_array_equal(sigmoid(rows), [[1, 0, 0.5]])


def test_each_row_is_a_softmax_of_its_own() -> None:
    rows = np.array([[0.0, 0.0], [1.0, -1.0]], np.float32)
    np.testing.assert_allclose(softmax(rows).sum(axis=1), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(softmax(rows)[0], [0.5, 0.5])


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 1.0]), min_size=1, max_size=300),
    top_k=st.integers(1, 120),
)
@settings(max_examples=300, deadline=None)
def test_the_best_are_the_largest_with_ties_to_the_lower_index(scores: list[float], top_k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda index: (-np.float32(scores[index]), index))[:top_k]
    row = np.array(scores, np.float32)
    assert best(row, top_k) == [(index, float(row[index])) for index in expected]


@pytest.mark.parametrize("size", [64, 65])
def test_few_and_many_scores_are_ranked_alike(size: int) -> None:
    scores = np.zeros(size, np.float32)
    scores[[60, 3, 40]] = 1.0
    assert best(scores, 5) == [(3, 1.0), (40, 1.0), (60, 1.0), (0, 0.0), (1, 0.0)]
