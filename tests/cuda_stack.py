"""Unsloth's CUDA branches on CPU tensors, in a process of its own: what a recipe runs on a GPU, where there is none.

`python tests/cuda_stack.py` imports the training libraries once as they are on a CUDA machine, with Triton's
interpreter in place of its compiler, and then forks a child for each job that it reads (see test_cuda_branches.py).
Not to be had this way: torch.compile, bfloat16 kernels (the interpreter's numpy has no bfloat16), streams, memory.
"""

import contextlib
import gc
import inspect
import json
import os
import runpy
import sys
import textwrap
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import recipe_probe

GIB = 2**30
ORIGINAL = {}  # what was replaced, by its name
LAUNCHES = Counter()  # of each kernel that has a stand-in
SLOW = "interpreted, a run takes minutes; test_kernels holds the two together"
ENVIRONMENT = {
    "UNSLOTH_ALLOW_CPU": "1",  # Unsloth's own switch for its tests: it takes the CUDA branches
    "TRITON_INTERPRET": "1",  # kernels run as numpy
    "UNSLOTH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # weights are read by this thread: cpu_mode is that of one
    "CUDA_VISIBLE_DEVICES": "",
}


class Stream:
    """A CUDA stream or event that has nothing to wait for."""

    cuda_stream = 0
    device = "cpu"

    def __init__(self, *args, **kwargs):
        pass

    def nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = synchronize = record = wait = record_event = nothing

    def query(self):
        return True


def patches(torch, dtype):
    """Everything that is replaced: (owner, name, stand-in, why)."""
    import accelerate.accelerator
    import bitsandbytes.functional
    from unsloth.kernels import rms_layernorm, rope_embedding, utils

    from tunebook.common.models import device

    half = dtype == "float16"
    card = SimpleNamespace(
        name="a card that is not there", total_memory=80 * GIB, major=7 if half else 9, minor=5 if half else 0,
        multi_processor_count=132, gcnArchName="", warp_size=32, shared_memory_per_block_optin=232448,
    )  # fmt: skip
    cuda, none = torch.cuda, lambda *args, **kwargs: None
    one_stream = lambda *args, **kwargs: Stream()  # noqa: E731
    no_context = lambda *args, **kwargs: contextlib.nullcontext()  # noqa: E731
    yield from [
        (cuda, "is_available", lambda: True, "recipes choose dtype, checkpointing and collation by it"),
        (torch.accelerator, "is_available", lambda: False, "nor in a CUDA build of torch is there memory to be pinned"),
        (cuda, "is_bf16_supported", lambda *args, **kwargs: not half, "a T4 where the test is of float16"),
        (cuda, "device_count", lambda: 1, "one card"),
        (cuda, "current_device", lambda: 0, "one card"),
        (cuda, "set_device", none, "one card"),
        (cuda, "device", no_context, "one card"),
        (cuda, "get_device_name", lambda *args: card.name, "for prints"),
        (cuda, "get_device_properties", lambda *args, **kwargs: card, "Unsloth sizes its buffers by it"),
        (cuda, "get_device_capability", lambda *args, **kwargs: (card.major, card.minor), "Unsloth chooses by it"),
        (cuda, "mem_get_info", lambda *args, **kwargs: (79 * GIB, 80 * GIB), "the fused loss sizes its chunks by it"),
        (cuda, "memory_allocated", lambda *args, **kwargs: 0, "nothing is on the card"),
        (cuda, "memory_reserved", lambda *args, **kwargs: 0, "nothing is on the card"),
        (cuda, "max_memory_allocated", lambda *args, **kwargs: GIB, "nothing is on the card"),
        (cuda, "max_memory_reserved", lambda *args, **kwargs: GIB, "nothing is on the card"),
        (cuda, "reset_peak_memory_stats", none, "nothing is on the card"),
        (cuda, "empty_cache", none, "nothing is on the card"),
        (cuda, "synchronize", none, "everything is done when a call returns"),
        *((owner, name, stand_in, "a CPU's random state is the only one") for owner in (cuda, cuda.random)
          for name, stand_in in (("get_rng_state", torch.get_rng_state), ("set_rng_state", none),
                                 ("get_rng_state_all", list), ("set_rng_state_all", none))),
        (torch.random, "fork_rng", no_rng_of_a_card(torch.random.fork_rng), "a CPU's random state is the only one"),
        (torch.Tensor, "record_stream", none, "no streams"),
        (cuda, "Stream", Stream, "no streams"),
        (cuda, "Event", Stream, "no streams"),
        (cuda, "current_stream", one_stream, "no streams"),
        (cuda, "default_stream", one_stream, "no streams"),
        (cuda, "set_stream", none, "no streams"),
        (cuda, "stream", no_context, "no streams"),
        (torch.amp.autocast_mode.autocast, "__init__", on_cpu(torch.amp.autocast_mode.autocast.__init__),
         "autocast of a GPU is that of the CPU here"),
        (torch, "is_autocast_enabled", on_cpu_function(torch.is_autocast_enabled), "the same, where it is asked for"),
        (torch, "get_autocast_dtype", on_cpu_function(torch.get_autocast_dtype), "the same, where it is asked for"),
        (accelerate.accelerator, "get_grad_scaler", lambda *args, **kwargs: torch.amp.GradScaler("cpu", 256.0),
         "a scaler of losses that scales on a CPU, with a scale that five steps can use"),
        (device, "here", lambda: device.Device(True, getattr(torch, dtype)),
         "float32 for bfloat16, which numpy has not"),
        (rms_layernorm, "_rms_forward", normalized(torch), SLOW),
        (rms_layernorm, "_rms_backward", normalized_backward(torch), SLOW),
        (rope_embedding, "_rope_launch", rotated(torch), SLOW),
        (utils, "_USE_NF4_KERNELS", False, "4-bit weights are those of bitsandbytes' CPU kernels, below"),
        (utils, "_BNB_GEMM_4BIT", False, "4-bit weights are those of bitsandbytes' CPU kernels, below"),
        (utils, "_fast_dequantize_bnb", dequantized(bitsandbytes.functional), "bitsandbytes' CPU kernel, not CUDA's"),
        (utils, "_fast_gemv_bnb", multiplied(bitsandbytes.functional), "bitsandbytes' CPU kernel, not CUDA's"),
    ]  # fmt: skip


