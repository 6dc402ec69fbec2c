"""Whole batches: rows that start together and take each step together, for models whose rows cannot join at any step.

These are encoder-decoders, decoders without position ids of their own for every row, models with another memory than
keys and values of all tokens, and rows beyond the length from which on a model turns positions otherwise. Rows leave
when they are done; others begin when all have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from deltatune.models.architecture import family
from deltatune.serving.engine.decoding_lane import take_tokens
from deltatune.serving.engine.engine_jobs import GenerateJob
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.routed_host import RoutedHost, logits_by_row
from deltatune.serving.serving_errors import CannotServe


class WholeBatchLane:
    """Prompts that wait for the next batch, and the batch that runs."""

    def __init__(self, routed: RoutedHost, limits: EngineLimits, end_ids: frozenset[int], padding: int) -> None:
        """padding: the id that fills the encoder's rows, as in `deltatune.training.generate_texts`."""
        self.routed, self.limits, self.end_ids, self.padding = routed, limits, end_ids, padding
        self.reading: list[GenerateJob] = []
        self.running: list[GenerateJob] = []
        self.batch: RunningBatch | None = None

    @property
    def jobs(self) -> list[GenerateJob]:
        """All of its jobs."""
        return [*self.reading, *self.running]

    def add(self, job: GenerateJob) -> None:
        """Take up a job for a later batch."""
        self.reading.append(job)

    def drop_ended(self) -> None:
        """Let go of jobs that have ended, and of their memory."""
        self.reading = [job for job in self.reading if not job.ended]
        kept = [i for i, job in enumerate(self.running) if not job.ended]
        if len(kept) < len(self.running):
            self.running = [self.running[i] for i in kept]
            if self.batch is not None and kept:
                self.batch.keep_(kept)
        if not self.running:
            self.batch = None

    def clear(self) -> None:
        """Let go of all jobs."""
        self.reading, self.running, self.batch = [], [], None

    def read(self) -> bool:
        """Begin a batch, if none runs and a job waits: with the oldest and those that can be in a batch with it."""
        if self.running or not self.reading:
            return False
        jobs = self._next_jobs()
        for job in jobs:
            job.begin()
        self.reading = [job for job in self.reading if job not in jobs]
        logits, errors = logits_by_row(partial(self._begin, jobs), [])
        if errors and len(jobs) > 1:  # each in a batch of its own, which finds the guilty one
            for job in jobs:
                job.apart = True
            self.reading = [*jobs, *self.reading]
            return True
        self.running = jobs
        take_tokens(jobs, logits, errors, self.end_ids)
        return True

    def step(self) -> bool:
        """One token for every row of the batch, if one runs."""
        if not self.running or self.batch is None:
            return False
        logits, errors = logits_by_row(partial(self._step, self.batch), [])
        errors = {i: errors[0] for i in range(len(self.running))} if errors else {}
        take_tokens(self.running, logits, errors, self.end_ids)
        return True

    def _next_jobs(self) -> list[GenerateJob]:
        oldest = self.reading[0]
        if oldest.apart:
            return [oldest]
        decoder = not self.routed.host.sites.facts.encoder_decoder
        like = [
            job
            for job in self.reading
            if not job.apart and (not decoder or len(job.prompt.ids) == len(oldest.prompt.ids))
        ]
        widest = max(1, self.limits.pass_tokens // len(oldest.prompt.ids))
        like.sort(key=lambda job: (job is not oldest, abs(len(job.prompt.ids) - len(oldest.prompt.ids))))
        return like[: min(widest, self.limits.rows)]

    def _begin(self, jobs: Sequence[GenerateJob]) -> Tensor:
        self.batch = RunningBatch(self.routed, [job.prompt.ids for job in jobs], self.padding)
        with self.routed.routed([job.route for job in jobs]):
            return self.batch.begin()

    def _step(self, batch: RunningBatch) -> Tensor:
        with self.routed.routed([job.route for job in self.running]):
            return batch.step([job.generated[-1] for job in self.running])


class RunningBatch:
    """Rows of one batch and the model's memory of them, of whatever kind it is."""

    def __init__(self, routed: RoutedHost, prompts: Sequence[list[int]], padding: int) -> None:
        self.model, self.host, self.device = routed.host.model, routed.host, routed.device
        self.bfloat16, self.rope_switch = routed.bfloat16, routed.rope_switch
        width = max(map(len, prompts))
        self.ids = torch.tensor([ids + [padding] * (width - len(ids)) for ids in prompts], device=self.device)
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in prompts]
        self.mask = torch.tensor(mask, device=self.device)
        self.encoder_decoder = family(self.model.config) == "encoder-decoder"  # type: ignore[arg-type]
        self.memory: Any = None
        self.encoded: Any = None
        """The encoder's output, in the model's own form."""
        names = signature(self.model.forward).parameters
        self.remembers = {"past_key_values", "use_cache"} <= names.keys()

    def begin(self) -> Tensor:
        """Logits (B, V) of the first tokens."""
        if not self.encoder_decoder:
            return self._decoder(self.ids)
        first = torch.full((len(self.ids), 1), self._start(), device=self.device)
        kept: list[Any] = []
        listening = self.model.get_encoder().register_forward_hook(lambda module, args, output: kept.append(output))  # type: ignore[operator]
        try:
            outputs = self._run(input_ids=self.ids, attention_mask=self.mask, decoder_input_ids=first)
        finally:
            listening.remove()
        self.mask = self.host.mask if self.host.mask is not None else self.mask  # with virtual tokens
        self.encoded, self.memory = kept[0], outputs.past_key_values
        logits: Tensor = outputs.logits[:, -1].float()
        forced = self._special("forced_bos_token_id")  # the target language of a translator
        if forced is not None:
            logits = torch.full_like(logits, -1e9).index_fill_(1, torch.tensor(forced, device=self.device), 0.0)
        return logits

    def _start(self) -> int:
        """The token with which the decoder begins, as `generate` finds it."""
        start = self._special("decoder_start_token_id")
        start = self._special("bos_token_id") if start is None else start
        if not isinstance(start, int):
            raise CannotServe(
                f"{type(self.model).__name__} does not say with which token its decoder begins: set "
                "decoder_start_token_id in its generation config"
            )
        return start

    def _special(self, name: str) -> Any:
        """A special token of the model's generation config, or else of its config."""
        of_generation = getattr(getattr(self.model, "generation_config", None), name, None)
        return getattr(self.model.config, name, None) if of_generation is None else of_generation

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) behind the next token of each row."""
        new = torch.tensor(tokens, device=self.device)[:, None]
        if not self.encoder_decoder:
            self.mask = torch.cat([self.mask, torch.ones_like(new)], 1)
            self.ids = torch.cat([self.ids, new], 1)
            if self.ids.shape[1] - 1 == self.rope_switch:  # keys of before were turned otherwise: all is read anew
                self.memory = None
            return self._decoder(new if self.memory is not None else self.ids)
        outputs = self._run(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=new,
            past_key_values=self.memory,
        )
        self.memory = outputs.past_key_values
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def keep_(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        index = torch.tensor(rows, device=self.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        if self.encoded is not None:
            self.encoded.last_hidden_state = self.encoded.last_hidden_state[index]
        if self.memory is not None:
            self.memory.reorder_cache(index)

    def _decoder(self, ids: Tensor) -> Tensor:
        if not self.remembers:
            outputs = self._run(input_ids=ids, attention_mask=self.mask)
        else:
            outputs = self._run(input_ids=ids, attention_mask=self.mask, past_key_values=self.memory)
            self.memory = outputs.past_key_values
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def _run(self, **inputs: Any) -> Any:
        encodes = self.encoder_decoder and self.encoded is None and getattr(self.model.config, "use_cache", True)
        more = {"use_cache": True} if self.remembers and not encodes else {}  # some encoders refuse to be told
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.model(**{name: value for name, value in inputs.items() if value is not None}, **more)
