"""A decoding loop of one's own: the model gives logits, fastdecode gives tokens; nothing else is needed.

python examples/loop.py [MODEL]     a folder or a hub id
"""

import inspect
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastdecode as fd


@torch.no_grad()
def write(model, ids, plan, seed, most):
    """The ids [B, n] and up to `most` more tokens in each row; rows that have ended are padded with their last token."""
    end = model.generation_config.eos_token_id
    ended = torch.zeros(len(ids), dtype=torch.bool)
    # Since transformers 5.24 models call it "cache".
    name = "past_key_values" if "past_key_values" in inspect.signature(model.forward).parameters else "cache"
    token, cache = ids, None
    for step in range(most):
        out = model(input_ids=token, **{name: cache}, logits_to_keep=1)
        cache = out[name]
        drawn = fd.sample(out.logits[:, -1], plan, seed=seed, step=step)
        token = torch.where(ended, ids[:, -1], drawn.tokens)[:, None]
        ids = torch.cat([ids, token], dim=1)
        ended |= token[:, 0] == end
        if ended.all():
            break
    return ids


name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
prompt = tokenizer(["the sea was calm"] * 2, return_tensors="pt").input_ids
for row in write(model, prompt, fd.plan(fd.temperature(1.2), fd.min_p(0.05)), seed=7, most=20):
    print(tokenizer.decode(row))