def no_rng_of_a_card(fork):
    return lambda devices=None, enabled=True, *args, **kwargs: fork([], enabled)


def on_cpu(init):
    def made(self, device_type, *args, **kwargs):
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return made


def on_cpu_function(function):
    return lambda device_type="cpu": function("cpu")


def counted(name, stand_in):
    """The stand-in of a kernel, whose launches are counted."""

    def launched(*args, **kwargs):
        LAUNCHES[name] += 1
        return stand_in(*args, **kwargs)

    return launched


def normalized(torch):
    """What Unsloth's RMS norm kernel does to X (N, D): the output and the float32 scale of each row."""

    def forward(X, W, eps, gemma, wrap=None, multirow=None):
        scale_N = torch.rsqrt(X.float().square().mean(-1) + eps)
        normed = X.float() * scale_N[:, None]
        out = normed * (W.float() + 1.0) if gemma else normed.to(W.dtype) * W
        return out.to(X.dtype), scale_N

    return forward


def normalized_backward(torch):
    """Its backward pass: the gradient of X is written to dX, that of W is returned where W trains."""

    def backward(dY, dX, X, W, r, eps, gemma, wrap=None, multirow=None, train_w=False, from_y=False):
        weight = W.float() + 1.0 if gemma else W.float()
        normed = X.float() / weight if from_y else X.float() * r[:, None]
        inner = dY.float() * weight
        dW = (dY.float() * (normed if gemma else normed.to(W.dtype).float())).sum(0).to(W.dtype) if train_w else None
        dX.copy_(r[:, None] * (inner - normed * (inner * normed).mean(-1, keepdim=True)))
        return dW

    return backward


def rotated(torch):
    """What Unsloth's rotary kernel does, over (batch, heads, tokens, width) at any strides, as one expression."""

    def launch(Q, Q_out, K, K_out, cos, sin, rope_ptr, has_indices, backward, cast_to_sin, wrap):
        batch, _, length, width = Q.shape
        places = rope_ptr.view(batch, length).long() if has_indices else torch.arange(length)[None]
        half = width // 2
        c, s = (table[places, :half][:, None] for table in (cos, -sin if backward else sin))
        for values, out in ((Q, Q_out), (K, K_out)):
            if values is not None:
                x = values.to(sin.dtype) if cast_to_sin else values
                first, second = x[..., :half], x[..., half:]
                turned = torch.cat([first * c - second * s, second * c + first * s], -1)
                out.copy_(turned)

    return launch


