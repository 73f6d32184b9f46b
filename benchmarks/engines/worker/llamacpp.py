"""llama.cpp through llama-cpp-python's low-level calls, its files quantized by itself."""

import ctypes
import re
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from engines.gguf_file import write_gguf
from engines.kept import kept, room

FILE = "model.gguf"
TYPES = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
CONTEXT = 2304  # of each sequence: the longest prompt and the tokens after it
BATCH = 512  # tokens that go through the model together, llama.cpp's default


def versions():
    return {"llama-cpp-python": llama_cpp.__version__}


def prepare(checkpoint, folder, options):
    Path(folder).mkdir()
    plain = Path(folder, "bf16.gguf")
    write_gguf(checkpoint, plain)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[options["type"]]
    path = Path(folder, FILE)
    failed = llama_cpp.llama_model_quantize(bytes(plain), bytes(path), ctypes.byref(parameters))
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    plain.unlink()


def load(folder, options, threads):
    path = Path(folder)
    return Engine(path if path.is_file() else path / FILE, threads)


class Engine:
    kv_item_bytes = 2

    def __init__(self, path, threads):
        llama_cpp.llama_backend_init()
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(
            bytes(path), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.context, self.sequences, self.positions = None, 0, 0
        self.fed = []  # by `logits`, of the first sequence
        self.open_context(1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.path = path
        self.conditions = {
            "built_for": " ".join(
                re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())
            ),
            "n_ctx": CONTEXT,
            "n_batch": BATCH,
            "kv_cache": "f16",
            "sliding_window": "none: llama.cpp's llama architecture sees everything",
        }

    @property
    def weight_bytes(self):
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(self.path).tensors}
        tied = "output.weight" not in sizes
        return sum(sizes.values()) - (0 if tied else sizes["token_embd.weight"])

    def open_context(self, sequences, positions=CONTEXT):
        """A context for so many sequences; loading opens one for a single sequence."""
        if (self.sequences, self.positions) == (sequences, positions):
            return
        self.fed = []
        if self.context:
            llama_cpp.llama_free(self.context)
        self.sequences = self.positions = 0
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = positions * sequences
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.no_perf = False
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {parameters.n_ctx} tokens")
        self.sequences, self.positions = sequences, positions

    def generate(self, prompts, new_tokens, tick):
        self.open_context(len(prompts))
        self.fed = []
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        llama_cpp.llama_perf_context_reset(self.context)
        batch = llama_cpp.llama_batch_init(max(BATCH, len(prompts)), 0, 1)
        try:
            last = [self.feed_prompt(batch, ids, number) for number, ids in enumerate(prompts)]
            tokens = [[token] for token in last]
            tick()
            for step in range(new_tokens - 1):
                position = len(prompts[0]) + step
                entries = [(ids[-1], position, number) for number, ids in enumerate(tokens)]
                self.decode(batch, entries, range(len(entries)))
                for number, ids in enumerate(tokens):
                    ids.append(self.likeliest(number))
                tick()
        finally:
            llama_cpp.llama_batch_free(batch)
        return tokens

    def answer_all(self, prompts, new_tokens, at_once):
        """Continuous batching as llama.cpp's server has it: a token for each sequence that has
        one, the rest of BATCH for prompts, and a slot is taken again as soon as it is free."""
        self.open_context(at_once)
        self.fed = []
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        waiting = list(enumerate(prompts))[::-1]
        slots = [None] * at_once  # (which prompt, number of tokens fed, tokens to feed)
        answers = [[] for _ in prompts]
        try:
            while waiting or any(slots):
                for number, slot in enumerate(slots):
                    if slot is None and waiting:
                        which, ids = waiting.pop()
                        llama_cpp.llama_memory_seq_rm(memory, number, 0, -1)
                        slots[number] = (which, 0, list(ids))
                entries, ends = [], {}  # ends: slot -> place of its last row
                in_order = sorted(
                    (number for number, slot in enumerate(slots) if slot),
                    key=lambda number: len(slots[number][2]),  # single tokens first
                )
                for number in in_order:
                    which, fed, ids = slots[number]
                    part = ids[: BATCH - len(entries)]
                    entries += [(token, fed + i, number) for i, token in enumerate(part)]
                    slots[number] = (which, fed + len(part), ids[len(part) :])
                    if part and len(part) == len(ids):
                        ends[number] = len(entries) - 1
                self.decode(batch, entries, ends.values())
                for number, place in ends.items():
                    which, fed, _ = slots[number]
                    token = self.likeliest(place)
                    answers[which].append(token)
                    done = len(answers[which]) == new_tokens
                    slots[number] = None if done else (which, fed, [token])
        finally:
            llama_cpp.llama_batch_free(batch)
        return answers

    def logits(self, ids, tail):
        if len(ids) > self.positions:
            self.open_context(1, room(len(ids)))
        keep = kept(self.fed, ids, tail)
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, keep, -1)
        self.fed = []  # until all is well
        batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        rows = []
        try:
            for first in range(keep, len(ids), BATCH):
                part = ids[first : first + BATCH]
                entries = [(token, first + index, 0) for index, token in enumerate(part)]
                wanted = range(max(0, len(ids) - tail - first), len(part))
                self.decode(batch, entries, wanted)
                rows += [self.logits_at(index).copy() for index in wanted]
        finally:
            llama_cpp.llama_batch_free(batch)
        self.fed = ids
        return np.stack(rows)

    def feed_prompt(self, batch, ids, number):
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            entries = [(token, first + index, number) for index, token in enumerate(part)]
            at_end = first + BATCH >= len(ids)
            self.decode(batch, entries, [len(part) - 1] if at_end else [])
        return self.likeliest(len(part) - 1)

    def decode(self, batch, entries, with_logits):
        """entries: (token, position, sequence) of each"""
        wanted = set(with_logits)
        for index, (token, position, number) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = number
            batch.logits[index] = index in wanted
        batch.n_tokens = len(entries)
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def likeliest(self, index):
        return int(self.logits_at(index).argmax())

    def logits_at(self, index):
        """Valid until the next decode."""
        logits = llama_cpp.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(logits, (self.vocab_size,))

    def own(self):
        """llama.cpp's own clock, which counts one sequence's tokens and those of prompts apart."""
        if self.sequences != 1:
            return {}
        found = llama_cpp.llama_perf_context(self.context)
        return {
            "clock": "llama_perf_context",
            "prefill_tokens_per_s": 1000 * found.n_p_eval / found.t_p_eval_ms,
            "time_per_token_s": found.t_eval_ms / found.n_eval / 1000,
        }
