"""Arrays of a user's own: what jax cannot hold as it was given is refused, never changed."""

import numpy as np
import pytest

from jaxevo.tasks import Examples, SequenceSet, Stream, examples, sequences, stream

ROWS, LABELS = np.ones((10, 3)), np.arange(10)
WAVES = np.ones((6, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (ROWS, np.full(10, 2**31), "labels <= 2147483647, got 2147483648 at .0."),
        (ROWS, np.full(10, 2**32 + 1, np.uint64), "labels <= 2147483647, got 4294967297"),
        (ROWS, LABELS - 1, "labels >= 0, got -1 at .0."),
        (ROWS + 1j, LABELS, "inputs must be real numbers, got complex128"),
        (ROWS, ROWS + 0j, "targets must be real numbers"),
        (ROWS * 1e39, LABELS, "inputs must fit float32, got 1e.39 at .0, 0."),
        (ROWS, ROWS * -1e39, "targets must fit float32"),
        (np.ma.masked_less(ROWS, 2), LABELS, "inputs must have no mask"),
        (ROWS, np.ma.masked_less(LABELS, 2), "targets must have no mask"),
        (
            np.where(np.eye(10, 3) > 0, np.nan, 1.0),
            LABELS,
            "inputs must be finite numbers, got nan",
        ),
        ([["a"]] * 10, LABELS, "inputs must be real numbers, got <U1"),
        ([[None]] * 10, LABELS, "inputs must be real numbers, got object"),
    ],
)
def test_what_would_be_wrapped_or_cut_is_refused(inputs, targets, message):
    """Labels wrapped at 2^31, imaginary parts and masks were dropped, 1e39 became infinite."""
    with pytest.raises(ValueError, match=message) as caught:
        examples(inputs, targets)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        examples(ROWS, LABELS, test=(inputs, targets))


def test_series_are_checked_alike():
    with pytest.raises(ValueError, match="inputs must have no mask"):
        stream(np.ma.masked_less(WAVES, 2), WAVES)
    with pytest.raises(ValueError, match="targets must be real numbers"):
        sequences(WAVES, WAVES + 1j)


@pytest.mark.parametrize(
    "mask", [np.zeros(6), np.ones(3), np.ones(7), -np.ones(6), np.ones((6, 3))]
)
def test_a_mask_that_leaves_no_mean_is_refused(mask):
    """All zeros gave NaN; one that is too short made the loss four times too large."""
    with pytest.raises(ValueError, match="mask must be 6 numbers >= 0"):
        SequenceSet(train_inputs=WAVES, train_targets=WAVES, mask=mask)


def test_targets_of_another_length_are_refused():
    """Rows past the end are clamped by jax: the last target stood for all of them."""
    with pytest.raises(ValueError, match=r"train_targets must have the leading axes .* \(10,\)"):
        Examples(train_inputs=ROWS, train_targets=LABELS[:5])
    with pytest.raises(ValueError, match="test_targets must have"):
        Examples(train_inputs=ROWS, train_targets=ROWS, test_inputs=ROWS, test_targets=ROWS[:2])
    with pytest.raises(ValueError, match="train_targets must have"):
        Stream(train_inputs=WAVES, train_targets=WAVES[:, :2])
    with pytest.raises(ValueError, match="train_targets must have"):
        SequenceSet(train_inputs=WAVES, train_targets=WAVES[:3], mask=np.ones(6))
