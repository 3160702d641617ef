"""A model thinks in soft tokens and answers in ordinary ones; then one policy-gradient step on what it thought.

python examples/soft_thinking.py [MODEL]     a folder or a hub id
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastdecode as fd
import fastdecode.hf

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
prompt = tokenizer(["the old keeper"] * 2, return_tensors="pt")

out = model.generate(
    **prompt, do_sample=True, temperature=0.7, top_k=0, max_new_tokens=20, return_dict_in_generate=True,
    custom_generate=fastdecode.hf.soft_thinking, noise="gumbel", tau=0.5, top_m=5, seed=7, max_thinking=8,
    end_of_thinking=tokenizer.encode("</think>", add_special_tokens=False)[-1],
)  # fmt: skip
for row, text in enumerate(out.sequences):
    print(f"{int(out.soft.soft[row].sum())} soft tokens:", tokenizer.decode(text))
    for ids, weights in zip(out.soft.ids[row, :3], out.soft.weights[row, :3]):
        print("  ", [(tokenizer.decode(i), round(float(w), 2)) for i, w in zip(ids, weights) if i >= 0])

# The first soft token, scored by the model as it is: an advantage of 1 for the first text and -1 for the second.
logits = model(**prompt).logits[:, -1]
plan = fd.plan(fd.temperature(0.6), fd.top_k(30), fd.top_p(0.95))
soft = fd.soft_tokens(logits, plan, seed=7, step=0)
ratio = (fd.soft_logprobs(logits, soft, plan) - soft.logprobs.detach()).exp()
(ratio * torch.tensor([-1.0, 1.0])).sum().backward()
print("gradient of the output layer:", float(model.get_output_embeddings().weight.grad.norm()))
