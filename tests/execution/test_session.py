import optuna
import pytest

from autoprune.execution.session import PREFIX, Session


@pytest.fixture
def study():
    return optuna.create_study(directions=["minimize", "minimize"])


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_driver_that_gives_no_sign_is_lost_after_a_while(study):
    clock = Clock()
    ours = Session(study, "ours", grace_s=60.0, clock=clock)
    study.set_user_attr(PREFIX + "other", {"time": 1.0})

    assert not ours.lost("other")
    clock.now += 59.0
    assert not ours.lost("other")
    study.set_user_attr(PREFIX + "other", {"time": 0.5})  # its clock may be any
    assert not ours.lost("other")
    clock.now += 61.0
    assert ours.lost("other")


def test_driver_that_was_never_heard_of_is_lost_after_a_while(study):
    clock = Clock()
    ours = Session(study, "ours", grace_s=60.0, clock=clock)
    assert not ours.lost("")
    clock.now += 61.0
    assert ours.lost("")


def test_driver_that_ended_is_lost_at_once(study):
    ours = Session(study, "ours")
    with Session(study, "other"):
        assert not ours.lost("other")
    assert ours.lost("other")
    with Session(study, "other"):  # its run goes on
        assert not ours.lost("other")


def test_signs_are_given_while_the_body_runs(study):
    signs = []
    with Session(study, "ours", interval_s=0.01) as session:
        for _ in range(500):
            signs.append(study.user_attrs[PREFIX + "ours"]["time"])
            if len(set(signs)) > 3:
                break
            session._ended.wait(0.01)
    assert len(set(signs)) > 3
    assert study.user_attrs[PREFIX + "ours"]["time"] is None


def test_what_went_wrong_is_not_hidden_by_a_storage_that_cannot_be_written(study):
    def broken(name, value):
        raise OSError("disk full")

    def work(error):
        with Session(study, "ours"):
            study.set_user_attr = broken
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    del study.set_user_attr
    with pytest.raises(OSError, match="disk full"):
        work(None)
