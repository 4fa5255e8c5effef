"""Who may stay among strangers: places, lines and turns, with a clock that the test moves."""

from dataclasses import dataclass

import pytest

from confide.coordinator.gateway.crowd import (
    _HOME_S,
    _HOMES,
    _HOMES_OF_A_KEY,
    _LEAST_GAP_S,
    Crowd,
    Homes,
    Limits,
    longest_idle,
)

from .played import Clock


@dataclass(eq=False)
class Caller:
    address: str
    is_busy: bool = False

    @property
    def network(self) -> str:
        return self.address.partition(":")[0]

    def turn_out(self) -> None:
        raise AssertionError("the crowd only says who goes")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowd(clock: Clock) -> Crowd[Caller]:
    return Crowd(Limits(per_address=3), clock)


def arrive(crowd: Crowd[Caller], *addresses: str) -> list[Caller]:
    callers = [Caller(address) for address in addresses]
    for caller in callers:
        assert crowd.arrive(caller) is None
    return callers


def let_in(crowd: Crowd[Caller]) -> list[Caller]:
    entries = []
    while entry := crowd.enter():
        entries.append(entry[0])
    return entries


def test_each_key_that_an_address_has_shown_makes_room_for_one_more(clock: Clock) -> None:
    homes = Homes(clock)
    crowd: Crowd[Caller] = Crowd(Limits(per_address=3), clock, homes=homes)
    for number in range(20):
        homes.note("a", f"key {number}")
    homes.note("b", "key 0")
    callers = arrive(crowd, *("a" * 23), *("b" * 4))
    assert crowd.arrive(late := Caller("a")) is late
    assert crowd.arrive(late := Caller("b")) is late
    clock.now += 4
    assert set(let_in(crowd)) == set(callers)  # 6 + 21 places
    arrive(crowd, "a", "b")
    clock.now += 4
    entered, leaves = crowd.enter() or pytest.fail("there are entries")
    assert (entered.address, leaves) == ("a", callers[0])  # as many as its keys allow for


def test_keys_are_forgotten_within_the_hour_and_count_once_at_an_address(clock: Clock) -> None:
    homes = Homes(clock)
    homes.note("a", "x")
    clock.now += _HOME_S / 2
    homes.note("a", "x")
    homes.note("a", "y")
    assert (homes.keys_at("a"), homes.keys_at("b"), len(homes)) == (2, 0, 2)
    clock.now += _HOME_S / 2 + 1
    assert homes.keys_at("a") == 2
    clock.now += _HOME_S / 2
    assert (homes.keys_at("a"), len(homes)) == (0, 0)
    for number in range(_HOMES + 5):
        homes.note(f"address {number}", f"key {number}")
    assert (len(homes), homes.keys_at("address 4"), homes.keys_at("address 5")) == (_HOMES, 0, 1)


def test_one_key_makes_room_at_few_addresses(clock: Clock) -> None:
    homes = Homes(clock)
    homes.note("a", "another's")
    for number in range(100):
        homes.note(str(number), "x")
    assert len(homes) == 1 + _HOMES_OF_A_KEY
    assert homes.keys_at("a") == homes.keys_at("99") == 1
    assert not homes.keys_at("0")


def test_a_line_is_no_longer_than_can_enter_before_its_last_must_go(clock: Clock) -> None:
    homes = Homes(clock)
    crowd: Crowd[Caller] = Crowd(Limits(head_s=2.0), clock, homes=homes)
    for number in range(1000):
        homes.note("a", str(number))
    assert crowd.gap_s == _LEAST_GAP_S
    turned_away = [crowd.arrive(Caller("a")) for _ in range(1000)]
    assert sum(each is None for each in turned_away) == 2.0 / _LEAST_GAP_S


def test_keys_that_come_do_not_make_a_crowd_press(clock: Clock) -> None:
    homes = Homes(clock)
    crowd: Crowd[Caller] = Crowd(Limits(per_address=3), clock, homes=homes)
    for number in range(30):
        homes.note("a", str(number))
    assert not crowd.is_pressed


def test_whoever_comes_while_there_is_room_enters_at_once(crowd: Crowd[Caller]) -> None:
    callers = arrive(crowd, "a", "b", "a")
    assert set(let_in(crowd)) == set(callers)
    assert crowd.wait_s() is None


def test_lines_take_turns(crowd: Crowd[Caller]) -> None:
    arrive(crowd, "a", "a", "a", "b")
    assert [caller.address for caller in let_in(crowd)] == ["a", "b", "a", "a"]


def test_a_full_line_takes_nobody_more(crowd: Crowd[Caller]) -> None:
    arrive(crowd, "a", "a", "a")
    late = Caller("a")
    assert crowd.arrive(late) is late
    arrive(crowd, "b")


