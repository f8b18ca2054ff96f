"""Training tokens a second and peak memory beside peft + transformers (eager).

One step: LoRA of rank 8 on all seven linear layers of SmolLM2-135M, 4 rows of 256 tokens, AdamW; the same texts, token
for token. The peer's process stays, so that only its first round pays for warming up; Graft's begins anew in each round.
"""

import functools
import time

from support import LENGTH, LINEARS, RANK, ROWS, Peer, converted_model, in_turn, long_rows, lora_settings, median
from support import peak_memory, step_words, train

WARM_UP, MEASURED = 2, 2


def step_server(model, ids, dtype):
    """The peer: a question `steps` takes that many steps and answers with their seconds and losses."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="eager")
    base.config.use_cache = False
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, adapter).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    batch = torch.tensor(ids)

    def answer(steps):
        seconds, processor, losses = [], [], []
        for _ in range(steps):
            begin, computed = time.perf_counter(), time.process_time()
            loss = adapted(input_ids=batch, labels=batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - begin)
            processor.append(time.process_time() - computed)
        return {
            "seconds": seconds, "processor": processor, "losses": losses, "peak": peak_memory(),
            "since_start": time.process_time(),
        }  # fmt: skip

    return answer


def speed(seconds):
    return ROWS * LENGTH / median(seconds)


def measure(dtype, folder, rounds):
    """Rows of speed and of peak memory, from the same runs."""
    data, ids = long_rows(folder)
    with Peer("training.step_server", model=converted_model(), ids=ids, dtype=dtype) as peer:
        first = peer.ask(steps=WARM_UP)
        ours, theirs = in_turn(
            rounds,
            lambda: train(folder, data, *step_words(dtype), settings=lora_settings(), steps=WARM_UP + MEASURED),
            lambda: peer.ask(steps=MEASURED),
        )
    name = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    losses = {"losses": {"graft": ours[0]["losses"][:WARM_UP], "peft": first["losses"]}}
    speeds = [[speed(a["seconds"][WARM_UP:]), speed(b["seconds"])] for a, b in zip(ours, theirs)]
    work = [[speed(a["processor"][WARM_UP:]), speed(b["processor"])] for a, b in zip(ours, theirs)]
    # A high-water mark only rises: the peer's is that of its last round.
    memory = [[run["peak"], theirs[-1]["peak"]] for run in ours]
    return {f"training-{name}": {"pairs": speeds, "processor": work, **losses}, f"memory-{name}": {"pairs": memory}}


MEASUREMENTS = {
    "training-bf16": functools.partial(measure, "bfloat16"),
    "training-fp32": functools.partial(measure, "float32"),
}
