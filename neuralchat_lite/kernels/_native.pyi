from collections.abc import Sequence

class Projection:
    def __init__(self, compute_dtype: str, /) -> None: ...
    def add(
        self,
        type: str,
        rows: int,
        cols: int,
        data: int,
        scales: int,
        scale_type: str,
        zeros: int,
        minima: int,
        byte_minima: bool,
        blocks_per_group: int,
        bias: int,
        /,
    ) -> None: ...

def linear(
    projection: Projection,
    x: int,
    rows: int,
    norm_weight: int,
    eps: float,
    gate: str,
    accumulate: bool,
    out: int,
    /,
) -> None: ...

class AttentionShape:
    def __init__(
        self,
        heads: int,
        kv_heads: int,
        dim: int,
        window: int,
        scale: float,
        kv_format: str,
        query_norm: int,
        key_norm: int,
        eps: float,
        page_layer: int,
        /,
    ) -> None: ...

def attention(
    shape: AttentionShape,
    qkv: int,
    spans: Sequence[tuple[int, int, int]],
    cos: int,
    sin: int,
    out: int,
    /,
) -> None: ...

class Program:
    def __init__(
        self,
        embedding: Projection,
        norm_weight: int,
        eps: float,
        head: Projection,
        /,
    ) -> None: ...
    def add_layer(
        self,
        attention_norm: int,
        attention_eps: float,
        qkv: Projection,
        shape: AttentionShape,
        table: int,
        output: Projection,
        mlp_norm: int,
        mlp_eps: float,
        gate_up: Projection,
        activation: str,
        down: Projection,
        /,
    ) -> None: ...

def step(
    program: Program,
    ids: int,
    rows: int,
    sequences: Sequence[tuple[int, int, Sequence[int]]],
    cos: int,
    sin: int,
    wanted: int,
    wanted_count: int,
    states: bool,
    out: int,
    seconds: int,
    /,
) -> None: ...
def round_to_nearest(
    weights: int,
    weight_type: str,
    rows: int,
    cols: int,
    group_size: int,
    type: str,
    lowest: float,
    highest: float,
    steps: float,
    symmetric_zero: int,
    scale_type: str,
    scheme: str,
    codes: int,
    scales: int,
    beside: int,
    search: bool,
    /,
) -> bool: ...
def measure_bandwidth(bytes: int, passes: int, /) -> Sequence[float]: ...
def measure_handover(loops: int, /) -> Sequence[float]: ...
def instruction(weight_type: str, compute: str, /) -> tuple[str, str]: ...
def measure_peak(weight_type: str, compute: str, seconds: float, /) -> float: ...
def set_threads(threads: int, /) -> None: ...
def return_freed_memory() -> None: ...
def cpu_features() -> list[str]: ...
def instruction_sets() -> list[tuple[str, str]]: ...
def use_instruction_set(name: str, /) -> None: ...

# Of the process as it ends: see csrc/interpreter_lock.h.
def leave() -> None: ...
def hold_if_leaving() -> None: ...
def held_threads() -> Sequence[int]: ...

# For tests: see csrc/ops/test_hooks.h.
def run_failing_loop(items: int, on_worker: bool, kind: str, begun: int, /) -> None: ...
def count_preparations(loops: int, /) -> int: ...
def use_idle_kernels() -> None: ...
