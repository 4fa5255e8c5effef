import hashlib
import json

import pytest

from confide.privacy.ledger import log_chain
from confide.privacy.ledger.chain import START, Head


def plainly(domain, value):
    """The digest as the format's page has it, without the canonical module."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{domain}\n{text}".encode("ascii")).hexdigest()


def test_a_link_is_what_the_format_says():
    contents = {"b": ["ü", 1, None], "a": True}
    digest = log_chain.contents_digest(contents)
    assert digest == plainly("confide log contents 1", contents)
    after = plainly("confide log link 1", {"seq": 0, "contents": digest, "previous": "0" * 64})
    assert log_chain.link(START, digest) == Head(0, after)
    third = plainly("confide log link 1", {"seq": 8, "contents": digest, "previous": "ab" * 32})
    assert log_chain.link(Head(7, "ab" * 32), digest) == Head(8, third)


def test_following_in_parts_comes_to_the_same_head_as_at_once():
    digests = [log_chain.contents_digest({"n": n}) for n in range(9)]
    whole = log_chain.follow(START, digests)
    assert whole.seq == 8
    for cut in range(10):
        assert log_chain.follow(log_chain.follow(START, digests[:cut]), digests[cut:]) == whole


def test_any_other_digest_place_or_beginning_leads_elsewhere():
    digests = [log_chain.contents_digest({"n": n}) for n in range(4)]
    heads = {log_chain.follow(START, digests).hash, log_chain.follow(Head(-1, "1" * 64), digests).hash}
    for place in range(4):
        heads.add(log_chain.follow(START, [*digests[:place], "ff" * 32, *digests[place + 1 :]]).hash)
        heads.add(log_chain.follow(START, [*digests[:place], *digests[place + 1 :]]).hash)
    heads.add(log_chain.follow(START, digests[::-1]).hash)
    assert len(heads) == 11


def test_numbers_that_print_in_several_ways_have_no_digest():
    with pytest.raises(ValueError, match="float"):
        log_chain.contents_digest({"n": 0.5})
