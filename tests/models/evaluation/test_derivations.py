import pytest

from confide.models.evaluation.derivations import wrong_equalities


@pytest.mark.parametrize(
    "text",
    [
        "k=12/3=4;C=-8-4=-12;#-12e^{-3x}+4",
        "D=(-3)^{2}-4\\cdot2=1;d=\\sqrt{1}=1",
        "F=x^{2}+1;y(0)=3",  # not numeric
        "m=1/3=0.3333",  # wrong, see below
        "",
        "k=5,c=40,f=0.75",
        "a=b=c",
        "m=2\\,(3+4)=14",
        "n=1,000+5=1005",
        " k = 12 / 3 = 4 ; 1 + 1 = 2",
    ],
)
def test_true_and_unreadable_lines_are_passed(text):
    assert wrong_equalities(text) == (["m=1/3=0.3333"] if "0.3333" in text else [])


def test_a_blank_of_latex_parts_no_line():
    assert wrong_equalities("m=2\\,(3+4)=7") == ["m=2\\,(3+4)=7"]


def test_wrong_lines_are_named_in_order():
    assert wrong_equalities("1+1=3;2+2=4,3=4\n5=5=6#1=2") == ["1+1=3", "3=4", "5=5=6", "1=2"]


def test_one_changed_digit_is_found():
    text = "i_1=470\\cdot10/100=47;P_1=470+47=517"
    places = [place for place, sign in enumerate(text) if sign.isdigit() and text[place - 1] != "_"]
    for place in places:
        other = str((int(text[place]) + 1) % 10)
        assert wrong_equalities(text[:place] + other + text[place + 1 :]), place
