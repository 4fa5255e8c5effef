import pytest

from confide.models.deployment.choosing import Use, choose


def ways(**wanted):
    return [option.way for option in choose(Use(**wanted))]


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ({"modality": "code"}, "onnx"),
        ({"modality": "table"}, "onnx"),
        ({"modality": "mathematics"}, "torch"),
        ({"modality": "mathematics", "megabytes": 200}, "onnx"),
        ({"modality": "text", "clients": 8}, "serve"),
        ({"modality": "table", "clients": 8}, "triton"),
        ({"modality": "code", "clients": 8}, "triton"),
        ({"modality": "mathematics", "clients": 8}, "triton"),
        ({"modality": "code", "clients": 8, "is_guided": False}, "serve"),
        ({"modality": "mathematics", "milliseconds": 1}, "onnx"),
    ],
)
def test_each_use_has_its_way(wanted, first):
    assert ways(**wanted)[0] == first


def test_what_does_not_suit_comes_last_and_says_why():
    options = choose(Use("text", milliseconds=30, megabytes=600, parameters=135_000_000, active=135_000_000))
    assert [(option.way, bool(option.misfits)) for option in options] == [
        ("onnx", False), ("triton", False), ("torch", True), ("serve", True),
    ]  # fmt: skip
    assert options[-1].misfits == ("takes about 56 ms, and 30 are given", "takes about 1,190 MB, and 600 are given")


def test_experts_are_packed_and_idle_ones_take_no_time():
    whole, sparse = (
        Use("code", parameters=10**8, active=10**8),
        Use("code", parameters=10**8, active=10**7, in_experts=95 * 10**6),
    )
    (first, *_), (second, *_) = choose(whole), choose(sparse)
    assert second.milliseconds < first.milliseconds / 5
    assert second.megabytes == pytest.approx(75 + 1.125 * 95 + 4 * 5)


def test_nobody_claims_to_read_what_it_does_not():
    said = "reads no sounds: confide alone does, coordinator adapter ask --study"
    assert all(option.misfits[-1] == said for option in choose(Use("sounds")))
    assert ways(modality="pictures")[:2] == ["onnx", "triton"]
    assert ways(modality="pictures", clients=8)[:2] == ["triton", "onnx"]
    assert {option.way for option in choose(Use("pictures")) if option.misfits} == {"torch", "serve"}


def test_the_service_says_that_it_keeps_no_guide():
    for modality in ("code", "mathematics"):
        misfits = {option.way: option.misfits for option in choose(Use(modality))}
        assert ["study's guide" in "".join(misfits[way]) for way in misfits] == [way == "serve" for way in misfits]
        assert all(not option.misfits for option in choose(Use(modality, is_guided=False)))
    assert all(not option.misfits for option in choose(Use("text")))


def test_a_head_without_experts_is_estimated_in_float32():
    sizes = {"parameters": 10**8, "active": 10**8}
    first, *others = choose(Use("text", in_float32=True, **sizes))
    assert (first.way, first.runtime) == ("onnx", "ONNX Runtime, float32")
    assert first.megabytes == pytest.approx(75 + 400)
    assert {option.way: option.runtime for option in others}["triton"] == "Triton server, float32"
    packed, *_ = choose(Use("text", **sizes))
    torch = next(option for option in others if option.way == "torch")
    assert packed.milliseconds < first.milliseconds < torch.milliseconds


def test_what_cannot_be_deployed_is_not_advised():
    assert ways(modality="text", no_graph="no graph is made of a Granite yet")[:2] == ["torch", "serve"]
    assert ways(modality="text", no_folder="takes confide")[0] == "serve"


def test_embeddings_are_never_packed():
    first, *_ = choose(Use("text", parameters=10**8, active=10**8, in_words=3 * 10**7))
    assert first.megabytes == pytest.approx(75 + 4 * 30 + 1.125 * 70)
