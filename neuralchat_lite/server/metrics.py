"""Prometheus metrics, under vLLM's names where they mean the same, for its dashboards.

What the schedulers count is read when somebody asks; what belongs to one answer is observed when it
ends. All answers of a model carry its name as `model_name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from neuralchat_lite.generation.sequence import Piece

if TYPE_CHECKING:
    from neuralchat_lite.generation.handle import Handle
    from neuralchat_lite.server.desk import Desks

LABELS = ("model_name",)
TIMES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
# finish_reason of ours -> vLLM's and OpenAI's
REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
# of the schedulers: (name, what it is, its value in Scheduler.describe())
COUNTED = (
    ("prefix_cache_hits", "Tokens of prompts that were remembered.", "cached_tokens"),
    ("num_preemptions", "Sequences that gave up their keys and values.", "preemptions"),
    ("prompt_tokens", "Tokens of prompts, also remembered ones.", "all_prompt_tokens"),
    ("generation_tokens", "New tokens.", "new_tokens"),
    ("prefix_cache_queries", "Tokens of prompts that were looked for.", "all_prompt_tokens"),
)
MEASURED = (
    ("num_requests_running", "Answers that take part in steps.", "running"),
    ("num_requests_waiting", "Answers that wait.", "waiting"),
    ("kv_cache_usage_perc", "Part of the memory for keys and values in use, 0 to 1.", "kv_usage"),
)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first = self.histogram("time_to_first_token_seconds", "To an answer's first token.")
        self.between = self.histogram(
            "request_time_per_output_token_seconds", "Mean time of an answer's later tokens."
        )
        self.whole = self.histogram("e2e_request_latency_seconds", "From arrival to the end.")
        self.queued = self.histogram("request_queue_time_seconds", "Before an answer's first step.")
        self.read = self.histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.written = self.histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.ended = self.counter("request_success", "Answers, by their end.", "finished_reason")
        self.drafted = self.counter("spec_decode_num_draft_tokens", "Tokens that were guessed.")
        self.accepted = self.counter("spec_decode_num_accepted_tokens", "Guesses that were right.")
        self.too_many = Counter(
            "neuralchat_lite:requests_refused",
            "Requests for which there was no room (429).",
            LABELS,
            registry=self.registry,
        )

    def histogram(self, name: str, what: str, buckets: tuple[float, ...] = TIMES) -> Histogram:
        return Histogram(f"vllm:{name}", what, LABELS, registry=self.registry, buckets=buckets)

    def counter(self, name: str, what: str, *more: str) -> Counter:
        return Counter(f"vllm:{name}", what, (*LABELS, *more), registry=self.registry)

    def finished(self, name: str, last: Piece, handle: Handle) -> None:
        """An answer has come to its end; last: its last piece"""
        timings, reason = last.timings, last.finish_reason
        assert timings is not None and reason is not None
        self.first.labels(name).observe(timings.time_to_first_token_s)
        if timings.time_per_token_s is not None:
            self.between.labels(name).observe(timings.time_per_token_s)
        self.whole.labels(name).observe(handle.age_s)
        self.queued.labels(name).observe(handle.queued_s)
        self.read.labels(name).observe(timings.prompt_tokens)
        self.written.labels(name).observe(timings.new_tokens)
        self.ended.labels(name, REASONS[reason]).inc()
        self.drafted.labels(name).inc(timings.drafted)
        self.accepted.labels(name).inc(timings.accepted)

    def refused(self, name: str) -> None:
        self.too_many.labels(name).inc()

    def watch(self, desks: Desks) -> None:
        self.registry.register(Schedulers(desks))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Schedulers(Collector):
    """What the schedulers of all models say now."""

    def __init__(self, desks: Desks) -> None:
        self.desks = desks

    def collect(self) -> Iterator[Metric]:
        found = {name: state_of(desk.model.scheduler) for name, desk in self.desks.all.items()}
        for names, kind in ((COUNTED, CounterMetricFamily), (MEASURED, GaugeMetricFamily)):
            for name, what, key in names:
                family = kind(f"vllm:{name}", what, labels=LABELS)
                for model, state in found.items():
                    family.add_metric([model], state[key])
                yield family


def state_of(scheduler: Any) -> dict[str, Any]:
    state: dict[str, Any] = scheduler.describe()
    memory = state.get("kv_memory")
    state["kv_usage"] = state["kv_bytes"] / memory if memory else 0.0
    state["all_prompt_tokens"] = state["prompt_tokens"] + state["cached_tokens"]
    return state
