"""What transformers makes of logits before it draws a token from them."""

import torch
from safetensors.torch import load_file

from support import load_model, store


def scores(folder, logits, output, seen, temperature, top_k, top_p, repetition_penalty):
    """Writes "scores", what `generate` draws from: "logits" [rows, vocabulary] of a file after all its processors.

    The model only lends its `generate`. `seen` are the tokens before the one that is drawn, the same for all rows.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_beams=1,
    )
    values = load_file(logits)["logits"]
    ids = torch.tensor(seen).repeat(values.shape[0], 1)
    processors = load_model(folder)._get_logits_processor(config, input_ids_seq_length=ids.shape[1], device="cpu")
    return {"processors": [type(item).__name__ for item in processors], **store(output, {"scores": processors(ids, values)})}
