"""TeaCache decides by each branch's own history."""

import pytest
import torch

from infinitetalk.family import INFINITETALK
from infinitetalk.network.teacache import WARM_UP_STEPS, TeaCache

POLYNOMIAL = INFINITETALK.sizes["infinitetalk-480"].teacache_polynomial


def embeddings(num_steps: int) -> list[torch.Tensor]:
    """A time embedding that moves by one per cent a step."""
    return [torch.ones(1, 6, 8) * 1.01**step for step in range(num_steps)]


def test_first_steps_are_always_computed() -> None:
    cache = TeaCache(POLYNOMIAL, threshold=1e9)
    decisions = [cache.should_compute(embedding) for embedding in embeddings(10)]
    assert decisions == [True] * WARM_UP_STEPS + [False] * 5
    assert cache.skipped == 5


def test_a_threshold_of_zero_skips_nothing() -> None:
    cache = TeaCache(POLYNOMIAL, threshold=0.0)
    assert all(cache.should_compute(embedding) for embedding in embeddings(10))


def test_computing_starts_the_accumulation_anew() -> None:
    cache = TeaCache(POLYNOMIAL, threshold=0.2)
    distances, decisions = [], []
    for embedding in embeddings(20):
        decisions.append(cache.should_compute(embedding))
        distances.append(cache.distance)
    assert True in decisions[WARM_UP_STEPS:] and False in decisions[WARM_UP_STEPS:]
    after_computing = [distances[i + 1] for i in range(WARM_UP_STEPS, 19) if decisions[i]]
    assert after_computing == pytest.approx([after_computing[0]] * len(after_computing), rel=1e-3)


def test_branches_do_not_share_what_they_skip() -> None:
    """The published code counts three branches a step whatever the guidance; two then read one another's residual."""
    first, second = TeaCache(POLYNOMIAL, 1e9), TeaCache(POLYNOMIAL, 1e9)
    for embedding in embeddings(WARM_UP_STEPS):
        assert first.should_compute(embedding) and second.should_compute(embedding)
        first.store(torch.full((1, 4, 8), 1.0))
        second.store(torch.full((1, 4, 8), 2.0))
    embedding = embeddings(WARM_UP_STEPS + 1)[-1]
    assert not first.should_compute(embedding) and not second.should_compute(embedding)
    tokens = torch.zeros(1, 4, 8)
    assert first.apply(tokens).unique().tolist() == [1.0]
    assert second.apply(tokens).unique().tolist() == [2.0]