def test_when_all_lines_are_full_the_longest_one_loses_its_last(crowd: Crowd[Caller]) -> None:
    callers = arrive(crowd, *("a" * 3), *("b" * 2), *("c" * 2), *("d" * 2), *("e" * 2), "f")
    assert crowd.arrive(Caller("g")) is callers[2]
    assert callers[2] not in crowd.everyone()


def test_among_equal_lines_the_newcomer_goes_and_not_who_has_waited_for_longest(crowd: Crowd[Caller]) -> None:
    waiting = arrive(crowd, *map(str, range(12)))
    for number in range(100, 200):
        newcomer = Caller(str(number))
        assert crowd.arrive(newcomer) is newcomer
    assert let_in(crowd) == waiting[:6]


def test_a_network_of_many_addresses_neither_shuts_another_out_nor_delays_it(
    crowd: Crowd[Caller], clock: Clock
) -> None:
    arrive(crowd, *(f"many:{number}" for number in range(12)))
    let_in(crowd)
    for number in range(12, 1000):
        crowd.arrive(Caller(f"many:{number}"))
    honest = Caller("b")
    loses = crowd.arrive(honest)
    assert loses is not None
    assert loses.network == "many"
    clock.now += 4 / 6 * 2 + 1e-6
    assert honest in let_in(crowd)
    for number in range(1000, 1006):  # and what he has is not taken from him
        crowd.arrive(Caller(f"many:{number}"))
        clock.now += 4 / 6 + 1e-6
        let_in(crowd)
    assert honest in crowd.everyone()


def test_addresses_of_one_network_take_turns(crowd: Crowd[Caller]) -> None:
    arrive(crowd, "a:1", "a:1", "a:1", "a:2")
    assert [caller.address for caller in let_in(crowd)] == ["a:1", "a:2", "a:1", "a:1"]


def test_the_newcomer_gets_the_place_of_his_address_s_oldest_idle_one(crowd: Crowd[Caller], clock: Clock) -> None:
    first, second, third = arrive(crowd, "a", "a", "a")
    let_in(crowd)
    first.is_busy = True
    (newcomer,) = arrive(crowd, "a")
    assert crowd.enter() == (newcomer, second)
    assert set(crowd.everyone()) == {first, third, newcomer}


def test_one_of_the_address_that_holds_most_goes_when_all_places_are_taken(crowd: Crowd[Caller], clock: Clock) -> None:
    callers = arrive(crowd, "a", "b", "b", "b", "c", "c")
    assert len(let_in(crowd)) == 6
    clock.now += 10
    (newcomer,) = arrive(crowd, "d")
    assert crowd.enter() == (newcomer, callers[1])


def test_no_more_enter_than_places_in_four_seconds(crowd: Crowd[Caller], clock: Clock) -> None:
    arrive(crowd, *"aaabbbccc")
    assert len(let_in(crowd)) == 6
    assert crowd.wait_s() == pytest.approx(4 / 6)
    clock.now += crowd.wait_s() + 1e-6
    assert len(let_in(crowd)) == 1
    clock.now += 60
    assert len(let_in(crowd)) == 2


def test_one_who_turns_out_to_be_known_costs_no_entry(crowd: Crowd[Caller]) -> None:
    for _ in range(100):
        (caller,) = arrive(crowd, "a")
        assert crowd.enter() == (caller, None)
        crowd.leave(caller, is_known=True)


def test_a_flood_from_one_address_delays_another_by_one_turn(crowd: Crowd[Caller], clock: Clock) -> None:
    arrive(crowd, *"aaa")
    let_in(crowd)
    for _ in range(1000):
        crowd.arrive(Caller("a"))
        crowd.enter()
    (honest,) = arrive(crowd, "b")
    clock.now += 4 / 6 * 2 + 1e-6
    assert honest in let_in(crowd)


def test_one_who_leaves_his_line_is_not_let_in(crowd: Crowd[Caller]) -> None:
    gone, stays = arrive(crowd, "a", "a")
    crowd.leave(gone)
    assert let_in(crowd) == [stays]


def test_if_all_are_busy_the_oldest_goes() -> None:
    old, young = Caller("a", is_busy=True), Caller("a", is_busy=True)
    assert longest_idle([old, young]) is old


def test_a_crowd_presses_when_a_quarter_of_its_entries_brought_no_key(crowd: Crowd[Caller]) -> None:
    arrive(crowd, "a")
    let_in(crowd)
    assert not crowd.is_pressed
    arrive(crowd, "b")
    (stranger,) = let_in(crowd)
    assert crowd.is_pressed
    crowd.leave(stranger, is_known=True)
    assert not crowd.is_pressed
