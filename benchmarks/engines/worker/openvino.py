"""OpenVINO GenAI: exported and compressed by optimum-intel, as its own documentation has it."""

import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from engines.kept import kept

FILE = "openvino_model.xml"
CACHE_GB = 2  # of keys and values, all sequences together
PLUGIN_PROPERTIES = ("INFERENCE_NUM_THREADS", "PERFORMANCE_HINT")  # not GenAI's own


def versions():
    return {"openvino": openvino.__version__, "openvino-genai": openvino_genai.__version__}


def prepare(checkpoint, folder, options):
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    settings = {"bits": options["bits"], "sym": options["sym"]}
    if options["bits"] == 4:
        settings.update(group_size=options["group_size"], ratio=1.0)
    model = OVModelForCausalLM.from_pretrained(
        checkpoint,
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(**settings),
    )
    model.save_pretrained(folder)


def load(folder, options, threads):
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ATTENTION_BACKEND": "SDPA",
    }
    return Engine(openvino_genai.LLMPipeline(folder, "CPU", **properties), folder, properties)


def greedy(new_tokens):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    return config


class Engine:
    kv_item_bytes = 1  # the CPU plugin keeps keys and values in u8

    def __init__(self, pipe, folder, properties):
        self.pipe = pipe
        self.folder = folder
        self.properties = properties
        self.reader = self.batching = None
        self.metrics = None
        self.batch = 1
        self.conditions = {**properties, "kv_cache": "u8, the plugin's default"}

    @property
    def weight_bytes(self):
        model = openvino.Core().read_model(Path(self.folder, FILE))
        return sum(
            op.get_byte_size()
            for op in model.get_ops()
            if op.get_type_name() == "Constant" and "embed_tokens" not in op.get_friendly_name()
        )

    def generate(self, prompts, new_tokens, tick):
        config = greedy(new_tokens)
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        streamer = Ticker(tick) if len(prompts) == 1 else None
        start = time.perf_counter()
        result = self.pipe.generate(inputs, config, streamer)
        self.metrics = result.perf_metrics
        self.batch = len(prompts)
        if streamer is None:  # the pipeline streams single sequences only: its own clock has it
            raw = self.metrics.raw_metrics
            at = start + raw.m_times_to_first_token[0] / 1e6  # from microseconds
            tick(at)
            for step in np.diff(raw.m_new_token_times):
                at += step / 1e3  # from milliseconds
                tick(at)
        return [[int(token) for token in tokens] for tokens in result.tokens]

    def answer_all(self, prompts, new_tokens, at_once):
        """By GenAI's continuous batching, which has a pipeline and keys and values of its own."""
        if self.batching is None:
            self.pipe = None  # two models take twice the memory
            settings = openvino_genai.SchedulerConfig()
            settings.max_num_seqs, settings.cache_size = at_once, CACHE_GB
            settings.enable_prefix_caching = False
            properties = {name: self.properties[name] for name in PLUGIN_PROPERTIES}
            self.batching = openvino_genai.ContinuousBatchingPipeline(
                self.folder, settings, "CPU", properties | {"PERFORMANCE_HINT": "THROUGHPUT"}
            )
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        results = self.batching.generate(inputs, [greedy(new_tokens)] * len(inputs))
        return [[int(token) for token in result.m_generation_ids[0]] for result in results]

    def logits(self, ids, tail):
        if self.reader is None:
            self.pipe = None  # its pipeline gives no logits, and two models take twice the memory
            self.reader = Reader(self.folder, self.properties)
        return self.reader.logits(ids, tail)

    def own(self):
        return {
            "clock": "perf_metrics",
            "first_token_s": self.metrics.get_ttft().mean / 1000,
            # It divides the time of a step by the sequences of the batch.
            "time_per_token_s": self.metrics.get_tpot().mean / 1000 * self.batch,
        }


class Reader:
    """The pipeline's model, run directly, since the pipeline returns no logits."""

    def __init__(self, folder, properties):
        settings = {name: properties[name] for name in PLUGIN_PROPERTIES}
        model = openvino.Core().compile_model(str(Path(folder, FILE)), "CPU", settings)
        self.inputs = {name for port in model.inputs for name in port.get_names()}
        self.request = model.create_infer_request()
        self.fed = []

    def logits(self, ids, tail):
        keep = kept(self.fed, ids, tail)
        if keep < len(self.fed):  # its state cannot go back
            keep = 0
        if not keep:
            self.request.reset_state()
        self.fed = []  # until all is well
        found = self.request.infer(
            {
                name: values
                for name, values in {
                    "input_ids": np.array([ids[keep:]], dtype=np.int64),
                    "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
                    "position_ids": np.arange(keep, len(ids), dtype=np.int64)[None],
                    "beam_idx": np.zeros(1, dtype=np.int32),
                }.items()
                if name in self.inputs
            }
        )
        self.fed = ids
        return found["logits"][0, -tail:]


class Ticker(openvino_genai.StreamerBase):
    def __init__(self, tick):
        super().__init__()
        self.tick = tick

    def write(self, token):
        for _ in range(len(token) if isinstance(token, list) else 1):
            self.tick()
        return openvino_genai.StreamingStatus.RUNNING

    def end(self):
        pass
