"""Deliveries in the background: their order, their errors, and what happens when one never ends."""

import threading
import time

import pytest

from interpretable_training.callbacks.watching.background_sender import MOST, BackgroundSender


def test_deliveries_are_made_in_order_by_one_thread():
    made, sender = [], BackgroundSender()
    for i in range(50):
        sender.put(lambda i=i: made.append((i, threading.get_ident())))
    sender.drain()
    assert [i for i, _ in made] == list(range(50))
    assert threading.get_ident() not in {thread for _, thread in made}


def test_caller_does_not_wait_for_a_delivery():
    release, sender = threading.Event(), BackgroundSender()
    start = time.perf_counter()
    for _ in range(MOST):
        sender.put(release.wait)
    assert time.perf_counter() - start < 1
    release.set()
    sender.drain()


def test_errors_reach_the_next_call_and_stop_nothing():
    made, sender = [], BackgroundSender()

    def fail():
        raise OSError("disk")

    sender.put(fail)
    with pytest.raises(OSError, match="disk"):
        sender.drain()
    sender.put(lambda: made.append(1))
    sender.drain()
    assert made == [1]


def test_a_delivery_that_never_ends_costs_the_patience_once():
    release, sender = threading.Event(), BackgroundSender(patience=0.3)
    for _ in range(MOST):
        sender.put(release.wait)
    start = time.perf_counter()
    for _ in range(20):
        with pytest.raises(TimeoutError, match=r"expected the loggers to take what is sent within 0\.3 s"):
            sender.put(lambda: None)
    with pytest.raises(TimeoutError):
        sender.drain()
    assert 0.3 <= time.perf_counter() - start < 3
    assert len(sender.waiting) == MOST  # bounded


def test_sending_goes_on_when_the_logger_answers_again():
    release, made, sender = threading.Event(), [], BackgroundSender(patience=0.1)
    sender.put(release.wait)
    with pytest.raises(TimeoutError):
        sender.drain()
    release.set()
    while sender.running:
        time.sleep(0.01)
    sender.put(lambda: made.append(1))
    sender.drain()
    assert made == [1]


def test_threads_end_when_nothing_waits():
    before = threading.active_count()
    for _ in range(5):
        sender = BackgroundSender()
        sender.put(lambda: None)
        sender.drain()
        while sender.running:
            time.sleep(0.001)
    time.sleep(0.05)
    assert threading.active_count() <= before
