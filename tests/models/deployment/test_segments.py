import pytest
import torch

from confide.kernels.segments import Segments, segment_attention
from confide.models.deployment.segments import attend


@pytest.mark.parametrize(("tokens", "unrotated"), [(5, 4), (16, 4), (17, 4), (63, 4), (64, 0), (90, 4)])
def test_plain_attention_in_segments_is_that_of_the_kernel(tokens, unrotated):
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = torch.randn(3, 2, 3, tokens, 12, generator=generator).unbind()
    want = segment_attention(query, key, value, 0.3, unrotated=unrotated, segments=Segments(window=8, top=2))
    found = attend(query, key, value, 0.3, unrotated=unrotated or 12, window=8, top=2)
    torch.testing.assert_close(found, want)
    last = attend(query[:, :, -1:], key, value, 0.3, unrotated=unrotated or 12, window=8, top=2)
    torch.testing.assert_close(last, want[:, :, -1:])
