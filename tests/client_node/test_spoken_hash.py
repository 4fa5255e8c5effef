"""The spelling is held against vectors that BIP-39's authors publish, and against its rule told in another way."""

import hashlib
import random
from importlib import resources

import pytest

from confide.client_node.spoken_hash import parse, words

# From the test vectors of BIP-39 (github.com/trezor/python-mnemonic, vectors.json): 256 bits of entropy, 24 words.
PUBLISHED = {
    "00" * 32: "abandon " * 23 + "art",
    "7f" * 32: "legal winner thank year wave sausage worth useful " * 2
    + "legal winner thank year wave sausage worth title",
    "80" * 32: "letter advice cage absurd amount doctor acoustic avoid " * 2
    + "letter advice cage absurd amount doctor acoustic bless",
    "ff" * 32: "zoo " * 23 + "vote",
    "f585c11aec520db57dd353c69554b21a89b20fb0650966fa0a9d6f74fd989d8f": "void come effort suffer camp survey warrior "
    "heavy shoot primary clutch crush open amazing screen patrol group space point ten exist slush involve unfold",
}
HASH = "f585c11aec520db57dd353c69554b21a89b20fb0650966fa0a9d6f74fd989d8f"


def test_the_list_is_the_published_one():
    data = (resources.files("confide.client_node") / "words.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"


@pytest.mark.parametrize("study_hash", PUBLISHED)
def test_a_hash_is_spelt_and_read_as_published(study_hash):
    spoken = PUBLISHED[study_hash]
    assert " ".join(words(study_hash)) == spoken
    assert parse(spoken) == study_hash


def test_all_256_bits_are_in_the_words():
    """Bit by bit: hashes that differ in one bit alone are spelt otherwise, and each is read back."""
    flipped = {f"{int(HASH, 16) ^ 1 << bit:064x}" for bit in range(256)}
    assert len({words(each) for each in flipped} | {words(HASH)}) == 257
    assert {parse(" ".join(words(each))) for each in flipped} == flipped


def test_what_people_type_is_read_in_any_case_and_with_any_mark_between():
    spoken = words(HASH)
    for text in (" ".join(spoken).upper(), "-".join(spoken), ", ".join(spoken), "\n".join(spoken), HASH.upper()):
        assert parse(text) == HASH


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not the whole hash"),
        ("thyroid", "not the whole hash"),
        (HASH[:8], "not the whole hash"),
        (HASH[:63], "not the whole hash"),
        (HASH + "0", "not the whole hash"),
        (HASH[:32] + " " + HASH[32:], "word 1"),
        (" ".join(words(HASH)[:23]), "23 words spell no hash; there are 24"),
        (" ".join((*words(HASH), "zoo")), "25 words"),
        (
            PUBLISHED[HASH].replace("effort", "efort"),
            "word 3, 'efort', is none of the words that spell a hash; effort?",
        ),
        (PUBLISHED[HASH].replace("void come", "come void"), "one of them, or their order"),
    ],
)
def test_anything_else_is_refused_and_says_what_is_wrong(text, told):
    with pytest.raises(ValueError, match=told):
        parse(text)


def test_of_256_phrases_with_a_wrong_word_one_passes():
    """A phrase that was heard wrongly never gives the hash; mostly it gives none."""
    listed = (resources.files("confide.client_node") / "words.txt").read_text().split()
    heard, rng = list(words(HASH)), random.Random(0)
    passed = 0
    for _ in range(2000):
        place, word = rng.randrange(24), rng.choice(listed)
        if word == heard[place]:
            continue
        try:
            assert parse(" ".join((*heard[:place], word, *heard[place + 1 :]))) != HASH
            passed += 1
        except ValueError:
            continue
    assert 0 < passed < 30  # 2000 / 256 is 8
