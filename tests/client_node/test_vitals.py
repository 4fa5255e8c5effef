import inspect

from confide.client_node.node import Node
from confide.client_node.supervision import Pulse
from confide.client_node.vitals import KINDS, Vitals


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_node_that_asks_for_nothing_any_more_is_stuck_and_one_that_answers_is_not():
    clock = Clock()
    vitals = Vitals(Pulse(clock))
    vitals.polls()
    vitals.asked("step")
    clock.now += 10**6  # a step takes as long as it takes
    assert vitals.pulse.stuck() == []
    vitals.replied("step", failed=False)
    clock.now += 10**6
    assert vitals.pulse.stuck() != []
    vitals.disconnected("nobody answers")
    assert vitals.pulse.stuck() == []  # it tries again


def test_nothing_moves_between_a_question_and_its_answer():
    """So whoever looks all the time learns when a question came and when its answer left, as the coordinator does."""
    vitals = Vitals()
    vitals.connected()
    vitals.asked("step")
    before = (vitals.last_contact, vitals.questions.copy(), vitals.answers.copy(), vitals.pulse.stuck())
    assert (vitals.last_contact, vitals.questions, vitals.answers, vitals.pulse.stuck()) == before
    vitals.replied("step", failed=True)
    assert vitals.answers == {("step", "failed"): 1}


def test_kinds_that_nobody_knows_add_one_series_together():
    vitals = Vitals()
    for number in range(1000):
        vitals.asked(f"kind {number}")
    vitals.asked("settle")
    assert vitals.questions == {"other": 1000, "settle": 1}


def test_the_kinds_are_those_that_a_node_answers():
    assert all(f'"{kind}": self._' in inspect.getsource(Node.handle) for kind in KINDS)
    assert inspect.getsource(Node.handle).count('": self._') == len(KINDS)
