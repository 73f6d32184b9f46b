"""/metrics, under the names of vLLM."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from .calls import Client


def values(client: Client) -> dict[str, float]:
    text = client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model_name") == "nano":
                ended = sample.labels.get("finished_reason")
                found[sample.name + (f",{ended}" if ended else "")] = sample.value
    return found


def test_answers_are_counted_under_the_names_of_vllm(client: Client) -> None:
    before = values(client)
    usage = client.chat().json()["usage"]
    client.chat(max_tokens=200)
    after = values(client)

    def grown(name: str) -> float:
        return after[f"vllm:{name}"] - before.get(f"vllm:{name}", 0)

    assert grown("prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grown("generation_tokens_total") > 24
    assert grown("request_success_total,length") == grown("request_success_total,stop") == 1
    for name in (
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert grown(f"{name}_count") == 2
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert 0 <= after["vllm:kv_cache_usage_perc"] <= 1
    assert grown("e2e_request_latency_seconds_sum") >= grown("time_to_first_token_seconds_sum")
    for name in ("prefix_cache_hits", "prefix_cache_queries", "num_preemptions"):
        assert f"vllm:{name}_total" in after


def test_a_model_reports_what_runs_and_its_sampling(client: Client) -> None:
    found = client.get("/v1/models/nano").json()
    assert found["id"] == "nano" and found["object"] == "model"
    assert found["sampling_defaults"] == {"temperature": 1.0}
    assert found["report"]["engine"] == "native" and "folder" not in found["report"]
    assert client.get("/v1/models/other").status_code == 404
