"""Several guidances in a row."""

from contextlib import contextmanager

import torch
from toy import made

from amg.guidance import AntiMemorizationGuidance, Chain, Guidance
from amg.similarity import Match
from amg.thresholds import Constant


class Add(Guidance):
    """Adds to ε of one row, remembers what it saw, shifts, and leaves its name wherever it may."""

    def __init__(self, name: str, amount: float, row: int = 0, shift: float | None = None, log: list | None = None):
        self.name, self.amount, self.row, self.by, self.log = name, amount, row, shift, log

    def __call__(self, step, state):
        eps = step.eps.clone()
        eps[self.row] += self.amount
        return eps, (state or 0, step)

    def shift(self, step, eps, state, x_prev):
        return None if self.by is None else torch.full_like(eps, self.by)

    def prompts(self, prompts, seeds):
        return [prompt + self.name for prompt in prompts]

    def prepare(self, model, prompts, condition, x_T, seeds, start):
        return condition + self.name, x_T + self.amount

    @contextmanager
    def attach(self, model, asked):
        self.log.append(f"enter {self.name}")
        yield
        self.log.append(f"leave {self.name}")


def test_each_sees_eps_and_x0_as_the_ones_before_left_them_and_the_original_branches():
    eps, (_, (_, seen)) = Chain([Add("a", 0.2), Add("b", 0.1)])(made(), None)
    assert torch.allclose(eps[0], torch.tensor(0.8, dtype=torch.float64))
    assert torch.allclose(seen.eps[0], torch.tensor(0.7, dtype=torch.float64))
    assert torch.allclose(seen.x0[0], torch.tensor((0.8 - 0.6 * 0.7) / 0.8, dtype=torch.float64))
    assert torch.equal(seen.eps_cond, made().eps_cond) and torch.equal(seen.eps_uncond, made().eps_uncond)


def test_x0_of_rows_that_were_left_alone_keeps_its_bits():
    x0 = made().x0.clone()
    x0[1:] = 0.1234  # as the scheduler had it, e.g. clipped: not what ε alone would give
    _, (_, (_, seen)) = Chain([Add("a", 0.2), Add("b", 0.1)])(made(x0=x0), None)
    assert torch.equal(seen.x0[1:], x0[1:]) and not torch.equal(seen.x0[0], x0[0])


def test_x0_stays_clipped_where_the_scheduler_clips():
    _, (_, (_, seen)) = Chain([Add("a", -5.0), Add("b", 0.1)])(made(clip=1.0), None)
    assert torch.equal(seen.x0[0], torch.ones(3, 1, 1, dtype=torch.float64))


def test_every_guidance_gets_its_own_state_back():
    chain = Chain([Add("a", 0.2), Add("b", 0.1)])
    _, first = chain(made(), None)
    _, second = chain(made(), (("mine", None), ("yours", None)))
    assert [state[0] for state in first] == [0, 0]
    assert [state[0][0] for state in second] == ["mine", "yours"]


def test_a_chain_of_one_equals_its_guidance():
    guidance = AntiMemorizationGuidance(
        lambda images: Match(images.flatten(1).sum(1), torch.arange(len(images))), Constant(0.0), c3=2, terms="sim"
    )
    alone, state = guidance(made(), None)
    chained, (other,) = Chain([guidance])(made(), None)
    assert torch.equal(alone, chained) and torch.equal(state.sim, other.sim)


def test_an_empty_chain_changes_nothing():
    step = made()
    assert Chain([])(step, None) == (step.eps, ())
    assert Chain([]).shift(step, step.eps, (), step.x_t) is None


def test_shifts_add_up_and_none_is_nothing():
    step = made()
    chain = Chain([Add("a", 0.2, shift=1.0), Add("b", 0.1), Add("c", 0.1, shift=0.5)])
    assert torch.equal(chain.shift(step, step.eps, (None,) * 3, step.x_t), torch.full_like(step.eps, 1.5))
    assert Chain([Add("a", 0.2)]).shift(step, step.eps, (None,), step.x_t) is None


def test_prompts_and_preparation_run_from_left_to_right():
    chain = Chain([Add("a", 1.0), Add("b", 2.0)])
    assert chain.prompts(["p", "q"], (0, 1)) == ["pab", "qab"]
    assert chain.prepare(None, None, "c", 0.5, (0,), None) == ("cab", 3.5)


def test_attached_contexts_nest():
    log = []
    with Chain([Add("a", 0, log=log), Add("b", 0, log=log)]).attach(None, None):
        log.append("within")
    assert log == ["enter a", "enter b", "within", "leave b", "leave a"]


def test_a_chain_needs_prompts_if_one_of_its_guidances_does():
    def amg(terms):
        return AntiMemorizationGuidance(lambda images: None, Constant(0), terms=terms)

    assert Chain([amg("sim"), amg("spe")]).needs_prompts and not Chain([amg("sim"), Guidance()]).needs_prompts
