"""A decoding lane: rows that may share passes. They join once their prompt is read, and leave when they are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from deltatune.serving.engine.engine_jobs import GenerateJob
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.prompt_cache import PromptCache
from deltatune.serving.engine.prompt_reading import read_on_
from deltatune.serving.engine.routed_host import RoutedHost, attempt, logits_by_row
from deltatune.serving.engine.running_cache import RunningCache, States, next_logits
from deltatune.serving.engine.sampling import choose_tokens


class DecodingLane:
    """Prompts that are being read and rows that generate, of adapters that may share a batch."""

    def __init__(
        self, routed: RoutedHost, limits: EngineLimits, end_ids: frozenset[int], prompts: PromptCache | None
    ) -> None:
        self.routed, self.limits, self.end_ids, self.prompts = routed, limits, end_ids, prompts
        self.reading: list[GenerateJob] = []
        """In the order in which they came."""
        self.running: list[GenerateJob] = []
        """By their place in the cache."""
        self.cache = RunningCache()
        self.oldest_first = False
        """Whether the last pass for prompts was for the oldest one."""

    @property
    def jobs(self) -> list[GenerateJob]:
        """All of its jobs."""
        return [*self.reading, *self.running]

    def add(self, job: GenerateJob) -> None:
        """Take up a job; what the prompt cache has of its prompt is not read again."""
        if self.prompts is not None and not job.prompt.at_once:
            job.cache_age = self.prompts.age
            count, states = self.prompts.find(_cache_key(job), job.prompt.ids)
            if count:
                job.prompt.parts, job.prompt.read, job.from_cache = [states], count, count
        self.reading.append(job)

    def drop_ended(self) -> None:
        """Let go of jobs that have ended, and of their memory."""
        self.reading = [job for job in self.reading if not job.ended]
        for place in reversed(range(len(self.running))):
            if self.running[place].ended:
                self._keep_answer(self.running[place], place)
                moved = self.cache.leave(place)
                last = self.running.pop()
                if moved is not None:
                    self.running[place] = last

    def _keep_answer(self, job: GenerateJob, place: int) -> None:
        """Keep the keys and values of a whole answer too: in a chat, the next prompt begins with it."""
        if job.has_answer:
            ids = [*job.prompt.ids, *job.generated][: self.cache.lengths[place]]
            self._keep(job, ids, partial(self.cache.states, place))

    def _keep(self, job: GenerateJob, ids: Sequence[int], states: Callable[[], States]) -> None:
        """Keep keys and values for later prompts, where that is possible and there is memory for it."""
        prompts = self.prompts
        if prompts is not None and not job.prompt.at_once and job.cache_age == prompts.age:
            attempt(lambda: prompts.keep(_cache_key(job), ids, states()))

    def clear(self) -> None:
        """Let go of all jobs."""
        self.reading, self.running = [], []
        self.cache.clear()

    # ---- prompts

    def read(self) -> bool:
        """One pass for prompts, if there are any: at most `pass_tokens` tokens, unless one must be read at once."""
        if not self.reading:
            return False
        jobs, counts = self._next_prompts()
        for job in jobs:
            job.begin()
        alone = [partial(self._pass, [job], [count]) for job, count in zip(jobs, counts, strict=True)]
        logits, errors = logits_by_row(partial(self._pass, jobs, counts), alone)
        finished = [i for i, job in enumerate(jobs) if i in errors or not job.prompt.left]
        self._begin_generating(jobs, finished, logits, errors)
        return True

    def _pass(self, jobs: Sequence[GenerateJob], counts: Sequence[int]) -> Tensor:
        with self.routed.routed([job.route for job in jobs]):
            return read_on_(self.routed.host, [job.prompt for job in jobs], counts, self.routed.bfloat16)

    def _next_prompts(self) -> tuple[list[GenerateJob], list[int]]:
        """The prompts of the next pass, and how many tokens of each: of one and those like it.

        Passes for the oldest and for the shortest take turns, so that no prompt waits for a long one to be read.
        Prompts of one adapter are read together where they fill half a pass, because that is faster.
        """
        budget = self.limits.pass_tokens
        tokens = {
            id(job): job.prompt.left if job.prompt.at_once else min(job.prompt.left, budget) for job in self.reading
        }
        self.oldest_first = not self.oldest_first
        first = self.reading[0] if self.oldest_first else min(self.reading, key=lambda job: job.prompt.left)
        like = [job for job in self.reading if job is not first and bool(job.prompt.read) == bool(first.prompt.read)]
        like.sort(key=lambda job: (job.route != first.route, abs(tokens[id(job)] - tokens[id(first)])))
        jobs, width = [first], tokens[id(first)]
        for job in like:
            wider = max(width, tokens[id(job)])
            half_full = 2 * width * len(jobs) >= budget
            if job.route != first.route and half_full and all(each.route == first.route for each in jobs):
                break
            if wider * (len(jobs) + 1) <= budget:  # with padding
                jobs.append(job)
                width = wider
        jobs.sort(key=lambda job: sorted(job.route.items()))  # rows of one adapter side by side
        return jobs, [tokens[id(job)] for job in jobs]

    def _begin_generating(
        self, jobs: Sequence[GenerateJob], finished: Sequence[int], logits: Tensor | None, errors: dict[int, Exception]
    ) -> None:
        """Take the first token of prompts that were read to their end; the rows then generate."""
        if not finished:
            return
        chosen = None if logits is None else logits[list(finished)]
        take_tokens(
            [jobs[i] for i in finished],
            chosen,
            {n: errors[i] for n, i in enumerate(finished) if i in errors},
            self.end_ids,
        )
        for job in (jobs[i] for i in finished):
            self.reading.remove(job)
            failed = job.ended and not job.has_answer
            if not failed:
                self._keep(job, job.prompt.ids, partial(getattr, job.prompt, "states"))
            if not job.ended:
                joined = attempt(partial(self._join, job))
                if isinstance(joined, Exception):
                    job.end("error", joined)
            job.prompt.parts = []

    def _join(self, job: GenerateJob) -> None:
        self.cache.join(job.prompt.states)
        self.running.append(job)

    # ---- generation

    def step(self) -> bool:
        """One token for every row that generates, if there are any."""
        if not self.running:
            return False
        count = len(self.running)
        room = attempt(self.cache.make_room_for_step)
        if isinstance(room, Exception):
            for job in self.running:
                job.end("error", room)
            return True
        alone = [partial(self._step, i, i + 1) for i in range(count)]
        logits, errors = logits_by_row(partial(self._step, 0, count), alone)
        self.cache.advance()
        take_tokens(self.running, logits, errors, self.end_ids)
        return True

    def _step(self, first: int, last: int) -> Tensor:
        """Logits (rows, V) of the next tokens of some rows."""
        jobs = self.running[first:last]
        with self.routed.routed([job.route for job in jobs]):
            return next_logits(self.routed, self.cache, first, last, [job.generated[-1] for job in jobs])


def take_tokens(
    jobs: Sequence[GenerateJob], logits: Tensor | None, errors: Mapping[int, Exception], end_ids: frozenset[int]
) -> None:
    """Choose and report the next token of each job from logits (B, V); those with an error end."""
    for i, error in errors.items():
        jobs[i].end("error", error)
    going = [i for i, job in enumerate(jobs) if not job.ended]
    if logits is None or not going:
        return
    samplers = [jobs[i].sampler for i in going]
    chosen = logits if len(going) == len(jobs) else logits[going]
    for i, choice in zip(going, choose_tokens(chosen, samplers), strict=True):
        if isinstance(choice, Exception):
            jobs[i].end("error", choice)
        else:
            jobs[i].take(choice, end_ids)


def _cache_key(job: GenerateJob) -> str:
    """What the keys and values of a prompt depend on, beside its tokens; and who may share them."""
    numbers = {resident.host_name: resident.number for resident in job.pinned}
    adapters = sorted((numbers[name], weight) for name, weight in job.route.items())
    return repr((job.request.cache_key, adapters))
