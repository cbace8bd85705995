"""How long a stream may be silent."""

from macmesh._patience import Patience


def test_signs_of_life_do_not_extend_the_first_deadline() -> None:
    patience = Patience(first_seconds=10, idle_seconds=3)
    patience.came(begins=False, waited_seconds=4)
    assert (patience.seconds, patience.asked_seconds) == (6, 10)
    patience.came(begins=False, waited_seconds=9)
    assert patience.seconds == 0


def test_from_the_first_value_on_each_wait_has_its_own_deadline() -> None:
    patience = Patience(first_seconds=10, idle_seconds=3)
    patience.came(begins=True, waited_seconds=9)
    assert (patience.seconds, patience.asked_seconds) == (3, 3)
    patience.came(begins=False, waited_seconds=2)
    assert patience.seconds == 1
    patience.came(begins=True, waited_seconds=1)
    assert patience.seconds == 3


def test_an_interruption_brings_the_first_deadline_back() -> None:
    patience = Patience(first_seconds=10, idle_seconds=3)
    patience.came(begins=True, waited_seconds=9)
    patience.interrupted()
    assert (patience.seconds, patience.asked_seconds) == (10, 10)
    patience.came(begins=True, waited_seconds=9)
    assert patience.seconds == 3
