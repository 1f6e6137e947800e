"""Which request is held back, and which one ends, when devices break over requests."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node.scenes import A, B, answers, ends, node_with, request
from tokenmux.core.facts import FIRST_INSTANCE, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import Pause, Resume, Unregister
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.node.blame import CLEARED_TOKENS, N_DEATHS, N_LOADS, Blame
from tokenmux.testing.virtual_node import NodeOnVirtualTime

R, S, T = RequestId("r"), RequestId("s"), RequestId("t")


def anyone(_: RequestId) -> bool:
    return True


def suspects(*requests: RequestId) -> Blame:
    """Devices have broken twice over these."""
    blame = Blame()
    for _ in range(N_DEATHS):
        blame.died(requests)
    return blame


def test_a_request_is_a_suspect_after_its_second_death_and_waits() -> None:
    blame = Blame()
    assert blame.died([R, S]) == (None, [])
    assert blame.died([R]) == (None, [R])
    assert (blame.is_waiting(R), blame.is_waiting(S)) == (True, False)


def test_suspects_are_tried_one_after_another() -> None:
    blame = suspects(R, S)
    assert blame.next_trial(anyone) == R
    assert not blame.is_waiting(R)
    assert blame.next_trial(anyone) is None, "R is being tried"
    for _ in range(CLEARED_TOKENS):
        assert blame.next_trial(anyone) is None
        blame.drew(R)
    assert blame.next_trial(anyone) == S


def test_one_over_which_a_device_breaks_in_its_trial_is_guilty_and_those_beside_it_are_not() -> None:
    blame = suspects(R, S)
    assert blame.next_trial(anyone) == R
    assert blame.died([R, T]) == (R, [])
    blame.forget(R)
    assert blame.died([T]) == (None, []), "its first"
    assert blame.next_trial(anyone) == S


def test_progress_between_two_deaths_clears() -> None:
    blame = Blame()
    blame.died([R])
    assert [blame.drew(R) for _ in range(CLEARED_TOKENS)] == [False] * (CLEARED_TOKENS - 1) + [True]
    assert not blame.in_use
    assert blame.died([R]) == (None, [])


def test_one_that_cannot_run_lets_others_be_tried_first() -> None:
    blame = suspects(R, S)
    assert blame.next_trial(lambda request: request != R) == S
    blame.forget(S)
    assert blame.next_trial(lambda request: request != R) is None
    assert blame.next_trial(anyone) == R
    blame.adjourn(R)
    assert blame.is_waiting(R)
    assert blame.died([R]) == (None, [R]), "it was not being tried"


def test_a_model_is_guilty_after_deaths_in_a_row() -> None:
    blame = Blame()
    assert [blame.died_loading(A) for _ in range(N_LOADS - 1)] == [False] * (N_LOADS - 1)
    blame.loaded(A)
    assert [blame.died_loading(A) for _ in range(N_LOADS)] == [False] * (N_LOADS - 1) + [True]
    assert not blame.died_loading(B)


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["died", "drew", "forget", "trial", "adjourn"]),
        st.frozensets(st.sampled_from([R, S, T])),
    ),
    max_size=40,
)


@given(DEEDS)
@settings(max_examples=300)
def test_at_most_one_is_tried_and_nobody_is_guilty_without_a_trial(
    deeds: list[tuple[str, frozenset[RequestId]]],
) -> None:
    blame = Blame()
    tried: RequestId | None = None
    for deed, requests in deeds:
        running = [request for request in sorted(requests) if not blame.is_waiting(request)]
        match deed:
            case "died":
                guilty, new = blame.died(running)
                assert guilty == (tried if tried in running else None)
                assert set(new) <= set(running)
                assert all(blame.is_waiting(request) for request in new)
                if guilty is not None:
                    blame.forget(guilty)
                    tried = None
            case "drew":
                for request in running:
                    if blame.drew(request) and request == tried:
                        tried = None
            case "forget":
                for request in requests:
                    blame.forget(request)
                    tried = None if tried == request else tried
            case "adjourn":
                for request in requests:
                    blame.adjourn(request)
                    tried = None if tried == request else tried
            case "trial":
                found = blame.next_trial(lambda request, allowed=requests: request in allowed)
                assert tried is None or found is None
                assert found is None or found in requests
                tried = found or tried
        assert tried is None or not blame.is_waiting(tried)
    for request in (R, S, T):
        blame.forget(request)
    assert not blame.in_use


# ── in a node ───────────────────────────────────────────────────────────────────────────────────────────────


def breaks_over(body: NodeOnVirtualTime, *guilty: RequestId) -> None:
    """Have a device break soon after it has begun a step with one of these."""

    def look(index: int, at_s: float, effects: object) -> None:
        device = body.node.devices[FIRST_INSTANCE]

        def look_again() -> None:
            step = device.step
            if step is not None and set(guilty) & {c.request for c in step.started.operation.chunks}:
                body.executor_of(index).kill()

        body.clock.call_at(at_s + 1e-4, look_again)

    body.node.observers.append(look)


def break_over_both(body: NodeOnVirtualTime) -> None:
    """Have the device break with two requests in a step, until both are suspects."""
    for _ in range(N_DEATHS):
        device = body.node.devices[FIRST_INSTANCE]
        while device.step is None or len(device.step.started.operation.chunks) < 2:
            body.clock.run_next()
        n_executors = len(body.executors)
        body.executor_of(0).kill()
        while len(body.executors) == n_executors:
            body.clock.run_next()


def drawn(body: NodeOnVirtualTime, name: str) -> int:
    return sum(isinstance(m, Tokens) and m.request == name for m in body.said)


def test_only_the_guilty_request_ends_and_its_neighbours_are_served_in_full() -> None:
    body = node_with(n_output={"bad": 100, "r": 60, "s": 60})
    start_s = body.clock.now_s()
    breaks_over(body, RequestId("bad"))
    for i, name in enumerate(("r", "bad", "s")):
        body.submit_at(request(name, A, start_s + 0.01 * i, 60 if name != "bad" else 100))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH, "s": FinishReason.LENGTH, "bad": FinishReason.FAILED}
    assert (drawn(body, "r"), drawn(body, "s")) == (60, 60)
    (end,) = [m for m in body.said if isinstance(m, Finished) and m.request == "bad"]
    assert "is given up: devices broke over it" in end.detail
    assert body.node.devices[FIRST_INSTANCE].n_deaths <= 2 * N_DEATHS
    body.pool.check_integrity()


def test_a_suspect_whose_client_has_stopped_reading_holds_up_no_other_suspect() -> None:
    body = node_with(n_output={"r": 4000, "s": 600})
    start_s = body.clock.now_s()
    for name, n in (("r", 4000), ("s", 600)):
        body.submit_at(request(name, A, start_s, n))
    break_over_both(body)
    phases = {m.phase for m in body.said if isinstance(m, PhaseChanged)}
    assert RequestPhase.PAUSED not in phases, "they were held back, not paused by their clients"
    body.send(Pause(R))  # which is being tried
    body.clock.run()
    assert ends(body) == {"s": FinishReason.LENGTH}
    body.send(Resume(R))
    body.clock.run()
    assert ends(body)["r"] is FinishReason.LENGTH
    assert (drawn(body, "r"), drawn(body, "s")) == (4000, 600)


def until_loading(body: NodeOnVirtualTime, model: ModelId) -> None:
    while (load := body.node.devices[FIRST_INSTANCE].load_in_flight()) is None or load.model.id != model:
        body.clock.run_next()


def test_a_model_over_which_devices_break_is_refused_until_it_is_registered_again() -> None:
    body = node_with(n_output={"r": 10, "s": 10, "t": 10})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 10))
    for _ in range(N_LOADS):
        until_loading(body, A)
        body.executor_of(0).kill()
        body.clock.run_next()
    body.submit_at(request("s", A, body.clock.now_s() + 1.0, 10))
    body.submit_at(request("t", B, body.clock.now_s() + 1.0, 10))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.FAILED, "s": FinishReason.FAILED, "t": FinishReason.LENGTH}
    details = [m.detail for m in body.said if isinstance(m, Finished) and m.request in ("r", "s")]
    assert all("devices broke again and again when it was loaded" in detail for detail in details)
    body.send(Unregister(A))
    assert answers(body)[-1] == ""
    assert not body.node.accusations.refused
    body.pool.check_integrity()