def dequantized(functional):
    """Unsloth's call for bitsandbytes' kernel that makes numbers of a 4-bit weight."""

    def dequantize(W, quant_state=None, out=None, use_global_buffer=False, dtype=None):
        if quant_state is None:
            return W
        value = functional.dequantize_4bit(W, quant_state)
        return value if out is None else out.copy_(value)

    return dequantize


def multiplied(functional):
    """Unsloth's call for bitsandbytes' kernel that multiplies one row with a 4-bit weight."""

    def multiply(X, W, quant_state, out=None):
        if quant_state is None:
            return X @ W.t()
        value = X @ functional.dequantize_4bit(W, quant_state).to(X.dtype).t()
        return value if out is None else out.copy_(value)

    return multiply


def rewritten(owner, name, *changes):
    """A function with lines of its source replaced: (old, new)."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in changes:
        assert old in source, (name, old)
        source = source.replace(old, new)
    made = {}
    exec(source, sys.modules[owner.__module__].__dict__, made)
    return made[name]


def cpu_mode(torch):
    """Every tensor that is asked for on a GPU is made on the CPU."""
    from torch.overrides import TorchFunctionMode

    def cpu(value):
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

    class OnCPU(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
            if "device" in kwargs:
                place = kwargs["device"]
                kwargs["device"] = "cpu" if type(place) is int else cpu(place)
            if function is torch.device and type(args[0]) is int:
                return torch.device("cpu")
            if kwargs.get("pin_memory"):
                kwargs.pop("pin_memory")
            if name in ("cuda", "pin_memory"):
                return args[0]
            if name == "to" and len(args) > 1:
                args = (args[0], "cpu" if type(args[1]) is int else cpu(args[1]), *args[2:])
            return function(*args, **kwargs)

    return OnCPU()


def start():
    """Import the stack as on a CUDA machine."""
    os.environ.update(ENVIRONMENT)
    import unsloth  # noqa: F401
    from unsloth import context_parallel, trainer
    from unsloth.models import llama, rl

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # with it, TRL's classes would stay as they are
    rl.PatchFastRL()
    trainer._patch_trl_trainer()
    context_parallel.patch_sft_trainer()
    # Tables of sines are kept by the number of their card, which a CPU tensor's device has not.
    embedding = llama.LlamaRotaryEmbedding
    embedding._set_cos_sin_cache = rewritten(embedding, "_set_cos_sin_cache", ("[device.index]", "[0]"))


def take_card(dtype):
    """Answer for a card that is not there; a T4 where dtype is float16."""
    import torch

    for owner, name, stand_in, _ in patches(torch, dtype):
        ORIGINAL[name] = getattr(owner, name)
        kernel = owner.__name__.startswith("unsloth.kernels") and callable(stand_in)
        setattr(owner, name, counted(name, stand_in) if kernel else stand_in)
    brain = dtype != "float16"
    values = {
        "DEVICE_COUNT": 1,
        "get_current_device": lambda *args, **kwargs: 0,
        "SUPPORTS_BFLOAT16": brain,
        "device_is_bf16_supported": lambda *args, **kwargs: brain,
        "ALLOW_BITSANDBYTES": True,  # its CPU library is there, and does what is asked of its CUDA one (patches)
    }
    for module in [module for name, module in sys.modules.items() if name.lower().startswith("unsloth")]:
        for name in values.keys() & vars(module).keys():
            setattr(module, name, values[name])
    cpu_mode(torch).__enter__()


def serve():
    """Read jobs as lines of JSON, {"argv", "dtype", "out"}; answer each with a line, its exit status."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run(job))
        print(json.dumps({"rc": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), file=REPLY, flush=True)


def run(job):
    """A script with its arguments, as `python script arguments` runs it; what it prints goes to out/stdout, stderr."""
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = job["argv"]
    code = 0
    try:
        take_card(job["dtype"])
        recipe_probe.watch(out / "seen.json")
        runpy.run_path(job["argv"][0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    (out / "launches.json").write_text(json.dumps(LAUNCHES))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.modules["cuda_stack"] = sys.modules["__main__"]  # for scripts that ask what was replaced
    REPLY = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start()
    gc.freeze()  # children collect their own garbage alone; Unsloth asks for that often
    print(json.dumps({"ready": True}), file=REPLY, flush=True)
    serve()
