"""Requests whose output obeys a grammar wait until their device has compiled it, and others do not."""

from tests.node.scenes import A, answers, ends, node_with, request
from tokenmux.core.grammar import Grammar
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Cancel, Pause, Resume, Submit, Unregister
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.launches import AddGrammar, RemoveGrammar, StepLaunch
from tokenmux.messages.reports import Finished
from tokenmux.node.grammars import MOST_IDLE
from tokenmux.testing.virtual_node import NodeOnVirtualTime

G = Grammar.of("start: /a*/")


def submit(body: NodeOnVirtualTime, name: str, grammar: Grammar | None = G, n_output: int = 5) -> None:
    asked = request(name, A, body.clock.now_s(), n_output)
    body.send(Submit(asked, tuple(range(asked.n_prompt)), Sampling(), grammar=grammar))


def added(body: NodeOnVirtualTime, device: int = 0) -> list[str]:
    log = body.executor_of(device).log
    return [instruction.grammar.id for instruction in log if isinstance(instruction, AddGrammar)]


def n_steps(body: NodeOnVirtualTime) -> int:
    return sum(isinstance(instruction, StepLaunch) for instruction in body.executor_of(0).log)


def compiled(body: NodeOnVirtualTime, grammar: Grammar = G, error: str = "", device: int = 0) -> None:
    body.executor_of(device).say(GrammarReady(A, grammar.id, error))
    body.clock.run()


def test_a_request_waits_for_its_grammar_and_others_do_not() -> None:
    body = node_with(n_output={"r": 5, "plain": 5, "again": 5})
    submit(body, "r")
    body.clock.run()
    assert added(body) == [G.id]
    assert n_steps(body) == 0
    shown = [m.phase for m in body.said if isinstance(m, PhaseChanged) and m.request == "r"]
    assert RequestPhase.PAUSED not in shown
    submit(body, "plain", None)
    body.clock.run()
    assert ends(body) == {"plain": FinishReason.LENGTH}
    compiled(body)
    assert ends(body)["r"] is FinishReason.LENGTH
    submit(body, "again")
    body.clock.run()
    assert ends(body)["again"] is FinishReason.LENGTH
    assert added(body) == [G.id], "it is known there"


def test_the_output_so_far_comes_with_every_step() -> None:
    body = node_with(n_output={"r": 5})
    submit(body, "r")
    body.clock.run()
    compiled(body)
    steps = [i for i in body.executor_of(0).log if isinstance(i, StepLaunch)]
    told = [segment.grammar for step in steps for segment in step.segments if segment.draws]
    assert [len(one.output) for one in told if one is not None][:1] == [0]
    assert all(one is not None and one.id == G.id for one in told)


def test_a_grammar_that_cannot_be_compiled_ends_its_requests_with_the_reason() -> None:
    body = node_with(n_output={"r": 5})
    submit(body, "r")
    body.clock.run()
    compiled(body, error="too large")
    (end,) = (message for message in body.said if isinstance(message, Finished))
    assert end.reason is FinishReason.FAILED
    assert "too large" in end.detail


def test_a_request_that_is_paused_meanwhile_stays_so() -> None:
    body = node_with(n_output={"r": 5})
    submit(body, "r")
    body.clock.run()
    body.send(Pause(RequestId("r")))
    body.send(Resume(RequestId("r")))
    body.send(Pause(RequestId("r")))
    compiled(body)
    assert n_steps(body) == 0
    body.send(Resume(RequestId("r")))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_a_request_can_be_cancelled_while_it_waits() -> None:
    body = node_with()
    submit(body, "r")
    body.clock.run()
    body.send(Cancel(RequestId("r")))
    compiled(body)
    assert ends(body) == {"r": FinishReason.CANCELLED}
    assert n_steps(body) == 0


def test_another_executor_is_told_and_its_requests_wait_again() -> None:
    body = node_with(n_output={"r": 500})
    submit(body, "r", n_output=500)
    body.clock.run()
    body.executor_of(0).kill()
    body.clock.run()
    assert added(body).count(G.id) >= 1
    assert n_steps(body) == 0
    compiled(body)
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_grammars_without_requests_are_forgotten_in_the_end() -> None:
    body = node_with(n_output={f"r{number}": 5 for number in range(MOST_IDLE + 3)})
    for number in range(MOST_IDLE + 3):
        grammar = Grammar.of(f"start: /a{number}/")
        submit(body, f"r{number}", grammar)
        body.clock.run()
        compiled(body, grammar)
    log = body.executor_of(0).log
    gone = [instruction.grammar_id for instruction in log if isinstance(instruction, RemoveGrammar)]
    assert gone == [Grammar.of(f"start: /a{number}/").id for number in range(2)]


def test_a_model_takes_its_grammars_with_it() -> None:
    body = node_with(n_output={"r": 5})
    submit(body, "r")
    body.clock.run()
    compiled(body)
    body.send(Unregister(A))
    body.clock.run()
    assert answers(body)[-1] == ""
    assert not body.node.grammars.knows(A)
