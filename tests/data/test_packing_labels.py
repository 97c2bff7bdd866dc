"""What is a label stays one, wherever packing puts its token."""

from __future__ import annotations

import pytest

from accord.data.packing import SHARED_FROM, pack_supervised
from accord.data.supervised import SupervisedExample


@pytest.mark.parametrize("common", [0, SHARED_FROM - 1, SHARED_FROM, 20])
def test_each_text_keeps_its_labels_behind_a_shared_beginning(common: int) -> None:
    """Labels at the end, in the middle, and in two runs; read back text by text."""
    rows = [
        ([31, 32, 33], [False, True, True]),
        ([41, 42, 43, 44], [False, True, False, False]),
        ([51, 52, 53, 54, 55, 56], [False, True, False, False, True, True]),
    ]
    examples = [
        SupervisedExample((*range(1, common + 1), *tokens), (*[False] * common, *mask)) for tokens, mask in rows
    ]
    packed = pack_supervised(examples)
    shared = common if common >= SHARED_FROM else 0
    assert len(packed) == sum(map(len, examples)) - 2 * shared
    for text, example in zip(packed.texts, examples, strict=True):
        places = text[text >= 0]
        assert packed.tokens[places].tolist() == list(example.tokens)
        assert packed.loss_mask[places].tolist() == list(example.loss_mask)
