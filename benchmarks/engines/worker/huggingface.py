"""Shared by the engines that run a transformers model."""

import torch
from engines.kept import kept
from stepping import Positions, Stepper


def tensor_bytes(module):
    """Bytes of all parameters and buffers; of a quantized one, its codes, scales and zeros."""
    seen = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        parts = [tensor]
        if hasattr(tensor, "__tensor_flatten__"):  # torchao: codes, scales, zeros
            names, _ = tensor.__tensor_flatten__()
            parts = [getattr(tensor, name) for name in names]
        for part in parts:
            seen[part.data_ptr()] = part.numel() * part.element_size()
    return sum(seen.values())


def read_per_token(model):
    """Bytes of all weights without the embedding, of which a token reads one row, unless it is
    tied to the head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is embedding.weight
    return tensor_bytes(model) - (0 if tied else tensor_bytes(embedding))


class HuggingFaceEngine:
    """`generate` of transformers; a stopping criterion that never stops sees its steps."""

    def __init__(self, model, kv_item_bytes, conditions):
        self.model = model
        self.kv_item_bytes = kv_item_bytes
        self.conditions = conditions
        self.step, self.positions, self.fed = None, None, []  # of `logits`

    @property
    def weight_bytes(self):
        return read_per_token(self.model)

    def generate(self, prompts, new_tokens, tick):
        ids = torch.tensor(prompts)

        def step(ids, scores, **_):
            tick()
            return torch.zeros(len(ids), dtype=torch.bool)

        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                stopping_criteria=[step],
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
            )
        return out[:, ids.shape[1] :].tolist()

    def logits(self, ids, tail):
        if self.step is None:
            self.step, self.positions = Stepper(self.model), Positions()
        keep = kept(self.fed, ids, tail)
        self.fed = []  # until all is well
        rows = self.step(ids[keep:], self.positions, keep, all_logits=True)
        self.fed = ids
        return rows[-tail:].numpy()

    def own(self):
        return {}
