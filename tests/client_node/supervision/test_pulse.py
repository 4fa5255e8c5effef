from confide.client_node.supervision import Pulse


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_loop_is_stuck_once_its_sign_of_life_is_overdue_and_not_before():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.beat("tick", within_s=60)
    clock.now += 60
    assert pulse.stuck() == []
    clock.now += 0.1
    assert pulse.stuck() == ["tick"]
    pulse.beat("tick", within_s=60)
    assert pulse.stuck() == []


def test_a_loop_that_rests_is_never_stuck_until_it_has_beaten_again():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.beat("poll", within_s=1)
    pulse.rest("poll")
    clock.now += 10**6
    assert pulse.stuck() == []
    pulse.beat("poll", within_s=1)
    clock.now += 2
    assert pulse.stuck() == ["poll"]


def test_loops_that_never_began_are_not_missed():
    assert Pulse(Clock()).stuck() == []
