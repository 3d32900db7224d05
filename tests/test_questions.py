"""A slow question is asked at most once a second, however often an answer would be welcome."""

import pytest

from howlow.meters import clock
from howlow.meters.questions import Question


class Driver:
    """A driver whose answers take so long, on a clock of its own."""

    def __init__(self, takes_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.takes_s, self.now_s, self.asked = takes_s, 100.0, 0
        monkeypatch.setattr(clock, "now_s", lambda: self.now_s)

    def answer(self) -> int:
        self.asked += 1
        self.now_s += self.takes_s
        return self.asked


def test_a_fast_question_is_always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(0.00002, monkeypatch)
    question = Question(driver.answer)
    assert not question.is_slow
    assert None not in [question.if_due() for _ in range(10)]


def test_a_slow_one_once_a_second_and_an_answer_asked_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(0.003, monkeypatch)
    question = Question(driver.answer)
    assert question.is_slow
    question.now()
    assert question.if_due() is not None  # the first one is never left out
    found = []
    for _ in range(80):
        driver.now_s += 0.247
        found.append(question.if_due())
    assert 15 <= len([answer for answer in found if answer is not None]) <= 20
    driver.now_s += 5.0
    assert question.now() is not None
    assert question.if_due() is None


def test_an_interruption_does_not_make_a_question_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(0.00002, monkeypatch)

    def interrupted() -> int:
        driver.takes_s = 0.02 if driver.asked == 1 else 0.00002
        return driver.answer()

    assert not Question(interrupted).is_slow
